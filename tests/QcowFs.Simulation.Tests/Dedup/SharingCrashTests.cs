// After a crash at any instant of deduplicated writes: every byte is one that it may be, no cluster has two mappings while one of them
// carries COPIED (I11), no count is too low (I2); and the next session, whose writes find the same content again, ends with a clean image.
using QcowFs.Images.Engine;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class SharingCrashTests(ITestOutputHelper output)
{
    public static TheoryData<Geometry> Geometries =>
    [
        // An L2 table of 64 entries is one sector, which no crash tears: disks of several tables.
        new Geometry("cluster_size=512", 70_144),
        new Geometry("cluster_size=512,refcount_bits=2", 70_144),
        new Geometry("cluster_size=512,refcount_bits=64", 70_144),
        new Geometry("cluster_size=16384,extended_l2=on", 1_100_288),
        new Geometry("cluster_size=512", 70_144, InitialContent.Backing),
        new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot),
        new Geometry("cluster_size=512", 70_144, InitialContent.Full),
        new Geometry("cluster_size=4096", 400_384, InitialContent.Compressed),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Every_instant_of_short_runs(Geometry geometry)
    {
        long shared = 0;
        foreach (ulong seed in Seeds.Between(1, 2))
        {
            SharingRun run = new(geometry, seed, weakHash: seed % 2 == 0);
            run.EveryInstant(steps: 14, choices: 20);
            shared += run.Shared;
        }

        output.WriteLine($"{geometry}: {shared} blocks shared");
        Assert.True(shared > 0, "nothing was shared");
    }

    /// <summary>With a journal: in its turns, checkpoints and replays, and everything answered is there after a kill.</summary>
    [Theory]
    [InlineData("cluster_size=512", 70_144, InitialContent.Empty)]
    [InlineData("cluster_size=512,refcount_bits=2", 70_144, InitialContent.Backing)]
    [InlineData("cluster_size=512", 70_144, InitialContent.Snapshot)]
    [InlineData("cluster_size=16384,extended_l2=on", 1_100_288, InitialContent.Empty)]
    public void Every_instant_of_short_runs_with_a_journal(string options, int size, InitialContent content)
    {
        long shared = 0;
        foreach (ulong seed in Seeds.Between(1, 1))
        {
            SharingRun run = new(new Geometry(options, size, content), seed, weakHash: content == InitialContent.Backing) { RingBytes = 32 << 10 };
            run.EveryInstant(steps: 12, choices: 12);
            shared += run.Shared;
        }

        Assert.True(shared > 0, "nothing was shared");
    }

    /// <summary>C1: the commit that was to take the owner's flag meets a full host; the next one takes it, before the mapping.</summary>
    [Fact]
    public static void A_commit_that_failed_takes_the_flags_later()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=512", 70_144));
        byte[] same = Pattern.Bytes(1, 0, 512);
        for (int instant = 1; instant <= 8; instant++)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            using CowImage image = SharingImages.Open(disk, prepared);
            image.Write(0, same);
            image.Sync();
            image.Write(50_176, same);
            disk.Fail(StorageCalls.Write, Errno.ENOSPC);
            Assert.Throws<StorageException>(image.Sync);
            disk.CrashAt(disk.Clock + instant);
            try
            {
                image.Sync();
            }
            catch (SimulatedCrashException)
            {
                // The crash that was asked for.
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(24, (ulong)instant))
            {
                string? broken = SharingImages.FindBrokenSharing(survivor.Content("image"));
                Assert.True(broken is null, $"instant {instant} {choice}: {broken}");
            }
        }
    }
}
