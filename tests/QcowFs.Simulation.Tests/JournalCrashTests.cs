// The promises of CrashTests, kept with a journal: after a crash at any instant everything synced is there, every other sector is old or
// new, nothing but leaks is found; after a kill everything acknowledged is there. In the ring's turns, checkpoints, replays, the making of
// the journal and its end, and in a second crash after a working spell.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class JournalCrashTests(ITestOutputHelper output)
{
    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 70_144),
        new Geometry("cluster_size=512,refcount_bits=64", 70_144),
        new Geometry("cluster_size=2048", 200_192),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192),
        new Geometry("cluster_size=2048", 70_144, InitialContent.Backing),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Backing),
        new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Snapshot),
        new Geometry("cluster_size=4096", 100_352, InitialContent.Compressed),
        new Geometry("cluster_size=512", 70_144, InitialContent.Full),
        new Geometry("cluster_size=1024", 70_144, InitialContent.ExternalData),
        new Geometry("cluster_size=2048", 100_352, Compress: true),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Every_instant_of_short_runs(Geometry geometry)
    {
        foreach (ulong seed in Seeds.Between(1, 1))
            new CrashRun(geometry, seed) { RingBytes = 32 << 10 }.EveryInstant(steps: 10, choices: 12, output.WriteLine);
    }

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Random_instants_of_long_runs(Geometry geometry)
    {
        foreach (ulong seed in Seeds.Between(100, 101))
            new CrashRun(geometry, seed) { RingBytes = 64 << 10 }.RandomInstants(steps: 150, instants: 6, choices: 12, output.WriteLine);
    }

    /// <summary>What changes while a commit waits for its sync is neither committed by it nor written home by a checkpoint.</summary>
    [Fact]
    public void A_change_during_a_commit_stays_out_of_it()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=2048", 70_144, InitialContent.Backing));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using CowImage image = SimulatedImages.Open(disk, prepared, journal: new JournalOptions { RingBytes = 64 << 10, NewId = static () => 5 });
        byte[] bytes = new byte[2048];
        bytes.AsSpan().Fill(9);
        image.Write(0, bytes);
        image.Sync();
        model.Write(0, bytes);
        image.Write(4096, bytes);
        model.Write(4096, bytes);
        bool written = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Sync || written)
                return;
            written = true;
            model.Write(8192, bytes);
            image.Write(8192, bytes);
        };
        long mark = model.Mark;
        image.Sync();
        model.Sync(mark);
        Assert.True(written);
        foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(40, 1))
            CrashRun.Judge(survivor, model, prepared, $"after the commit, {choice}");
        ((Qcow2BlockMap)image.Map).JournalCommit!.Settle();

        // The checkpoint's syncs made the data durable as well; what counts is that no page of it went home.
        CrashRun.Judge(disk.Crash(CrashChoice.Nothing), model, prepared, "after the checkpoint");
        Qcow2Header header = Qcow2HeaderReader.Read(disk.Open("image"));
        Assert.Equal(ExtentKind.Backing, KindAtHome(disk, prepared, header, 8192));
        Assert.Equal(ExtentKind.Data, KindAtHome(disk, prepared, header, 4096));
    }

    /// <summary>What a block is by the tables in their places alone.</summary>
    private static ExtentKind KindAtHome(SimulatedDisk disk, PreparedImage prepared, Qcow2Header header, long offset)
    {
        SimulatedDisk plain = disk.Crash(CrashChoice.Nothing);
        Assert.True(header.HasJournal);
        JournalHeader.Remove(plain.Open("image"));
        using CowImage image = SimulatedImages.Open(plain, prepared, writable: false);
        return image.Map.Lookup(offset, 1).Kind;
    }
}
