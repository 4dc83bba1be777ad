// The estimate against a count by hand, and the rule that stops hashing what never repeats.
using QcowFs.Images.Engine;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Dedup;

public sealed class SavingsTests
{
    [Fact]
    public void Estimate_is_exact_for_few_clusters_over_several_images()
    {
        SavingsEstimate estimate = new();
        byte[] content = new byte[8 << 20];
        for (int i = 0; i < content.Length; i += 4096)
            Pattern.Fill(content.AsSpan(i, 4096), (ulong)(i / 4096 % 100), 0);
        content.AsSpan(1 << 20, 1 << 20).Clear();
        foreach (string name in new[] { "one", "two" })
        {
            using IDiskImage image = RawDisk(name, content);
            long last = 0;
            estimate.Add(image, done => last = done);
            Assert.Equal(content.Length, last);
        }

        foreach (SavingsRow row in estimate.Rows)
        {
            HashSet<string> distinct = [];
            int zeros = 0;
            for (int i = 0; i < content.Length; i += row.ClusterSize)
            {
                ReadOnlySpan<byte> cluster = content.AsSpan(i, row.ClusterSize);
                if (cluster.ContainsAnyExcept((byte)0))
                    distinct.Add(Convert.ToHexString(System.Security.Cryptography.SHA256.HashData(cluster)));
                else
                    zeros++;
            }

            Assert.True(row.IsExact);
            Assert.Equal(2L * content.Length / row.ClusterSize, row.Clusters);
            Assert.Equal(2L * zeros, row.ZeroClusters);
            Assert.Equal(distinct.Count, row.DistinctClusters);
        }
    }

    [Fact]
    public void Estimate_by_sample_is_close_and_its_memory_bounded()
    {
        SavingsEstimate estimate = new(capacity: 4096);
        byte[] content = new byte[256 << 20];
        Random random = new(3);
        for (int i = 0; i < content.Length; i += 4096)
            Pattern.Fill(content.AsSpan(i, 16), (ulong)random.Next(30_000), 0);
        using IDiskImage image = RawDisk("large", content);
        estimate.Add(image, static _ => { });
        SavingsRow row = estimate.Rows[0];
        HashSet<ulong> distinct = [];
        for (int i = 0; i < content.Length; i += 4096)
            distinct.Add(BitConverter.ToUInt64(content, i));
        Assert.False(row.IsExact);
        Assert.InRange(row.DistinctClusters, distinct.Count * 0.9, distinct.Count * 1.1);
    }

    [Fact]
    public void Hashing_stops_for_what_never_repeats_and_comes_back_with_the_first_repetitions()
    {
        RepeatRule rule = new();
        int chosen = 0;
        for (int i = 0; i < 3 * RepeatRule.FullWindow; i++)
        {
            bool wanted = rule.Wants(Pattern.Bytes((ulong)i, 0, 4096));
            Assert.True(wanted || rule.IsSampling);
            chosen += wanted ? 1 : 0;
            if (wanted)
                rule.Note(1, 0);
        }

        Assert.True(rule.IsSampling);
        int sampled = chosen - RepeatRule.FullWindow;
        Assert.InRange(sampled, 2 * RepeatRule.FullWindow / RepeatRule.SampleOneIn / 2, 2 * RepeatRule.FullWindow / RepeatRule.SampleOneIn * 2);

        // The same content is chosen again, so a copy of it is noticed.
        int noted = 0;
        for (int i = 2 * RepeatRule.FullWindow; rule.IsSampling; i++)
        {
            if (!rule.Wants(Pattern.Bytes((ulong)i, 0, 4096)))
                continue;
            rule.Note(1, 1);
            Assert.True(++noted <= 2 * RepeatRule.SampleWindow);
        }
    }

    private static IDiskImage RawDisk(string name, byte[] content)
    {
        SimulatedDisk disk = new();
        disk.Create(name, content);
        return new ImageOpener(disk).Open(name, new OpenOptions { Format = "raw" });
    }
}
