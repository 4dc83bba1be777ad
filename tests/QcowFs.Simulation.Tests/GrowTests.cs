// A qcow2 that grows while it is open: content afterwards, after a crash at any instant, and what it costs.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class GrowTests
{
    private const int Sector = 512;

    public static TheoryData<Geometry, int> Images => new()
    {
        // The second number: how many bytes of the disk are cut off first, in the header only, as a writer may leave it that does not zero.
        { new Geometry("cluster_size=512", 70_144, InitialContent.Full), 0 },
        { new Geometry("cluster_size=4096", 200_704, InitialContent.Full), 0 },
        { new Geometry("cluster_size=4096", 200_704, InitialContent.Full), 3_072 },
        { new Geometry("cluster_size=4096", 200_704, InitialContent.Empty), 1_024 },
        { new Geometry("cluster_size=16384,extended_l2=on", 999_424, InitialContent.Full), 15_872 },
        { new Geometry("compat=0.10,cluster_size=4096", 200_704, InitialContent.Full), 3_072 },
    };

    [Theory]
    [MemberData(nameof(Images))]
    public void Every_instant(Geometry geometry, int cut)
    {
        PreparedImage prepared = Cut(SimulatedImages.Prepare(geometry), cut);
        for (long instant = 1; ; instant++)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            instant = Math.Max(instant, disk.Clock + 1);
            disk.CrashAt(instant);
            List<byte[]> versions = [prepared.Guest];
            int synced = 0;
            try
            {
                Run(disk, prepared, versions, ref synced);
                Judge(disk.Crash(CrashChoice.Nothing), prepared, versions[^1..], $"{geometry}");
                SimulatedImages.JudgeByQemu(disk.Crash(CrashChoice.Nothing), prepared, versions[^1], $"{geometry}");
                return;
            }
            catch (SimulatedCrashException)
            {
                foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(24, (ulong)instant))
                    Judge(survivor, prepared, versions[synced..], $"{geometry}, cut {cut}, instant {instant}, {choice}");
            }
        }
    }

    [Theory]
    [InlineData(4096, 0)] // whole clusters
    [InlineData(512, 1)]  // once a cluster its rest is made zero
    public void Appending_costs_no_commit(int append, int syncsPerCluster)
    {
        const int clusters = 32;
        const int cluster = 4096;
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 200_704, InitialContent.Empty));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage image = SimulatedImages.Open(disk, prepared, cacheSize: 1 << 20);
        image.Write(0, Pattern.Bytes(1, 0, cluster)); // marks the image as in use
        image.Sync();
        long before = disk.Count(StorageCalls.Sync);
        for (int at = 0; at < clusters * cluster; at += append)
        {
            Assert.True(image.TryGrow(prepared.Guest.Length + at + append));
            image.Write(prepared.Guest.Length + at, Pattern.Bytes(2, at, append));
        }

        Assert.Equal(clusters * syncsPerCluster, disk.Count(StorageCalls.Sync) - before);
        image.Sync();
        Assert.Equal(clusters * syncsPerCluster + 2, disk.Count(StorageCalls.Sync) - before); // as for any write that allocates
        image.Close();
        byte[] expected = new byte[prepared.Guest.Length + clusters * cluster];
        prepared.Guest.CopyTo(expected, 0);
        Pattern.Bytes(1, 0, cluster).CopyTo(expected, 0);
        for (int at = 0; at < clusters * cluster; at += append)
            Pattern.Bytes(2, at, append).CopyTo(expected, prepared.Guest.Length + at);
        SimulatedImages.JudgeByQemu(disk, prepared, expected, $"appends of {append}");
    }

    [Theory]
    [InlineData("cluster_size=512", InitialContent.Full, 4096, 64 << 10, false)] // past what the L1 table maps
    [InlineData("cluster_size=512", InitialContent.Full, 4096, 512, false)] // whole clusters are mapped past the end
    [InlineData("cluster_size=4096", InitialContent.Bitmaps, 0, 512, false)]
    [InlineData("cluster_size=4096", InitialContent.ExternalData, 0, 512, false)]
    [InlineData("cluster_size=4096", InitialContent.Compressed, 1024, 512, false)]
    [InlineData("cluster_size=4096", InitialContent.Snapshot, 1024, 512, false)] // the last cluster is shared
    [InlineData("cluster_size=4096", InitialContent.Snapshot, 0, 512, true)]
    [InlineData("cluster_size=4096", InitialContent.Empty, 0, -512, false)] // smaller
    public void What_cannot_be_done_in_place_is_left_as_it_is(string options, InitialContent content, int cut, int more, bool expected)
    {
        PreparedImage prepared = Cut(SimulatedImages.Prepare(new Geometry(options, 90_112, content)), cut);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage image = SimulatedImages.Open(disk, prepared);
        long before = disk.Count(StorageCalls.Write);
        Assert.Equal(expected, image.TryGrow(prepared.Guest.Length + more));
        Assert.Equal(prepared.Guest.Length + (expected ? more : 0), image.Length);
        if (!expected)
            Assert.Equal(before, disk.Count(StorageCalls.Write));
    }

    private static void Run(SimulatedDisk disk, PreparedImage prepared, List<byte[]> versions, ref int synced)
    {
        using CowImage image = SimulatedImages.Open(disk, prepared);
        Write(100, 3000, 1);
        Append(Sector, 2);
        Append(3 * Sector, 3);
        image.Sync();
        synced = versions.Count - 1;
        Append(9 * Sector, 4);
        Write(versions[^1].Length - 700, 600, 5);
        Grow(versions[^1].Length + 2 * Sector);
        image.Sync();
        synced = versions.Count - 1;
        Grow(versions[^1].Length + Sector); // alone
        image.Sync();
        synced = versions.Count - 1;
        Append(Sector, 6);
        image.Close();
        synced = versions.Count - 1;

        void Append(int length, ulong seed)
        {
            int end = versions[^1].Length;
            Grow(end + length);
            Write(end, length, seed);
        }

        void Grow(int size)
        {
            byte[] next = versions[^1];
            Array.Resize(ref next, size);
            versions.Add(next); // before: a crash in it may leave it
            Assert.True(image.TryGrow(size));
        }

        void Write(int offset, int length, ulong seed)
        {
            byte[] next = [.. versions[^1]];
            Pattern.Bytes(seed, offset, length).CopyTo(next, offset);
            versions.Add(next);
            image.Write(offset, Pattern.Bytes(seed, offset, length));
        }
    }

    /// <summary>The size is that of a version, each sector of the disk that of a version, and no version is older than the last sync.</summary>
    private static void Judge(SimulatedDisk survivor, PreparedImage prepared, List<byte[]> versions, string where)
    {
        using CowImage image = SimulatedImages.Open(survivor, prepared, writable: false);
        Assert.True(versions.Exists(v => v.Length == image.Length), $"{where}: {image.Length} bytes");
        byte[] found = new byte[image.Length];
        image.Read(0, found);
        for (int at = 0; at < found.Length; at += Sector)
        {
            ReadOnlySpan<byte> sector = found.AsSpan(at, Sector);
            bool known = false;
            foreach (byte[] version in versions)
                known |= at < version.Length ? sector.SequenceEqual(version.AsSpan(at, Sector)) : !sector.ContainsAnyExcept((byte)0);
            Assert.True(known, $"{where}: sector at {at} of {found.Length}");
        }

        CheckReport report = Qcow2Checker.Check(survivor.Open("image", readOnly: true));
        Assert.True(report.Corruptions == report.HarmlessCorruptions && report.CheckErrors == 0, $"{where}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
    }

    private static PreparedImage Cut(PreparedImage image, int cut)
    {
        if (cut == 0)
            return image;
        byte[] file = [.. image.File];
        BinaryPrimitives.WriteInt64BigEndian(file.AsSpan(24), image.Guest.Length - cut);
        return image with { File = file, Guest = image.Guest[..^cut] };
    }
}
