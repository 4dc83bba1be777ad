// Deduplicating what an image holds already: complete, interrupted, crashed at any instant.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class SharingScanTests
{
    private const int Block = 4096;
    private const int Blocks = 40;

    [Fact]
    public void A_scan_shares_what_is_equal_and_a_second_one_finds_nothing()
    {
        (SimulatedDisk disk, DiskModel model, PreparedImage prepared) = Repeating();
        DedupScanResult first = Scan(disk, prepared, _ => true);
        Assert.True(first.Shared > 20 * Block && first.Zeroed > 0 && first.StoppedAt < 0);
        Judge(disk, model, prepared, "scanned");
        DedupScanResult second = Scan(disk, prepared, _ => true);
        Assert.Equal(0, second.Shared + second.Zeroed);
        Judge(disk, model, prepared, "scanned twice");
    }

    [Fact]
    public void An_interrupted_scan_goes_on_where_it_was()
    {
        (SimulatedDisk disk, DiskModel model, PreparedImage prepared) = Repeating();
        DedupScanResult whole = Scan(disk.Kill(), prepared, _ => true);
        DedupScanResult first = Scan(disk, prepared, done => done < 15 * Block);
        Assert.True(first.StoppedAt is > 0 and < Blocks * Block);
        Judge(disk, model, prepared, "interrupted");
        DedupScanResult rest = Scan(disk, prepared, _ => true);
        Assert.True(rest.Looked < whole.Looked, "the second scan began anew");
        Assert.Equal(whole.Shared, first.Shared + rest.Shared);
        Judge(disk, model, prepared, "gone on");
    }

    [Fact]
    public void A_crash_at_any_instant_of_a_scan_changes_no_byte()
    {
        (SimulatedDisk start, DiskModel model, PreparedImage prepared) = Repeating();
        SimulatedDisk whole = start.Crash(CrashChoice.Everything);
        Scan(whole, prepared, _ => true);
        for (long instant = 1; instant <= whole.Clock; instant += 2)
        {
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            disk.CrashAt(instant);
            try
            {
                Scan(disk, prepared, _ => true);
            }
            catch (SimulatedCrashException)
            {
                // The crash that was asked for.
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(8, (ulong)instant))
            {
                string where = $"instant {instant} {choice}";
                CrashRun.Judge(survivor, model, prepared, where, harmlessAllowed: true);
                string? broken = SharingImages.FindBrokenSharing(survivor.Content("image"));
                Assert.True(broken is null, $"{where}: {broken}");
            }

            SimulatedDisk last = disk.Kill();
            using (CowImage image = SharingImages.Open(last, prepared))
            {
                if (image.Map.Recovery is LeakCollector collector)
                    image.Recover(commit => collector.Run(commit, windowClusters: 16));
                image.DeduplicateAll(share: true, _ => true);
                image.Close();
            }

            Judge(last, model, prepared, $"instant {instant}, then scanned");
        }
    }

    [Fact]
    public void Turning_deduplication_off_leaves_a_clean_image()
    {
        (SimulatedDisk disk, DiskModel model, PreparedImage prepared) = Repeating();
        Scan(disk, prepared, _ => true);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            image.Write(0, new byte[] { 1 }); // a session without deduplication takes the mark
            model.Write(0, [1]);
            image.Close();
        }

        model.Sync();
        Assert.True(new ImageDeduplicator(disk).TurnOff("image", new OpenOptions { Format = "qcow2", CommitInterval = TimeSpan.Zero, BackgroundRecovery = false }));
        Assert.DoesNotContain("image.dedup", disk.Names);
        Assert.Equal(AutoclearFeatures.None, Qcow2HeaderReader.Read(disk.Open("image")).AutoclearFeatures);
        Judge(disk, model, prepared, "turned off");
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            for (int i = 0; i < Blocks; i += 2)
            {
                byte[] own = Pattern.Bytes((ulong)i + 100, 0, Block);
                image.Write(i * Block, own);
                model.Write(i * Block, own);
            }

            image.Close();
        }

        model.Sync();
        Judge(disk, model, prepared, "written without");
    }

    [Fact]
    public void The_mark_says_whether_the_index_is_that_of_the_image()
    {
        (SimulatedDisk disk, _, PreparedImage prepared) = Repeating();
        Scan(disk, prepared, _ => true);
        ImageDeduplicator deduplicator = new(disk);
        Assert.Equal(AutoclearFeatures.DedupIndex, Qcow2HeaderReader.Read(disk.Open("image")).AutoclearFeatures);
        DedupStatus status = deduplicator.ReadStatus("image", "qcow2");
        Assert.True(status.IsBound);
        Assert.Equal(SharingImages.CountShared(disk.Content("image")) * (long)Block, status.BytesSaved);
        Assert.True(status.Entries > 0 && status.SharedBlocks > 0);
    }

    private static DedupScanResult Scan(SimulatedDisk disk, PreparedImage prepared, Func<long, bool> goOn)
    {
        using CowImage image = SharingImages.Open(disk, prepared);
        DedupScanResult result = image.DeduplicateAll(share: true, goOn);
        image.Close();
        return result;
    }

    /// <summary>An image written without deduplication, with much that repeats and some zeros that take space.</summary>
    private static (SimulatedDisk Disk, DiskModel Model, PreparedImage Prepared) Repeating()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", Blocks * Block));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using CowImage image = SimulatedImages.Open(disk, prepared);
        for (int i = 0; i < Blocks; i++)
        {
            byte[] content = i % 9 == 0 ? new byte[Block] : Pattern.Bytes((ulong)(i % 7), 0, Block);
            image.Reserve(i * Block, Block);
            image.Write(i * Block, content);
            model.Write(i * Block, content);
        }

        image.Close();
        model.Sync();
        return (disk, model, prepared);
    }

    private static void Judge(SimulatedDisk disk, DiskModel model, PreparedImage prepared, string where)
    {
        CrashRun.Judge(disk.Crash(CrashChoice.Nothing), model, prepared, where);
        SharingModelTests.AssertClean(disk, where);
    }
}
