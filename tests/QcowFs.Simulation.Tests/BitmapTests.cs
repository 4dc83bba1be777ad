// Persistent bitmaps while the disk is written: after a proper close exactly the granules that were touched are set, by QEMU's reading;
// after a crash at any instant a bitmap is marked inconsistent, or the disk is as its bits say.
using System.Buffers.Binary;
using System.Text.Json;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class BitmapTests
{
    private static readonly Geometry Small = new("cluster_size=512", 70_144, InitialContent.Bitmaps);

    public static TheoryData<Geometry> Geometries =>
    [
        Small,
        new Geometry("cluster_size=512,refcount_bits=1", 4_500_480, InitialContent.Bitmaps),
        new Geometry("cluster_size=4096", 1_000_448, InitialContent.Bitmaps),
        new Geometry("cluster_size=65536", 1_000_448, InitialContent.Bitmaps),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Bitmaps),
        new Geometry("cluster_size=4096", 1_000_448, InitialContent.Bitmaps, Compress: true),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Exactly_what_was_touched_is_set(Geometry geometry)
    {
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        Dictionary<string, HashSet<long>> expected = SetGranules(disk);
        Assert.Equal(["coarse", "fine", "off"], expected.Keys.Order());
        for (ulong session = 1; session <= 3; session++)
        {
            using CowImage image = SimulatedImages.Open(disk, prepared);
            foreach (Operation operation in Operation.Random(session, 12, geometry))
            {
                operation.Run(image, model);
                if (operation.Kind is not (OperationKind.Sync or OperationKind.Reserve))
                    Touch(expected, disk, operation.Offset, operation.Bytes.Length);
            }

            image.Close();
            AssertSame(expected, SetGranules(disk), $"{geometry} session {session}");
        }

        SimulatedImages.JudgeByQemu(disk, prepared, model.Current.AsSpan(0, geometry.Size), geometry.ToString());
        AssertQemuReads(disk, expected, geometry);
    }

    /// <summary>Whole table entries become all ones and all zeros, and data again.</summary>
    [Fact]
    public void Full_and_empty_parts_take_no_cluster()
    {
        Geometry geometry = new("cluster_size=512", 5_000_192, InitialContent.Bitmaps);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        Dictionary<string, HashSet<long>> expected = SetGranules(disk);
        void Session(long offset, int length)
        {
            using CowImage image = SimulatedImages.Open(disk, prepared);
            image.Discard(offset, length);
            image.Close();
            Touch(expected, disk, offset, length);
            AssertSame(expected, SetGranules(disk), $"discard {offset}+{length}");
            Assert.Equal(0, Check(disk).ExitCode);
        }

        // An entry stands for 512 * 8 granules of 512 bytes: 2 MiB.
        Session(2 << 20, 1000);
        Assert.Equal((0UL, true), (Table(disk, "fine")[2], Table(disk, "fine")[1] > 1));
        Session(0, geometry.Size);
        Assert.Equal([1UL, 1UL], Table(disk, "fine")[..2]);
        Assert.True(Table(disk, "fine")[2] > 1, "bits behind the end are set");
        AssertQemuReads(disk, expected, geometry);
        Session(100, 1);
    }

    [Theory]
    [InlineData("cluster_size=512", 70_144, 3, false)]
    [InlineData("cluster_size=2048", 70_144, 2, true)]
    [InlineData("cluster_size=512,refcount_bits=64", 2_200_064, 1, false)]
    public void A_crash_leaves_no_bitmap_that_is_wrong(string options, int size, int seeds, bool compress)
    {
        Geometry geometry = new(options, size, InitialContent.Bitmaps, compress);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk start = SimulatedImages.DiskOf(prepared);
        Dictionary<string, HashSet<long>> before = SetGranules(start);
        foreach (ulong seed in Seeds.Between(1, (ulong)seeds))
        {
            SimulatedDisk whole = start.Crash(CrashChoice.Everything);
            DiskModel model = new(prepared.Guest);
            byte[] done = Session(whole, prepared, model, geometry, seed);
            Dictionary<string, HashSet<long>> after = SetGranules(whole);
            for (long instant = start.Clock + 1; instant <= whole.Clock; instant++)
            {
                SimulatedDisk disk = start.Crash(CrashChoice.Everything);
                disk.CrashAt(instant);
                model = new DiskModel(prepared.Guest);
                Assert.Throws<SimulatedCrashException>(() => Session(disk, prepared, model, geometry, seed));
                foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(12, seed))
                {
                    string where = $"{geometry} seed {seed} instant {instant} {choice}";
                    CrashRun.Judge(survivor, model, prepared, where);
                    JudgeBitmaps(survivor, prepared, before, after, done, where);
                }
            }
        }
    }

    [Fact]
    public void Disabled_and_inconsistent_bitmaps_are_not_changed()
    {
        PreparedImage prepared = SimulatedImages.Prepare(Small);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
            image.Write(0, [1]); // not closed: "fine" and "coarse" stay marked
        SimulatedDisk crashed = disk.Kill();
        Assert.Equal([BitmapFlags.Auto | BitmapFlags.InUse, BitmapFlags.Auto | BitmapFlags.InUse, BitmapFlags.None], Bitmaps(crashed).Select(b => b.Flags));
        Dictionary<string, HashSet<long>> before = SetGranules(crashed);
        using (CowImage image = SimulatedImages.Open(crashed, prepared))
        {
            image.Write(0, new byte[9000]);
            image.Recover();
            image.Close();
        }

        Assert.Equal([BitmapFlags.Auto | BitmapFlags.InUse, BitmapFlags.Auto | BitmapFlags.InUse, BitmapFlags.None], Bitmaps(crashed).Select(b => b.Flags));
        AssertSame(before, SetGranules(crashed), "inconsistent");
        Assert.Equal(0, Check(crashed).ExitCode);
    }

    [Fact]
    public void A_session_without_a_change_leaves_them_alone()
    {
        PreparedImage prepared = SimulatedImages.Prepare(Small);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            image.Sync();
            image.Close();
        }

        Assert.Equal(prepared.File, disk.Content("image"));
    }

    /// <summary>D3: what would take too much memory is marked, and said.</summary>
    [Fact]
    public void A_bitmap_too_large_for_memory_becomes_inconsistent()
    {
        using TempDirectory folder = new();
        string path = folder["disk.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", path, "300G");
        Qemu.Img("bitmap", "--add", "-g", "512", path, "huge");
        Qemu.Img("bitmap", "--add", path, "usual");
        List<string> log = [];
        using (IDiskImage image = new ImageOpener(HostFileSystem.Instance).Open(path, new OpenOptions { Writable = true, Log = log.Add }))
        {
            image.Write(5L << 30, [1, 2, 3]);
            image.Close();
        }

        Assert.Equal([$"{path}: bitmap \"huge\" becomes inconsistent: its 78643200 bytes are more than the 67108864 that bitmaps may take in memory"], log);
        string[] flags = [.. Qemu.Info(path).GetProperty("format-specific").GetProperty("data").GetProperty("bitmaps").EnumerateArray()
            .Select(b => $"{b.GetProperty("name").GetString()}: {string.Join(' ', b.GetProperty("flags").EnumerateArray())}")];
        Assert.Equal(["huge: in-use auto", "usual: auto"], flags);
        Qemu.CheckClean(path);
        Assert.Equal(["5368709120+65536"], QemuDirtyRanges(path, "usual"));
    }

    [Fact]
    public void Without_space_to_store_it_a_bitmap_stays_inconsistent()
    {
        Geometry geometry = new("cluster_size=512", 4_300_288, InitialContent.Bitmaps);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        List<string> log = [];
        using (CowImage image = SimulatedImages.Open(disk, prepared, log: log.Add))
        {
            image.Write(3_000_000, [1, 2, 3]);
            model.Write(3_000_000, [1, 2, 3]);
            image.Sync();
            disk.Fail(StorageCalls.Write, Errno.ENOSPC, 1, times: 1);
            image.Close();
        }

        string line = Assert.Single(log);
        Assert.StartsWith("image: bitmap \"fine\" becomes inconsistent: ", line, StringComparison.Ordinal);
        Assert.Equal(["fine"], Bitmaps(disk).Where(b => b.Flags.HasFlag(BitmapFlags.InUse)).Select(b => b.NameText));
        model.Sync();
        CrashRun.Judge(disk.Crash(CrashChoice.Nothing), model, prepared, "no space");
        Assert.Equal(0, Check(disk).ExitCode);
    }

    /// <summary>A directory or table that makes no sense: the disk can be written all the same, and no bitmap claims to be right.</summary>
    [Theory]
    [InlineData("table entry in the refcount table", 2)]
    [InlineData("table too short", 2)]
    [InlineData("table in the directory", 2)]
    [InlineData("unknown flag", 0)]
    public void Bitmaps_that_make_no_sense_become_inconsistent(string damage, int left)
    {
        PreparedImage prepared = SimulatedImages.Prepare(Small);
        byte[] bytes = (byte[])prepared.File.Clone();
        Qcow2Header header = Qcow2HeaderReader.Parse(bytes, "image");
        Qcow2Bitmap fine = Bitmaps(SimulatedImages.DiskOf(prepared)).Single(b => b.NameText == "fine");
        switch (damage)
        {
            case "table entry in the refcount table":
                BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan((int)fine.TableOffset), header.RefcountTableOffset);
                break;
            case "table too short":
                BinaryPrimitives.WriteInt32BigEndian(bytes.AsSpan((int)fine.Offset + 8), 2);
                break;
            case "table in the directory":
                BinaryPrimitives.WriteInt64BigEndian(bytes.AsSpan((int)fine.Offset), header.Bitmaps!.DirectoryOffset);
                break;
            default:
                bytes[fine.Offset + Qcow2Bitmap.FlagsAt + 3] |= 8;
                break;
        }

        SimulatedDisk disk = new();
        disk.Create("image", bytes);
        List<string> log = [];
        using (CowImage image = SimulatedImages.Open(disk, prepared, log: log.Add))
        {
            image.Write(0, [1]);
            image.Close();
        }

        Assert.NotEmpty(log);
        header = Qcow2HeaderReader.Read(disk.Open("image"));
        Assert.Equal(left == 0, header.Bitmaps is null);
        if (left > 0)
            Assert.Equal(BitmapFlags.Auto | BitmapFlags.InUse, Bitmaps(disk).Single(b => b.NameText == "fine").Flags);
        byte[] table = new byte[512];
        disk.Open("image").Read(header.RefcountTableOffset, table);
        Assert.True(table.AsSpan().SequenceEqual(prepared.File.AsSpan((int)header.RefcountTableOffset, 512)), "the refcount table was overwritten");
    }

    /// <summary>As in QEMU bits stay where they are, and new ones are clear.</summary>
    [Theory]
    [InlineData("cluster_size=512", 70_144, 40_448)]
    [InlineData("cluster_size=512", 2_200_064, 70_144)]
    [InlineData("cluster_size=512", 2_200_064, 5_000_192)]
    [InlineData("cluster_size=4096", 70_144, 170_496)]
    public void A_resized_disk_keeps_its_bits(string options, int before, int after)
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry(options, before, InitialContent.Bitmaps));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            image.Discard(0, before & -4096); // whole entries of ones, and the bits before the end
            image.Close();
        }

        Dictionary<string, HashSet<long>> expected = SetGranules(disk);
        foreach (Qcow2Bitmap bitmap in Bitmaps(disk))
            expected[bitmap.NameText].RemoveWhere(bit => bit << bitmap.GranularityBits >= after);
        ResizeTests.Resize(disk, prepared, after);
        AssertSame(expected, SetGranules(disk), $"{before} to {after}");
        Assert.DoesNotContain(Bitmaps(disk), b => b.Flags.HasFlag(BitmapFlags.InUse));
        Assert.Equal(0, Check(disk).ExitCode);
        AssertQemuReads(disk, expected, new Geometry(options, after, InitialContent.Bitmaps));
        ResizeTests.Resize(disk, prepared, before);
        AssertSame(expected, SetGranules(disk), "and back");
        Assert.Equal(0, Check(disk).ExitCode);
    }

    [Theory]
    [InlineData(2_200_064, 70_144)]
    [InlineData(70_144, 2_200_064)]
    public void A_crash_in_resizing_leaves_no_bitmap_that_is_wrong(int before, int after)
    {
        Geometry geometry = new("cluster_size=512", before, InitialContent.Bitmaps);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk start = SimulatedImages.DiskOf(prepared);
        Dictionary<string, HashSet<long>> old = SetGranules(start);
        SimulatedDisk whole = start.Crash(CrashChoice.Everything);
        ResizeTests.Resize(whole, prepared, after);
        Dictionary<string, HashSet<long>> done = SetGranules(whole);
        for (long instant = start.Clock + 1; instant <= whole.Clock; instant++)
        {
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            disk.CrashAt(instant);
            Assert.Throws<SimulatedCrashException>(() => ResizeTests.Resize(disk, prepared, after));
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(8, (ulong)instant))
            {
                CheckReport report = Check(survivor);
                Assert.True(report.Corruptions + report.CheckErrors == 0, $"instant {instant} {choice}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
                bool isOld = Qcow2HeaderReader.Read(survivor.Open("image")).VirtualSize == before;
                Dictionary<string, HashSet<long>> found = SetGranules(survivor);
                foreach (Qcow2Bitmap bitmap in Bitmaps(survivor).Where(b => !b.Flags.HasFlag(BitmapFlags.InUse)))
                    Assert.True(found[bitmap.NameText].SetEquals((isOld ? old : done)[bitmap.NameText]), $"instant {instant} {choice}: {bitmap.NameText}");
            }
        }
    }

    /// <summary>As in QEMU: their bits are about the disk as it is.</summary>
    [Fact]
    public void A_snapshot_is_not_applied_over_them()
    {
        PreparedImage prepared = SimulatedImages.Prepare(Small);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        Dictionary<string, HashSet<long>> before = SetGranules(disk);
        new Qcow2SnapshotEdit(Qcow2HeaderReader.Read(disk.Open("image")), disk.Open("image")).Create("one", DateTimeOffset.UnixEpoch);
        AssertSame(before, SetGranules(disk), "created");
        byte[] image = disk.Content("image");
        Assert.Equal(
            "image: snapshot table: the image has 3 persistent bitmaps, which record changes of the disk as it is; remove them first (qemu-img bitmap --remove)",
            Assert.Throws<ImageFormatException>(() => new Qcow2SnapshotEdit(Qcow2HeaderReader.Read(disk.Open("image")), disk.Open("image")).Apply("one")).Message);
        Assert.Equal(image, disk.Content("image"));
        new Qcow2SnapshotEdit(Qcow2HeaderReader.Read(disk.Open("image")), disk.Open("image")).Delete("one");
        AssertSame(before, SetGranules(disk), "deleted");
        Assert.Equal(0, Check(disk).ExitCode);
    }

    private static byte[] Session(SimulatedDisk disk, PreparedImage prepared, DiskModel model, Geometry geometry, ulong seed)
    {
        using CowImage image = SimulatedImages.Open(disk, prepared);
        foreach (Operation operation in Operation.Random(seed, 6, geometry))
            operation.Run(image, model);
        image.Close();
        return Guest(disk, prepared);
    }

    // A bitmap that is not marked says what the disk is: nothing was changed yet, or everything was done.
    private static void JudgeBitmaps(SimulatedDisk disk, PreparedImage prepared, Dictionary<string, HashSet<long>> before, Dictionary<string, HashSet<long>> after, byte[] done, string where)
    {
        byte[] guest = Guest(disk, prepared);
        Dictionary<string, HashSet<long>> found = SetGranules(disk);
        foreach (Qcow2Bitmap bitmap in Bitmaps(disk).Where(b => !b.Flags.HasFlag(BitmapFlags.InUse)))
        {
            HashSet<long> set = found[bitmap.NameText];
            bool untouched = set.SetEquals(before[bitmap.NameText]) && guest.AsSpan().SequenceEqual(prepared.Guest);
            bool complete = set.SetEquals(after[bitmap.NameText]) && guest.AsSpan().SequenceEqual(done);
            bool disabled = !bitmap.Flags.HasFlag(BitmapFlags.Auto) && set.SetEquals(before[bitmap.NameText]);
            Assert.True(untouched || complete || disabled, $"{where}: bitmap {bitmap.NameText} is not marked, and wrong");
        }

        Assert.Equal(3, Bitmaps(disk).Count);
    }

    private static byte[] Guest(SimulatedDisk disk, PreparedImage prepared)
    {
        byte[] guest = new byte[prepared.Guest.Length];
        using CowImage image = SimulatedImages.Open(disk, prepared, writable: false);
        image.Read(0, guest);
        return guest;
    }

    private static CheckReport Check(SimulatedDisk disk) => Qcow2Checker.Check(disk.Open("image", readOnly: true));

    private static IReadOnlyList<Qcow2Bitmap> Bitmaps(SimulatedDisk disk)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(disk.Open("image", readOnly: true));
        return BitmapDirectory.Read(header, disk.Open("image", readOnly: true));
    }

    private static ulong[] Table(SimulatedDisk disk, string name)
    {
        Qcow2Bitmap bitmap = Bitmaps(disk).Single(b => b.NameText == name);
        byte[] image = disk.Content("image");
        return [.. Enumerable.Range(0, (int)bitmap.TableEntries).Select(i => BinaryPrimitives.ReadUInt64BigEndian(image.AsSpan((int)bitmap.TableOffset + i * 8)))];
    }

    // The set bits of every bitmap, decoded byte by byte from the format's description; a bit behind the end fails the test.
    private static Dictionary<string, HashSet<long>> SetGranules(SimulatedDisk disk)
    {
        byte[] image = disk.Content("image");
        Qcow2Header header = Qcow2HeaderReader.Read(disk.Open("image", readOnly: true));
        Dictionary<string, HashSet<long>> all = [];
        foreach (Qcow2Bitmap bitmap in Bitmaps(disk))
        {
            long bits = (header.VirtualSize + (1L << bitmap.GranularityBits) - 1) >> bitmap.GranularityBits;
            HashSet<long> set = [];
            ulong[] table = Table(disk, bitmap.NameText);
            for (long bit = 0; bit < (long)table.Length * header.ClusterSize * 8; bit++)
            {
                ulong entry = table[bit / 8 / header.ClusterSize];
                bool isSet = entry <= 1 ? entry == 1 : (image[(int)entry + (int)(bit / 8 % header.ClusterSize)] >> (int)(bit % 8) & 1) != 0;
                Assert.True(!isSet || bit < bits || entry == 1, $"{bitmap.NameText}: bit {bit} of {bits} is set");
                if (isSet && bit < bits)
                    set.Add(bit);
            }

            all.Add(bitmap.NameText, set);
        }

        return all;
    }

    private static void Touch(Dictionary<string, HashSet<long>> expected, SimulatedDisk disk, long offset, long length)
    {
        foreach (Qcow2Bitmap bitmap in Bitmaps(disk).Where(b => b.Flags.HasFlag(BitmapFlags.Auto)))
        {
            for (long bit = offset >> bitmap.GranularityBits; bit <= (offset + length - 1) >> bitmap.GranularityBits; bit++)
                expected[bitmap.NameText].Add(bit);
        }
    }

    private static void AssertSame(Dictionary<string, HashSet<long>> expected, Dictionary<string, HashSet<long>> found, string where)
    {
        Assert.Equal(expected.Keys.Order(), found.Keys.Order());
        foreach ((string name, HashSet<long> set) in expected)
            Assert.True(set.SetEquals(found[name]), $"{where}, {name}: missing {string.Join(' ', set.Except(found[name]).Take(5))}, too many {string.Join(' ', found[name].Except(set).Take(5))}");
    }

    private static void AssertQemuReads(SimulatedDisk disk, Dictionary<string, HashSet<long>> expected, Geometry geometry)
    {
        using TempDirectory folder = new();
        File.WriteAllBytes(folder["image"], disk.Content("image"));
        foreach (Qcow2Bitmap bitmap in Bitmaps(disk).Where(b => b.Flags.HasFlag(BitmapFlags.Auto)))
        {
            long granule = 1L << bitmap.GranularityBits;
            List<string> ranges = [];
            long start = -1;
            for (long bit = 0; bit <= (geometry.Size + granule - 1) / granule; bit++)
            {
                bool isSet = expected[bitmap.NameText].Contains(bit);
                if (isSet && start < 0)
                    start = bit;
                if (!isSet && start >= 0)
                {
                    ranges.Add($"{start * granule}+{Math.Min(bit * granule, geometry.Size) - start * granule}");
                    start = -1;
                }
            }

            Assert.Equal(ranges, QemuDirtyRanges(folder["image"], bitmap.NameText));
        }
    }

    /// <summary>The dirty ranges of a bitmap as QEMU's network block server tells them.</summary>
    private static List<string> QemuDirtyRanges(string path, string bitmap)
    {
        using TempDirectory folder = new();
        string socket = folder["nbd"];
        Tools.Require("qemu-nbd");
        using ChildProcess server = ChildProcess.Start("qemu-nbd", ["-r", "-f", "qcow2", "-B", bitmap, "-k", socket, "--pid-file", folder["pid"], path]);
        Wait.Until(() => File.Exists(folder["pid"]) || server.HasExited, "qemu-nbd is ready");
        string map = Qemu.Img("map", "--output=json", "--image-opts", $"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}");
        using JsonDocument document = JsonDocument.Parse(map);
        return [.. document.RootElement.EnumerateArray().Where(e => !e.GetProperty("data").GetBoolean())
            .Select(e => $"{e.GetProperty("start").GetInt64()}+{e.GetProperty("length").GetInt64()}")];
    }
}
