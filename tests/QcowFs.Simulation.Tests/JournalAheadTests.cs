// Host space that is written with zeros ahead of its use: never under anyone's data, free after a crash, given back at the end.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class JournalAheadTests
{
    private const int Cluster = 4096;
    private const int Writes = 24;
    private static readonly PreparedImage Prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 8 << 20));
    private ulong _ids;

    /// <summary>A load that syncs often takes ready space, at one sync each; a clean close gives the rest back.</summary>
    [Fact]
    public void What_is_ready_is_used_and_the_rest_is_given_back()
    {
        SimulatedDisk plain = SimulatedImages.DiskOf(Prepared);
        DiskModel model = new(Prepared.Guest);
        Run(plain, model, ahead: false);
        SimulatedDisk disk = SimulatedImages.DiskOf(Prepared);
        model = new DiskModel(Prepared.Guest);
        long before = 0;
        using (CowImage image = Open(disk, ahead: true))
        {
            for (int i = 0; i < Writes; i++)
            {
                before = disk.Count(StorageCalls.Sync);
                WriteAndSync(image, model, i);
                Assert.True(i == 0 || disk.Count(StorageCalls.Sync) == before + 1);
            }

            Assert.True(((Qcow2BlockMap)image.Map).State.Allocator!.ReadyClusters > 0);
            image.Close();
        }

        Assert.Equal(plain.Open("image").Length, disk.Open("image").Length);
        Assert.Equal(plain.UsedSpace, disk.UsedSpace);
        CrashRun.Judge(disk.Crash(CrashChoice.Nothing), model, Prepared, "closed");
        SimulatedImages.JudgeByQemu(disk, Prepared, model.Current, "closed");
    }

    [Fact]
    public void A_crash_at_any_instant_loses_nothing_and_leaks_nothing()
    {
        SimulatedDisk whole = SimulatedImages.DiskOf(Prepared);
        Run(whole, new DiskModel(Prepared.Guest), ahead: true);
        for (long instant = 20; instant <= whole.Clock; instant += 3)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(Prepared);
            DiskModel model = new(Prepared.Guest);
            disk.CrashAt(instant);
            try
            {
                Run(disk, model, ahead: true);
            }
            catch (SimulatedCrashException)
            {
                // The crash that was asked for.
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(6, (ulong)instant))
            {
                string where = $"instant {instant} {choice}";
                CrashRun.Judge(survivor, model, Prepared, where);
                SimulatedDisk next = survivor.Kill();
                using (CowImage image = Open(next, ahead: true))
                {
                    image.Write(0, [1]);
                    if (image.Map.Recovery is LeakCollector collector)
                        image.Recover(commit => collector.Run(commit, windowClusters: 64));
                    image.Close();
                }

                Assert.Equal(0, Qcow2Checker.Check(next.Open("image", readOnly: true)).ExitCode);
            }
        }
    }

    /// <summary>A6: who writes while zeros are on their way gets other space.</summary>
    [Fact]
    public void Space_is_handed_out_when_its_zeros_are_written()
    {
        SimulatedDisk disk = SimulatedImages.DiskOf(Prepared);
        DiskModel model = new(Prepared.Guest);
        using CowImage image = Open(disk, ahead: true);
        WriteAndSync(image, model, Writes);
        int batches = 0;
        bool isWriting = false;
        disk.BeforeCall = call =>
        {
            // Zeros go in large pieces, guest data here in clusters.
            if (call.Kind != StorageCalls.Write || call.Length < 64 << 10 || isWriting || batches == 2)
                return;
            isWriting = true;
            batches++;
            byte[] bytes = Pattern.Bytes((ulong)batches, 0, Cluster);
            model.Write((1000 + batches) * Cluster, bytes);
            image.Write((1000 + batches) * Cluster, bytes);
            isWriting = false;
        };
        for (int i = 0; i < Writes; i++)
            WriteAndSync(image, model, i);
        disk.BeforeCall = null;
        Assert.NotEqual(0, batches);
        model.CheckLive(image);
    }

    private void Run(SimulatedDisk disk, DiskModel model, bool ahead)
    {
        using CowImage image = Open(disk, ahead);
        for (int i = 0; i < Writes; i++)
            WriteAndSync(image, model, i);
        image.Close();
    }

    private CowImage Open(SimulatedDisk disk, bool ahead) => SimulatedImages.Open(
        disk, Prepared, cacheSize: 1 << 20, journal: new JournalOptions { RingBytes = 64 << 10, NewId = () => ++_ids, WritesAhead = ahead });

    private static void WriteAndSync(CowImage image, DiskModel model, int number)
    {
        byte[] bytes = Pattern.Bytes((ulong)number + 1, 0, 512);
        int at = number * 71 % 1000 * Cluster;
        model.Write(at, bytes);
        image.Write(at, bytes);
        long mark = model.Mark;
        image.Sync();
        model.Sync(mark);
    }
}
