// Rules of the journal that need a second thread, or a shared cluster, at one certain moment.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class JournalProtocolTests
{
    private const int Block = 4096;
    private static readonly JournalOptions Journal = new() { RingBytes = 256 << 10, NewId = static () => 99 };

    /// <summary>J7: while the record of a removal is not durable, the other owner of the cluster must not write in place: the disk may
    /// still map the cluster twice.</summary>
    [Fact]
    public void Counts_do_not_fall_before_their_record_is_durable()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 500_224));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using CowImage image = SharingImages.Open(disk, prepared, journal: Journal, indexDisk: new SimulatedDisk());
        byte[] same = Pattern.Bytes(1, 0, Block);
        foreach (int block in new[] { 0, 20 })
        {
            model.Write(block * Block, same);
            image.Write(block * Block, same);
        }

        Assert.Equal(1, image.Statistics.Dedup!.Shared);
        image.Sync();
        model.Sync();
        ((Qcow2BlockMap)image.Map).JournalCommit!.Settle(); // nothing is listed any more
        model.Zero(20 * Block, Block);
        image.Discard(20 * Block, Block);
        bool isDone = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Sync || isDone)
                return;
            isDone = true;
            image.Map.Sharing!.Sweep(static () => { }, static () => false);
            byte[] other = Pattern.Bytes(2, 0, 512);
            model.Write(0, other);
            image.Write(0, other);
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(60, 1))
                CrashRun.Judge(survivor, model, prepared, $"before the removal is durable, {choice}", harmlessAllowed: true);
        };
        image.Sync();
        Assert.True(isDone);
    }

    /// <summary>W3: a write that passed the guard is in the file before its commit takes checksums.</summary>
    [Fact]
    public void A_commit_waits_for_a_writer_under_way()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 500_224));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using CowImage image = SimulatedImages.Open(disk, prepared, cacheSize: 1 << 20, journal: Journal);
        byte[] bytes = Pattern.Bytes(1, 0, Block);
        model.Write(0, bytes);
        image.Write(0, bytes);
        long mark = model.Mark;
        byte[] later = Pattern.Bytes(2, 0, 512);
        model.Write(0, later);
        SyncWhileWriting(disk, image, image.QueryExtent(0, Block).Host, () => image.Write(0, later));
        model.Sync(mark);
        foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(60, 1))
            CrashRun.Judge(survivor, model, prepared, $"after the commit, {choice}");
    }

    /// <summary>W3 where so much is new that data is synced and not listed (J8): what is written after that sync is in no list, so it must
    /// not be mapped by the next record as if it were older.</summary>
    [Fact]
    public void A_large_commit_waits_for_a_writer_under_way()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 4 << 20, InitialContent.Backing));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using CowImage image = SimulatedImages.Open(disk, prepared, cacheSize: 1 << 20, journal: Journal);
        byte[] much = Pattern.Bytes(1, 0, 3 << 19);
        model.Write(0, much);
        image.Write(0, much);
        long mark = model.Mark;
        byte[] one = Pattern.Bytes(2, 0, Block);
        model.Write(2 << 20, one);
        long end = disk.Open("image").Length;
        SyncWhileWriting(disk, image, -1, () => image.Write(2 << 20, one));
        model.Sync(mark);
        bool isDone = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Sync || isDone)
                return;
            isDone = true;
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(60, 1))
                CrashRun.Judge(survivor, model, prepared, $"in the next commit, {choice}");
        };
        image.Sync();
        Assert.True(isDone && end > 0);
    }

    /// <summary>J11: a commit that no record holds changes words that intents before it logged; a kill must not lay those over them.</summary>
    [Fact]
    public void A_kill_in_a_commit_too_large_for_a_record_replays_nothing_over_it()
    {
        const int cluster = 16384;
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=16384,extended_l2=on", 9_000_448));
        byte[] small = Pattern.Bytes(1, 0, cluster);
        byte[] large = Pattern.Bytes(2, 0, 512 * cluster);
        for (long instant = long.MaxValue, last = 0; last == 0 || instant <= last; instant++)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            using CowImage image = SimulatedImages.Open(disk, prepared, journal: new JournalOptions { RingBytes = 32 << 10, NewId = static () => 5 });
            model.Write(0, small);
            image.Write(0, small);
            model.Sync(); // in an intent
            bool isRehearsal = last == 0;
            if (isRehearsal)
                instant = disk.Clock;
            else
                disk.CrashAt(instant);
            try
            {
                model.Write(cluster, large);
                image.Write(cluster, large);
            }
            catch (SimulatedCrashException)
            {
                // The crash that was asked for.
            }

            if (isRehearsal)
                last = disk.Clock;
            CrashRun.Judge(disk.Kill(), model, prepared, $"killed at {instant}");
        }
    }

    /// <summary>Holds a write to the file up while another thread syncs, until that is done or has had time to be.</summary>
    /// <param name="disk">The disk.</param>
    /// <param name="image">The image.</param>
    /// <param name="host">Where the write goes; -1: wherever the writer writes first.</param>
    /// <param name="write">Writes.</param>
    private static void SyncWhileWriting(SimulatedDisk disk, CowImage image, long host, Action write)
    {
        using ManualResetEventSlim arrived = new();
        using ManualResetEventSlim mayGo = new();
        Thread writer = new(() => write());
        disk.BeforeCall = call =>
        {
            if (Thread.CurrentThread != writer || call.Kind != StorageCalls.Write || (host >= 0 && call.Offset != host) || arrived.IsSet)
                return;
            arrived.Set();
            mayGo.Wait();
        };
        writer.Start();
        arrived.Wait();
        Thread syncer = new(image.Sync);
        syncer.Start();

        // Whether the sync waits cannot be waited for; given this time, one that does not wait is done.
        syncer.LetGoOn();
        mayGo.Set();
        writer.Join();
        syncer.Join();
        disk.BeforeCall = null;
    }
}
