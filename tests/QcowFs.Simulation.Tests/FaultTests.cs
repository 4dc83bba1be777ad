// The n-th call fails, for every n: with a full host nothing is lost and everything goes on when space is free again; with any other
// error of a write or sync the image takes no more changes, says why, and what is on disk is as after a crash (I7).
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class FaultTests
{
    private const int Steps = 25;

    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 70_144),
        new Geometry("cluster_size=512,refcount_bits=64", 70_144),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Backing),
        new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot),
        new Geometry("cluster_size=4096", 100_352, InitialContent.Compressed),
        new Geometry("cluster_size=512", 70_144, InitialContent.ExternalData),
        new Geometry("cluster_size=2048", 100_352, Compress: true),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Backing, Compress: true),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void An_error_latches_the_image(Geometry geometry)
    {
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        ulong seed = Seeds.Between(5, 5).Single();
        long calls = CallsOf(prepared, geometry, StorageCalls.Changes | StorageCalls.Sync, seed);
        foreach (FaultEffect effect in new[] { FaultEffect.None, FaultEffect.Half, FaultEffect.Whole })
        {
            for (long n = 1; n <= calls; n++)
            {
                SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
                DiskModel model = new(prepared.Guest);
                disk.Fail(StorageCalls.Changes | StorageCalls.Sync, Errno.EIO, n, effect: effect);
                Assert.True(FailsForGood(disk, prepared, geometry, model, seed), $"{geometry} call {n} {effect}: nothing failed");
                foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(3, (ulong)n))
                    CrashRun.Judge(survivor, model, prepared, $"{geometry} call {n} {effect} {choice}");
            }
        }
    }

    [Theory]
    [MemberData(nameof(Geometries))]
    public void A_full_host_loses_nothing(Geometry geometry)
    {
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        foreach (ulong seed in Seeds.Between(5, 8))
        {
            long calls = CallsOf(prepared, geometry, StorageCalls.Changes, seed);
            for (long n = 1; n <= calls; n++)
                FullHost(prepared, geometry, seed, n, times: n % 2 == 0 ? 1 : 4);
        }
    }

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Space_that_comes_back_lets_it_go_on(Geometry geometry)
    {
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        for (int spare = 0; spare < 40_000; spare += 4096)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            using (CowImage image = SimulatedImages.Open(disk, prepared))
            {
                disk.SpaceLimit = disk.UsedSpace + spare;
                int refused = 0;
                foreach (Operation operation in Operation.Random(9, Steps, geometry))
                {
                    try
                    {
                        operation.RunDoubtfully(image, model);
                    }
                    catch (StorageException exception) when (exception.IsOutOfSpace)
                    {
                        refused++;
                    }
                }

                Assert.True(refused > 0 || spare > 0 || geometry.Content == InitialContent.ExternalData, "the limit was never met");
                Assert.Null(image.Failure);
                disk.SpaceLimit = long.MaxValue;
                image.Sync();
                model.Adopt(image);
                image.Close();
            }

            JudgeClean(disk, model, prepared, $"{geometry} spare {spare}");
        }
    }

    [Fact]
    public void An_unreadable_page_fails_the_call_and_nothing_else()
    {
        Geometry geometry = new("cluster_size=512", 70_144, InitialContent.Full);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        for (long n = 1; n <= 150; n += 3)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            using (CowImage image = SimulatedImages.Open(disk, prepared))
            {
                disk.Fail(StorageCalls.Read, Errno.EIO, n);
                foreach (Operation operation in Operation.Random(5, Steps, geometry))
                {
                    for (bool done = false; !done;)
                    {
                        try
                        {
                            operation.RunDoubtfully(image, model);
                            done = true;
                        }
                        catch (StorageException exception) when (exception.Errno == Errno.EIO && exception.Operation.Equals("read", StringComparison.OrdinalIgnoreCase))
                        {
                            // The caller saw the error; the same call works the next time.
                        }
                    }
                }

                disk.ClearFaults();
                Assert.Null(image.Failure);
                model.CheckLive(image);
                image.Close();
            }

            JudgeClean(disk, model, prepared, $"{geometry} read {n}");
        }
    }

    private static void FullHost(PreparedImage prepared, Geometry geometry, ulong seed, long n, int times)
    {
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            disk.Fail(StorageCalls.Changes, Errno.ENOSPC, n, times);
            foreach (Operation operation in Operation.Random(seed, Steps, geometry))
                Persist(operation, image, model);
            disk.ClearFaults();
            model.CheckLive(image);
            Assert.Null(image.Failure);
            image.Close();
        }

        JudgeClean(disk, model, prepared, $"{geometry} seed {seed} call {n} x{times}");
    }

    /// <summary>What a commit gives up it gives up once, however often it is interrupted: shared clusters keep the snapshot's count.</summary>
    [Fact]
    public void An_interrupted_give_up_lowers_no_count_twice()
    {
        int commits = 0;
        bool struck = true;
        for (int n = 1; struck; n++)
        {
            struck = GiveUp(StorageCalls.Read, Errno.EIO, n, $"read {n}", out bool failed);
            commits += failed ? 1 : 0;
        }

        Assert.True(commits > 2, "no commit was interrupted");
    }

    /// <summary>When counts are lowered everything is durable: a host that cannot punch fails no sync, and what was not punched is not
    /// taken for zeros.</summary>
    [Fact]
    public void A_host_that_cannot_punch_fails_no_sync()
    {
        bool struck = true;
        for (int n = 1; struck; n++)
        {
            struck = GiveUp(StorageCalls.Discard, Errno.ENOSPC, n, $"discard {n}", out bool failed);
            Assert.False(failed, $"discard {n}: the sync failed");
            Assert.True(struck || n > 1, "nothing was punched");
        }
    }

    // Gives most of a disk up while the n-th call fails; then writes parts of new clusters where it was.
    private static bool GiveUp(StorageCalls kind, Errno error, int n, string where, out bool failed)
    {
        Geometry geometry = new("cluster_size=512", 400_384, InitialContent.Snapshot);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        bool struck;
        using (CowImage image = SimulatedImages.Open(disk, prepared, cacheSize: kind == StorageCalls.Read ? 512 : 1 << 18))
        {
            // Most clusters are the image's own, so that there is something to punch; the others are the snapshot's too.
            image.Write(0, prepared.Guest.AsSpan(0, 600 * 512));
            image.Sync();
            if (kind == StorageCalls.Discard)
                image.Discard(0, geometry.Size);
            long before = disk.Count(kind);
            disk.Fail(kind, error, n);
            Exception? caught = Record.Exception(() => image.Discard(0, geometry.Size)) ?? Record.Exception(image.Sync);
            failed = caught?.StackTrace?.Contains("GiveUp", StringComparison.Ordinal) == true;
            struck = disk.Count(kind) - before >= n;
            disk.ClearFaults();
            image.Discard(0, geometry.Size);
            image.Sync();
            Assert.Null(image.Failure);
            model.Zero(0, geometry.Size);
            for (int at = 100; at + 3 < geometry.Size; at += 2048)
            {
                model.Write(at, [1, 2, 3]);
                image.Write(at, [1, 2, 3]);
            }

            model.CheckLive(image);
            image.Close();
        }

        JudgeClean(disk, model, prepared, where);
        return struck;
    }

    /// <summary>A5: an image that counts less than it holds keeps its end when it is closed, although its last clusters look free.</summary>
    [Fact]
    public void Closing_cuts_nothing_off_that_only_looks_free()
    {
        const int cluster = 4096;
        Geometry geometry = new("cluster_size=4096", 401_408, InitialContent.Full);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        byte[] bytes = (byte[])prepared.File.Clone();
        Qcow2Header header = Qcow2HeaderReader.Parse(bytes, "image");
        int last = bytes.Length / cluster - 1;
        int block = (int)BinaryPrimitives.ReadInt64BigEndian(bytes.AsSpan((int)header.RefcountTableOffset));
        bytes.AsSpan(block + ((last - 19) * 2), 20 * 2).Clear();
        SimulatedDisk disk = new();
        disk.Create("image", bytes);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            // The first new cluster takes one of them, which nothing can prevent; the others are seen to be free.
            image.Discard(0, cluster);
            image.Write(0, [1]);
            image.Close();
        }

        byte[] after = disk.DurableContent("image");
        Assert.True(after.Length >= bytes.Length, $"{bytes.Length - after.Length} bytes were cut off");
        Assert.True(after.AsSpan(bytes.Length - (18 * cluster), 18 * cluster).SequenceEqual(bytes.AsSpan(bytes.Length - (18 * cluster))));
    }

    /// <summary>Does an operation until it succeeds; a planned fault strikes a few times only.</summary>
    private static void Persist(Operation operation, CowImage image, DiskModel model)
    {
        for (int attempt = 0; ; attempt++)
        {
            try
            {
                operation.RunDoubtfully(image, model);
                return;
            }
            catch (StorageException exception) when (exception.IsOutOfSpace && attempt < 10)
            {
                // As a guest that tries again.
            }
        }
    }

    /// <summary>Runs until the planned error strikes, and shows that nothing changes on disk after it.</summary>
    private static bool FailsForGood(SimulatedDisk disk, PreparedImage prepared, Geometry geometry, DiskModel model, ulong seed)
    {
        CowImage image;
        try
        {
            image = SimulatedImages.Open(disk, prepared);
        }
        catch (StorageException)
        {
            return true;
        }

        using (image)
        {
            bool closing = false;
            try
            {
                foreach (Operation operation in Operation.Random(seed, Steps, geometry))
                    operation.RunDoubtfully(image, model);
                closing = true;
                image.Close();
                return false;
            }
            catch (StorageException exception)
            {
                Assert.Equal(Errno.EIO, exception.Errno);
                if (closing)
                    return true;
            }

            Assert.NotNull(image.Failure);
            UInt128 before = disk.Fingerprint();
            Assert.Throws<StorageException>(image.Sync);
            Assert.Throws<StorageException>(() => image.Write(0, new byte[5000]));
            Assert.Throws<StorageException>(image.Close);
            Assert.Equal(before, disk.Fingerprint());
            return true;
        }
    }

    private static long CallsOf(PreparedImage prepared, Geometry geometry, StorageCalls kinds, ulong seed)
    {
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using CowImage image = SimulatedImages.Open(disk, prepared);
        foreach (Operation operation in Operation.Random(seed, Steps, geometry))
            operation.Run(image, model);
        image.Close();
        return disk.Count(kinds);
    }

    private static void JudgeClean(SimulatedDisk disk, DiskModel model, PreparedImage prepared, string where)
    {
        model.Sync();
        CrashRun.Judge(disk.Crash(CrashChoice.Nothing), model, prepared, where);
        CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
        Assert.True(report.ExitCode == 0, $"{where}: {report.Leaks} leaks {string.Join("; ", report.Findings.Select(f => f.Message))}");
    }
}
