// What a crash of ours leaves is put right in the background while the guest works: leaked clusters, missing COPIED flags.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class RecoveryTests
{
    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 70_144, InitialContent.Full),
        new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot),
        new Geometry("cluster_size=512,refcount_bits=1", 70_144, InitialContent.Full),
        new Geometry("cluster_size=16384,extended_l2=on", 1_000_448, InitialContent.Snapshot),
        new Geometry("cluster_size=4096", 200_704, InitialContent.Compressed, Compress: true),
        new Geometry("cluster_size=512", 70_144, InitialContent.ExternalData),
        new Geometry("cluster_size=512", 70_144, InitialContent.Bitmaps),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Missing_flags_are_set_and_leaks_collected_while_the_guest_works(Geometry geometry)
    {
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        foreach (ulong seed in Seeds.Between(1, 4))
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            using (CowImage image = SimulatedImages.Open(disk, prepared, cacheSize: 1 << 16))
            {
                foreach (Operation operation in Operation.Random(seed, 40, geometry))
                    operation.Run(image, model);
                image.Close();
            }

            byte[] bytes = disk.Content("image");
            int cleared = Damage(bytes, new Random((int)seed));
            SimulatedDisk damaged = disk.Crash(CrashChoice.Everything);
            using (SimulatedStorage file = damaged.Open("image"))
                file.Write(0, bytes);
            List<string> log = [];
            using (CowImage image = SimulatedImages.Open(damaged, prepared, log: log.Add))
            {
                LeakCollector collector = Assert.IsType<LeakCollector>(image.Map.Recovery);
                foreach (Operation operation in Operation.Random(seed + 50, 3, geometry))
                    operation.Run(image, model);
                image.Recover(commit => collector.Run(commit, windowClusters: 48));
                Assert.True(collector.IsComplete);
                Assert.True(cleared > 0 && collector.FlagsSet > 0, $"{geometry} seed {seed}: {collector.FlagsSet} of {cleared} flags");
                foreach (Operation operation in Operation.Random(seed + 90, 3, geometry))
                    operation.Run(image, model);
                model.CheckLive(image);
                image.Close();
            }

            Assert.Contains(log, line => line.Contains("missing COPIED flags set", StringComparison.Ordinal));
            model.Sync();
            CrashRun.Judge(damaged.Crash(CrashChoice.Nothing), model, prepared, $"{geometry} seed {seed}");
            CheckReport report = Qcow2Checker.Check(damaged.Open("image", readOnly: true));
            Assert.True(report.ExitCode == 0, $"{geometry} seed {seed}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
            if (geometry.Content == InitialContent.Snapshot)
                SimulatedImages.JudgeSnapshotByQemu(damaged, prepared.Guest, $"{geometry} seed {seed}");
        }
    }

    /// <summary>What a crash left behind the last cluster in use, counted or not, is cut off by the close of the session that counted all
    /// references, also where that session used some of it.</summary>
    [Theory]
    [InlineData("cluster_size=512", InitialContent.Full, false)]
    [InlineData("cluster_size=512", InitialContent.Full, true)]
    [InlineData("cluster_size=4096", InitialContent.Snapshot, true)]
    [InlineData("cluster_size=65536", InitialContent.Empty, false)]
    public void The_tail_of_a_crash_is_cut_off_at_the_close(string options, InitialContent content, bool writes)
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry(options, 401_408, content));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            foreach (int offset in (int[])[1000, 200_000])
                new Operation(OperationKind.Write, offset, Pattern.Bytes(1, offset, 9000)).Run(image, model);
            new Operation(OperationKind.Sync, 0, []).Run(image, model);
            new Operation(OperationKind.Discard, 0, new byte[150_000]).Run(image, model);
            new Operation(OperationKind.Sync, 0, []).Run(image, model);
            new Operation(OperationKind.Write, 300_000, Pattern.Bytes(2, 0, 70_000)).Run(image, model);
        }

        SimulatedDisk left = disk.Crash(CrashChoice.Everything);
        using (SimulatedStorage file = left.Open("image"))
            file.SetLength(file.Length + 700_000); // what was reserved
        using (CowImage image = SimulatedImages.Open(left, prepared))
        {
            model.Adopt(image);
            if (writes)
                new Operation(OperationKind.Write, 100_000, Pattern.Bytes(3, 0, 5000)).Run(image, model);
            image.Recover(commit => ((LeakCollector)image.Map.Recovery!).Run(commit, windowClusters: 100));
            if (writes)
                new Operation(OperationKind.Write, 120_000, Pattern.Bytes(4, 0, 5000)).Run(image, model);
            image.Close();
        }

        model.Sync();
        CrashRun.Judge(left.Crash(CrashChoice.Nothing), model, prepared, options);
        CheckReport report = Qcow2Checker.Check(left.Open("image", readOnly: true));
        Assert.Equal((0, report.ImageEndOffset), (report.ExitCode, left.Content("image").Length));
    }

    /// <summary>Neither what is referred to without a count nor, in an image with a broken structure, anything is cut off (A5, L6).</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void The_tail_of_a_damaged_image_stays(bool isBroken)
    {
        const int cluster = 4096;
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 401_408, InitialContent.Full));
        byte[] bytes = [.. prepared.File, .. new byte[isBroken ? 20 * cluster : 0]];
        Qcow2Header header = Qcow2HeaderReader.Parse(bytes, "image");
        BinaryPrimitives.WriteUInt64BigEndian(bytes.AsSpan(Qcow2HeaderLayout.AutoclearFeaturesAt), (ulong)AutoclearFeatures.InUse);
        if (isBroken)
            bytes[BinaryPrimitives.ReadInt64BigEndian(bytes.AsSpan((int)header.L1Offset)) & 0x00FF_FFFF_FFFF_FE00 | 7] |= 2; // a reserved bit
        else
        {
            int block = (int)BinaryPrimitives.ReadInt64BigEndian(bytes.AsSpan((int)header.RefcountTableOffset));
            bytes.AsSpan(block + (((bytes.Length / cluster) - 20) * 2), 20 * 2).Clear();
        }

        SimulatedDisk disk = new();
        disk.Create("image", bytes);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            LeakCollector collector = (LeakCollector)image.Map.Recovery!;
            image.Recover(commit => collector.Run(commit, windowClusters: 48));
            Assert.Equal(isBroken, !collector.IsComplete);
            image.Close();
        }

        Assert.True(disk.Content("image").AsSpan(cluster).SequenceEqual(bytes.AsSpan(cluster)));
    }

    /// <summary>A power failure at any instant of it: no flag on disk where there are two references.</summary>
    [Theory]
    [InlineData("cluster_size=512", InitialContent.Snapshot)]
    [InlineData("cluster_size=512", InitialContent.Full)]
    public void A_crash_in_it_leaves_leaks_and_missing_flags_at_worst(string options, InitialContent content)
    {
        Geometry geometry = new(options, 40_448, content);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk start = SimulatedImages.DiskOf(prepared);
        byte[] bytes = start.Content("image");
        Damage(bytes, new Random(1));
        Leak(bytes);
        using (SimulatedStorage file = start.Open("image"))
        {
            file.Write(0, bytes);
            file.Sync();
        }

        for (long at = 1; ; at++)
        {
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            DiskModel model = new(prepared.Guest);
            disk.CrashAt(disk.Clock + at);
            if (RunsToTheEnd(disk, prepared, model))
            {
                Assert.Equal(0, Qcow2Checker.Check(disk.Open("image", readOnly: true)).ExitCode);
                return;
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(10, (ulong)at))
            {
                CheckReport report = Qcow2Checker.Check(survivor.Open("image", readOnly: true));
                Assert.True(report.CheckErrors == 0 && report.Corruptions == report.HarmlessCorruptions, $"instant {at} {choice}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
                using CowImage image = SimulatedImages.Open(survivor, prepared, writable: false);
                model.CheckAfterCrash(image);
            }
        }
    }

    private static bool RunsToTheEnd(SimulatedDisk disk, PreparedImage prepared, DiskModel model)
    {
        try
        {
            using CowImage image = SimulatedImages.Open(disk, prepared);
            LeakCollector collector = (LeakCollector)image.Map.Recovery!;
            byte[] written = new byte[3000];
            written.AsSpan().Fill(5);
            model.Write(1000, written);
            image.Write(1000, written);
            image.Recover(commit => collector.Run(commit, windowClusters: 48));
            image.Close();
            return true;
        }
        catch (SimulatedCrashException)
        {
            return false;
        }
    }

    // Clears half of the flags and says that a writer of ours did not end. Gives how many were cleared.
    private static int Damage(byte[] bytes, Random random)
    {
        Qcow2Header header = Qcow2HeaderReader.Parse(bytes, "image");
        int cleared = 0;
        for (int i = 0; i < header.L1Size; i++)
        {
            int at = (int)header.L1Offset + (i * L1Entry.Size);
            int table = (int)L1Entry.Read(bytes.AsSpan(at)).TableOffset;
            Clear(at);
            for (int entry = table; table > 0 && entry < table + header.ClusterSize; entry += header.L2EntrySize)
                Clear(entry);
        }

        BinaryPrimitives.WriteUInt64BigEndian(bytes.AsSpan(Qcow2HeaderLayout.AutoclearFeaturesAt), (ulong)(header.AutoclearFeatures | AutoclearFeatures.InUse));
        return cleared;

        void Clear(int at)
        {
            // An external data file's first cluster is told by its flag alone.
            if ((bytes[at] & 0x80) == 0 || L2Entry.Read(bytes.AsSpan(at)).HostOffset.Value == 0 || random.Next(2) == 0)
                return;
            bytes[at] &= 0x7f;
            cleared++;
        }
    }

    // Counts every fourth cluster that has a count once more.
    private static void Leak(byte[] bytes)
    {
        Qcow2Header header = Qcow2HeaderReader.Parse(bytes, "image");
        int block = (int)BinaryPrimitives.ReadInt64BigEndian(bytes.AsSpan((int)header.RefcountTableOffset));
        for (int i = 0; i < header.RefcountsPerBlock && i < bytes.Length / header.ClusterSize; i += 4)
        {
            ushort count = BinaryPrimitives.ReadUInt16BigEndian(bytes.AsSpan(block + (i * 2)));
            if (count == 0)
                continue;
            BinaryPrimitives.WriteUInt16BigEndian(bytes.AsSpan(block + (i * 2)), (ushort)(count + 1));
            ClearFlagOf(bytes, header, i);
        }
    }

    private static void ClearFlagOf(byte[] bytes, Qcow2Header header, int cluster)
    {
        for (int i = 0; i < header.L1Size; i++)
        {
            int at = (int)header.L1Offset + (i * L1Entry.Size);
            int table = (int)L1Entry.Read(bytes.AsSpan(at)).TableOffset;
            if (table >> header.ClusterBits == cluster)
                bytes[at] &= 0x7f;
            for (int entry = table; table > 0 && entry < table + header.ClusterSize; entry += header.L2EntrySize)
            {
                if (L2Entry.Read(bytes.AsSpan(entry)).HostOffset.Value >> header.ClusterBits == cluster)
                    bytes[entry] &= 0x7f;
            }
        }
    }
}
