// Deduplication under threads: owners that are rewritten while others are about to share them, commits, sweeps and scans at the same time.
using QcowFs.Images.Engine;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class SharingConcurrencyTests
{
    private const int Block = 4096;

    /// <summary>The comparison reads the owner's bytes; at that moment the owner is rewritten in place. The write must wait until the block
    /// is shared or not, and then copy it.</summary>
    [Fact]
    public void An_owner_rewritten_during_the_comparison_is_not_shared_with_its_new_bytes()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 500_224));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage image = SharingImages.Open(disk, prepared);
        byte[] same = Pattern.Bytes(1, 0, Block);
        byte[] other = Pattern.Bytes(2, 0, Block);
        image.Write(0, same);
        image.Sync();
        long host = image.QueryExtent(0, Block).Host;
        Thread? rewriter = null;
        disk.BeforeCall = call =>
        {
            if (rewriter is not null || call.Kind != StorageCalls.Read || call.Offset != host)
                return;
            rewriter = new Thread(() => image.Write(0, other.AsSpan(0, 512)));
            rewriter.Start();

            // Whether the write is held up cannot be waited for; given this time, a write that is not held up is done.
            Assert.False(rewriter.LetGoOn(), "the owner was rewritten between its comparison and its sharing");
        };
        image.Write(20 * Block, same);
        disk.BeforeCall = null;
        Assert.NotNull(rewriter);
        rewriter.Join();
        byte[] read = new byte[Block];
        image.Read(20 * Block, read);
        Assert.True(read.AsSpan().SequenceEqual(same), "the second block got the owner's new bytes");
        image.Read(0, read);
        Assert.True(read.AsSpan(0, 512).SequenceEqual(other.AsSpan(0, 512)) && read.AsSpan(512).SequenceEqual(same.AsSpan(512)));
        image.Close();
        SharingModelTests.AssertClean(disk, "after the race");
    }

    [Fact]
    public void Many_writers_of_the_same_content_with_commits_sweeps_and_reads()
    {
        foreach (ulong seed in Seeds.Between(1, 2))
        {
            Geometry geometry = new("cluster_size=4096", 1_000_448);
            PreparedImage prepared = SimulatedImages.Prepare(geometry);
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            using CowImage image = SharingImages.Open(disk, prepared, weakHash: seed % 2 == 0, cacheSize: 1 << 16);
            const int threads = 4;
            const int each = 60;
            byte[][] contents = [.. new[] { 0, 1, 2, 3, 101, 102 }.Select(i => SharingOperation.Content(i, Block))];
            byte[][] last = new byte[threads * each][];
            Exception? failure = null;
            using ManualResetEventSlim done = new();
            Thread background = new(() => Guard(ref failure, () =>
            {
                while (!done.IsSet && failure is null)
                {
                    image.Sync();
                    image.Map.Sharing!.Sweep(image.Sync, () => done.IsSet);
                }
            }));
            Thread[] writers = [.. Enumerable.Range(0, threads).Select(t => new Thread(() => Guard(ref failure, () =>
                WriteOwn(image, t * each, each, contents, last, new Random((int)seed + t)))))];
            background.Start();
            foreach (Thread writer in writers)
                writer.Start();
            foreach (Thread writer in writers)
                writer.Join();
            done.Set();
            background.Join();
            Assert.True(failure is null, $"seed {seed}: {failure}");
            byte[] read = new byte[Block];
            for (int i = 0; i < last.Length; i++)
            {
                image.Read((long)i * Block, read);
                Assert.True(read.AsSpan().SequenceEqual(last[i]), $"seed {seed} block {i}");
            }

            Assert.True(image.Statistics.Dedup!.Shared > 50, $"seed {seed}: {image.Statistics.Dedup.Shared} shared");
            image.Close();
            SharingModelTests.AssertClean(disk, $"seed {seed}");
        }
    }

    private static void WriteOwn(CowImage image, int first, int count, byte[][] contents, byte[][] last, Random random)
    {
        for (int i = 0; i < count; i++)
            last[first + i] = new byte[Block];
        byte[] read = new byte[Block];
        for (int step = 0; step < 1500; step++)
        {
            int block = first + random.Next(count);
            switch (random.Next(8))
            {
                case 0:
                    byte[] part = new byte[random.Next(1, 900)];
                    random.NextBytes(part);
                    int at = random.Next(Block - part.Length);
                    image.Write(((long)block * Block) + at, part);
                    byte[] changed = (byte[])last[block].Clone();
                    part.CopyTo(changed, at);
                    last[block] = changed;
                    break;
                case 1:
                    image.Discard((long)block * Block, Block);
                    last[block] = new byte[Block];
                    break;
                default:
                    last[block] = contents[random.Next(contents.Length)];
                    image.Write((long)block * Block, last[block]);
                    break;
            }

            image.Read((long)block * Block, read);
            Assert.True(read.AsSpan().SequenceEqual(last[block]), $"block {block} after step {step}");
        }
    }

    private static void Guard(ref Exception? failure, Action act)
    {
        try
        {
            act();
        }
        catch (Exception exception)
        {
            Interlocked.CompareExchange(ref failure, exception, null);
        }
    }
}
