// The repair of damaged images: what is left by our check and by qemu-img's, the guest's data kept where it was there, nothing
// touched that cannot be understood, and a second repair with nothing to do.
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class Qcow2RepairTests : IDisposable
{
    private readonly TempDirectory _temp = new();

    public void Dispose() => _temp.Dispose();

    [Fact]
    public void Leaks_are_given_back_and_nothing_else_changes()
    {
        string path = DamagedImage.Make(_temp);
        using (Damage hands = new(path))
        {
            DamagedImage.Apply(hands, "count too high");
            DamagedImage.Apply(hands, "leak");
        }

        string raw = Convert(path)!;
        CheckReport report = Repair(path, RepairMode.Leaks);
        Assert.Equal((0, 0, 2), (report.ExitCode, report.CorruptionsFixed, report.LeaksFixed));
        Assert.Equal(0, QemuImg.Check(path).ExitCode);
        Assert.Equal(0, Qemu.TryImg("compare", "-f", "qcow2", "-F", "raw", path, raw).ExitCode);
        AssertIdempotent(path, RepairMode.Leaks);
    }

    // A count of 2 with one reference needs the COPIED flag too, else a leak would turn into a corruption.
    [Fact]
    public void A_lowered_count_gets_its_COPIED_flag()
    {
        string path = DamagedImage.Make(_temp);
        using (Damage hands = new(path))
        {
            ulong entry = hands.Get(hands.L2At(20));
            hands.Set16(hands.CountAt((long)(entry & L2Entry.OffsetMask) >> 16), 2);
            hands.Set(hands.L2At(20), entry & ~L2Entry.CopiedBit);
        }

        Assert.Equal(3, Check(path).ExitCode);
        Assert.Equal(0, Repair(path, RepairMode.Leaks).ExitCode);
        Assert.Equal(0, QemuImg.Check(path).ExitCode);
    }

    [Fact]
    public void Leaks_only_leaves_corruption_alone()
    {
        string path = DamagedImage.Make(_temp);
        using (Damage hands = new(path))
        {
            DamagedImage.Apply(hands, "leak");
            DamagedImage.Apply(hands, "count too low");
        }

        CheckReport report = Repair(path, RepairMode.Leaks);
        Assert.Equal((2, 0, 1), (report.ExitCode, report.CorruptionsFixed, report.LeaksFixed));
        Assert.Contains(report.Findings, f => f.Kind == "refcount-too-low");
    }

    // What a table that cannot be read refers to is unknown: it may be what seems to be leaked.
    [Theory]
    [InlineData(RepairMode.Leaks)]
    [InlineData(RepairMode.All)]
    public void Where_references_are_unknown_no_count_is_lowered(RepairMode mode)
    {
        string path = DamagedImage.Make(_temp);
        using (Damage hands = new(path))
            DamagedImage.Apply(hands, "l1 misaligned");
        Dictionary<long, ulong> before = Counts(path);
        CheckReport report = Repair(path, mode);
        Assert.Equal(2, report.ExitCode);
        Assert.Equal(0, report.LeaksFixed);
        foreach ((long cluster, ulong count) in Counts(path))
            Assert.True(count >= before[cluster]);
    }

    public static TheoryData<string, int> Damages => new()
    {
        { "leak", 0 },
        { "count too high", 0 },
        { "count too low", 0 },
        { "count zero", 0 },
        { "header count", 0 },
        { "copied missing", 0 },
        { "copied wrong", 0 },
        { "l1 copied missing", 0 },
        { "l1 reserved", 2 },
        { "l1 misaligned", 2 },
        { "l1 out of range", 2 },
        { "l1 flag only", 2 },
        { "l1 names header", 2 },
        { "l2 reserved", 2 },
        { "l2 misaligned", 2 },
        { "l2 zero misaligned", 0 },
        { "l2 out of range", 2 },
        { "l2 twice", 0 },
        { "l2 names refcount block", 0 },
        { "compressed copied", 0 },
        { "compressed out of range", 2 },
        { "refcount table reserved", 0 },
        { "refcount table misaligned", 0 },
        { "refcount table out of range", 0 },
        { "refcount block twice", 0 },
        { "no refcount block", 0 },
        { "snapshot l1 misaligned", 2 },
        { "snapshot l1 too large", 2 },
        { "snapshot extra", 0 },
        { "bitmap entry", 1 },
    };

    [Theory]
    [MemberData(nameof(Damages))]
    public void What_can_be_mended_is_and_the_guest_reads_what_it_read(string damage, int exitCode)
    {
        string path = DamagedImage.Make(_temp);
        using (Damage hands = new(path))
        {
            DamagedImage.Apply(hands, damage);
            hands.Set(Qcow2HeaderLayout.IncompatibleFeaturesAt, (ulong)IncompatibleFeatures.Corrupt);
        }

        string? raw = Convert(path);
        CheckReport found = Check(path);
        CheckReport report = Repair(path, RepairMode.All);
        string left = string.Join("; ", report.Findings.Select(f => $"{f.Kind} {f.Message}"));
        Assert.True(exitCode == report.ExitCode, left);
        Assert.Equal(exitCode, QemuImg.Check(path).ExitCode);
        Assert.Equal(found.Corruptions - report.Corruptions, report.CorruptionsFixed);
        using (Damage hands = new(path))
            Assert.Equal(exitCode != 0, hands.Header.IsCorrupt);
        if (raw is not null)
            Assert.Equal(0, Qemu.TryImg("compare", "-f", "qcow2", "-F", "raw", path, raw).ExitCode);
        AssertIdempotent(path, RepairMode.All);
    }

    [Theory]
    [InlineData("cluster_size=512,refcount_bits=1")]
    [InlineData("cluster_size=512,refcount_bits=64")]
    [InlineData("cluster_size=4k,refcount_bits=2")]
    [InlineData("cluster_size=1k,refcount_bits=32,compat=1.1,lazy_refcounts=on")]
    [InlineData("compat=0.10,cluster_size=512")]
    [InlineData("cluster_size=16k,extended_l2=on")]
    public void Refcount_structures_are_rebuilt_in_every_geometry(string options)
    {
        string path = _temp["rebuilt.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", options, path, "8M");
        Qemu.Io("qcow2", path, "write -P 1 100k 3M", "write -P 2 7M 11k");
        string raw = Convert(path)!;
        foreach (int window in (int[])[ReferenceCounter.DefaultWindow, 1, 100, 5000])
        {
            using (Damage hands = new(path))
            {
                for (int i = 0; i < 3; i++)
                    hands.Set(hands.Header.RefcountTableOffset + i * 8L, 0);
            }

            Assert.Equal(2, Check(path).ExitCode);
            CheckReport report = Repair(path, RepairMode.All, window);
            Assert.Equal(0, report.ExitCode);
            Assert.Equal(0, QemuImg.Check(path).ExitCode);
            Assert.Equal(0, Qemu.TryImg("compare", "-f", "qcow2", "-F", "raw", path, raw).ExitCode);
        }
    }

    // Many L2 tables make the counts of one window come from many batches of work; a small window must mend what a large one does.
    [Theory]
    [InlineData(1)]
    [InlineData(7)]
    [InlineData(64)]
    public void Small_windows_mend_what_one_window_mends(int window)
    {
        string path = DamagedImage.Make(_temp);
        using (Damage hands = new(path))
        {
            foreach (string damage in (string[])["count too low", "count too high", "copied missing", "l2 zero misaligned", "compressed copied"])
                DamagedImage.Apply(hands, damage);
        }

        Assert.Equal(0, Repair(path, RepairMode.All, window).ExitCode);
        Assert.Equal(0, QemuImg.Check(path).ExitCode);
    }

    // Rebuilding would put new structures where the entry points to.
    [Fact]
    public void Nothing_is_put_where_a_truncated_image_points_to()
    {
        string path = DamagedImage.Make(_temp);
        using (Damage hands = new(path))
        {
            DamagedImage.Apply(hands, "no refcount block");
            DamagedImage.Apply(hands, "l2 out of range");
        }

        byte[] before = File.ReadAllBytes(path);
        CheckReport report = Repair(path, RepairMode.All);
        Assert.Equal(2, report.ExitCode);
        Assert.Equal(before, File.ReadAllBytes(path));

        // No finding promises what was not done.
        Assert.All(report.Findings, f => Assert.StartsWith("none", f.Repair, StringComparison.Ordinal));
        Assert.Contains(report.Findings, f => f.Kind == "refcount-too-low" && f.Repair == RepairText.NoRebuildOutside);
    }

    // An entry without its disk's size means the size that the disk has now.
    [Fact]
    public void An_incomplete_snapshot_entry_is_completed()
    {
        string path = DamagedImage.Make(_temp);
        using (Damage hands = new(path))
            DamagedImage.Apply(hands, "snapshot extra");
        CheckReport found = Check(path);
        Assert.Equal((2, RepairText.CompleteSnapshot), (found.ExitCode, Assert.Single(found.Findings).Repair));
        Assert.Equal(2, Repair(path, RepairMode.Leaks).ExitCode);
        Assert.Equal(0, Repair(path, RepairMode.All).ExitCode);
        Assert.Equal(0, QemuImg.Check(path).ExitCode);
        using FileStorage file = HostFiles.Open(path, StorageAccess.Read);
        Qcow2Snapshot snapshot = Assert.Single(Qcow2SnapshotTable.Read(Qcow2HeaderReader.Read(file), file).Snapshots);
        Assert.Equal((1UL << 30, 0UL, 24), (snapshot.VirtualSize, snapshot.VmStateSize, snapshot.Extra.Length));
        AssertIdempotent(path, RepairMode.All);
    }

    [Theory]
    [InlineData(RepairMode.Leaks)]
    [InlineData(RepairMode.All)]
    public void Space_at_the_end_that_nothing_uses_is_cut_off(RepairMode mode)
    {
        string path = DamagedImage.Make(_temp);
        long end = Check(path).ImageEndOffset!.Value;
        string raw = Convert(path)!;
        using (FileStream stream = new(path, FileMode.Open))
            stream.SetLength(end + 3_000_000);
        Assert.Equal(0, Repair(path, mode).ExitCode);
        Assert.Equal(end, new FileInfo(path).Length);
        Assert.Equal(0, QemuImg.Check(path).ExitCode);
        Assert.Equal(0, Qemu.TryImg("compare", "-f", "qcow2", "-F", "raw", path, raw).ExitCode);

        // Where references are unknown, what looks unused may be somebody's.
        using (Damage hands = new(path))
            DamagedImage.Apply(hands, "l1 misaligned");
        using (FileStream stream = new(path, FileMode.Open))
            stream.SetLength(end + 3_000_000);
        Assert.Equal(2, Repair(path, mode).ExitCode);
        Assert.Equal(end + 3_000_000, new FileInfo(path).Length);
    }

    // With counts of one bit two references cannot be told; both would be written in place if the flag were set.
    [Fact]
    public void A_count_that_does_not_fit_is_left_and_reported()
    {
        string path = _temp["narrow.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", path, "1M");
        Qemu.Io("qcow2", path, "write -P 1 0 128k");
        using (Damage hands = new(path))
            hands.Set(hands.L2At(5), hands.Get(hands.L2At(0)) & ~L2Entry.CopiedBit);
        CheckReport report = Repair(path, RepairMode.All);
        Assert.Equal(2, report.ExitCode);
        Assert.Contains(report.Findings, f => f.Kind == "refcount-too-low");
        using (Damage hands = new(path))
            Assert.Equal(0UL, hands.Get(hands.L2At(5)) & L2Entry.CopiedBit);
    }

    // A cluster that is an L2 table to one and data to another: its bytes are nobody's to change.
    [Fact]
    public void Data_that_an_L1_entry_takes_for_a_table_is_not_changed()
    {
        string path = DamagedImage.Make(_temp);
        byte[] data = new byte[65536];
        long at;
        using (Damage hands = new(path))
        {
            // Looks like misaligned zero clusters and flags that are wrong.
            for (int i = 0; i < data.Length; i += 8)
                new L2Entry(L2Entry.ZeroBit | 0x10200).WriteTo(data.AsSpan(i));
            at = (long)(hands.Get(hands.L2At(20)) & L2Entry.OffsetMask);
            hands.Write(at, data);
            hands.Set(hands.L1At(1), (ulong)at | L1Entry.CopiedBit);
        }

        _ = Repair(path, RepairMode.All);
        Assert.Equal(data, File.ReadAllBytes(path).AsSpan((int)at, data.Length));
    }

    [Fact]
    public void A_zero_cluster_with_subclusters_keeps_its_bitmap()
    {
        string path = _temp["extended.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "20M");
        Qemu.Io("qcow2", path, "write -P 1 1M 1M");
        using (Damage hands = new(path))
        {
            hands.Set(hands.L2At(200), hands.Get(hands.L2At(16)) + 512);
            hands.Set(hands.L2At(200) + 8, 0x00FF_0000_0000_0000);
        }

        Assert.Equal(0, Repair(path, RepairMode.All).ExitCode);
        Assert.Equal(0, QemuImg.Check(path).ExitCode);
        using (Damage hands = new(path))
            Assert.Equal((0UL, 0x00FF_0000_0000_0000UL), (hands.Get(hands.L2At(200)), hands.Get(hands.L2At(200) + 8)));
    }

    // QEMU puts counts off and dies.
    [Theory]
    [InlineData("")]
    [InlineData(",cluster_size=512")]
    [InlineData(",extended_l2=on")]
    public void An_image_that_qemu_left_dirty_is_repaired_when_it_is_opened_for_writing(string options)
    {
        string path = DirtyByQemu(options);
        byte[] before = File.ReadAllBytes(path);
        ImageOpener opener = new(HostFileSystem.Instance);
        byte[] expected = new byte[8 << 20];
        using (IDiskImage disk = opener.Open(path, new OpenOptions()))
            disk.Read(0, expected);
        Assert.Equal(before, File.ReadAllBytes(path));

        List<string> log = [];
        using (IDiskImage disk = opener.Open(path, new OpenOptions { Writable = true, Log = log.Add }))
        {
            Assert.StartsWith("the image was marked dirty; ", disk.Info.Recovery, StringComparison.Ordinal);
            Assert.Equal($"{path}: {disk.Info.Recovery}", log[0]);
            byte[] data = new byte[8 << 20];
            disk.Read(0, data);
            Assert.Equal(expected, data);
            Assert.Equal(1, data[1 << 20]);
            disk.Write(5 << 20, expected.AsSpan(1 << 20, 300_000));
            disk.Close();
        }

        Qemu.CheckClean(path);
        Assert.Equal(3, Qemu.Io("qcow2", path, "read -P 1 1M 2M", "read -P 1 5M 300000", "read -P 0 4M 1M").Split("read ").Length - 1);
        using (Damage hands = new(path))
            Assert.False(hands.Header.IsDirty);
    }

    [Fact]
    public void A_dirty_image_with_damage_stays_dirty_and_is_not_opened_for_writing()
    {
        string path = DirtyByQemu("");
        using (Damage hands = new(path))
            hands.Set(hands.L1At(0), hands.Get(hands.L1At(0)) | 1UL << 60);
        ImageOpener opener = new(HostFileSystem.Instance);
        ImageFormatException refusal =
            Assert.Throws<ImageFormatException>(() => opener.Open(path, new OpenOptions { Writable = true }).Dispose());
        Assert.Contains("marked dirty", refusal.Problem, StringComparison.Ordinal);
        using (Damage hands = new(path))
            Assert.True(hands.Header.IsDirty);
    }

    private string DirtyByQemu(string options)
    {
        string path = _temp["dirty.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", $"lazy_refcounts=on{options}", path, "8M");
        Assert.NotEqual(0, Qemu.TryIo(["-f", "qcow2"], path, "write -P 1 1M 2M", "sigraise 9").ExitCode);
        Assert.Equal(2, QemuImg.Check(path).ExitCode);
        using (Damage hands = new(path))
            Assert.True(hands.Header.IsDirty);
        return path;
    }

    [Fact]
    public void An_undamaged_image_is_not_written()
    {
        string path = DamagedImage.Make(_temp);
        byte[] before = File.ReadAllBytes(path);
        Assert.Equal(0, Repair(path, RepairMode.All).ExitCode);
        Assert.Equal(before, File.ReadAllBytes(path));
    }

    private static CheckReport Repair(string path, RepairMode mode, int window = ReferenceCounter.DefaultWindow)
    {
        using FileStorage file = HostFiles.Open(path, StorageAccess.Write);
        return Qcow2Repair.Run(file, mode, window);
    }

    private static CheckReport Check(string path)
    {
        using FileStorage file = HostFiles.Open(path, StorageAccess.Read);
        return Qcow2Checker.Check(file);
    }

    private static Dictionary<long, ulong> Counts(string path)
    {
        using FileStorage file = HostFiles.Open(path, StorageAccess.Read);
        RefcountTable table = new(Qcow2HeaderReader.Read(file), file);
        return Enumerable.Range(0, (int)(file.Length >> 16)).ToDictionary(c => (long)c, c => table[c]);
    }

    private static void AssertIdempotent(string path, RepairMode mode)
    {
        byte[] before = File.ReadAllBytes(path);
        _ = Repair(path, mode);
        Assert.Equal(before, File.ReadAllBytes(path));
    }

    // What the guest reads, or null where QEMU cannot read all of it.
    private string? Convert(string path)
    {
        string raw = _temp[$"{Path.GetFileName(path)}.raw"];
        return Qemu.TryImg("convert", "-f", "qcow2", "-O", "raw", path, raw).ExitCode == 0 ? raw : null;
    }
}
