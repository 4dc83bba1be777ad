// Each structure of an image in turn: its count too low, its count too high, and its cluster named by a guest's entry. Our finding, our
// repair, and QEMU's verdict before and after.
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class Qcow2RuleTests : IDisposable
{
    private const int FreeEntry = 40; // an entry of the active L2 table that names nothing

    private readonly TempDirectory _temp = new();
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    public static TheoryData<string> Structures =>
    [
        "header", "refcount table", "refcount block", "L1 table", "L2 table", "data", "compressed", "snapshot table",
        "snapshot's L1 table", "snapshot's L2 table", "snapshot's data", "bitmap directory", "bitmap table", "bitmap data",
    ];

    [Theory]
    [MemberData(nameof(Structures))]
    public void A_count_that_is_too_low(string structure)
    {
        string path = Made();
        long place = ChangeCount(path, structure, count => count - 1);
        CheckReport report = _opener.Check(path);
        Assert.Contains(report.Findings, f => f.Kind == "refcount-too-low" && f.Offset == place);
        Assert.Equal((2, 2), (report.ExitCode, QemuImg.Check(path).ExitCode));
        AssertRepaired(path, RepairMode.All);
    }

    [Theory]
    [MemberData(nameof(Structures))]
    public void A_count_that_is_too_high(string structure)
    {
        string path = Made();
        long place = ChangeCount(path, structure, count => count + 2);
        CheckReport report = _opener.Check(path);
        CheckFinding leak = Assert.Single(report.Findings, f => f.Kind == "leak");
        Assert.Equal((place, CheckSeverity.Leak), (leak.Offset, leak.Severity));

        // Where the flag of an active entry does not match any more, that is a corruption besides.
        Assert.Equal(QemuImg.Check(path).ExitCode, report.ExitCode);
        AssertRepaired(path, report.ExitCode == 3 ? RepairMode.Leaks : RepairMode.All);
    }

    [Theory]
    [MemberData(nameof(Structures))]
    public void A_cluster_that_a_guests_entry_names_too(string structure)
    {
        if (structure == "header")
            return; // offset 0 says that there is no cluster
        string path = Made();
        byte[] before;
        long place;
        using (Damage hands = new(path))
        {
            place = PlaceOf(hands, structure) & ~0xFFFFL;
            hands.Set(hands.L2At(FreeEntry), (ulong)place | L2Entry.CopiedBit);
            before = File.ReadAllBytes(path);
        }

        CheckReport report = _opener.Check(path);
        Assert.Equal((2, 2), (report.ExitCode, QemuImg.Check(path).ExitCode));
        Assert.Contains(report.Findings, f => f.Offset == place || f.Kind == "refcount-block");
        if (structure is "refcount table" or "refcount block" or "L1 table" or "L2 table" or "snapshot table" or "bitmap directory" or "bitmap table")
            AssertNotWritten(path, before, place);
        AssertRepaired(path, RepairMode.All);
    }

    /// <summary>An L2 table that two of its own entries take for data, with flags that allow writing in place: they go, so QEMU's write through
    /// such an entry goes elsewhere; ours is refused, as every use of a structure for data.</summary>
    [Fact]
    public void A_table_that_its_own_entries_name()
    {
        string path = Made();
        using (Damage hands = new(path))
        {
            ulong table = (ulong)hands.L2At(0) | L2Entry.CopiedBit;
            hands.Set(hands.L2At(FreeEntry), table);
            hands.Set(hands.L2At(FreeEntry + 1), table);
        }

        Assert.Equal((2, 2), (_opener.Check(path).ExitCode, QemuImg.Check(path).ExitCode));
        AssertRepaired(path, RepairMode.All);
        AssertNotWritten(path, File.ReadAllBytes(path), TableAt(path));
        Qemu.Io("qcow2", path, $"write -P 238 {FreeEntry << 16} 128k", $"read -P 238 {FreeEntry << 16} 128k");
        Assert.Equal((0, 0), (_opener.Check(path).ExitCode, QemuImg.Check(path).ExitCode));
    }

    [Fact]
    public void A_compressed_cluster_with_subclusters()
    {
        string path = _temp["extended.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "20M");
        Qemu.Io("qcow2", path, "write -c -P 1 1M 64k");
        using (Damage hands = new(path))
            hands.Set(hands.L2At(16) + 8, 1UL << 40);
        CheckReport report = _opener.Check(path);
        Assert.Contains(report.Findings, f => f.Kind == "subcluster-bitmap");
        Assert.Equal((2, 2), (report.ExitCode, QemuImg.Check(path).ExitCode));
        using IDiskImage image = _opener.Open(path, new OpenOptions());
        Assert.Throws<ImageFormatException>(() => image.Read(1 << 20, new byte[512]));
    }

    [Fact]
    public void Snapshots_with_an_external_data_file()
    {
        string path = _temp["external.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", $"data_file={_temp["data"]}", path, "20M");
        using (Damage hands = new(path))
        {
            long end = (hands.Length + 0xFFFF) & ~0xFFFFL;
            hands.SetLength(end + 0x10000);
            hands.Set(end, (ulong)hands.Header.L1Offset);
            hands.Set32(end + 8, (uint)hands.Header.L1Size);
            hands.Set32(end + 36, 16);
            hands.Set32(Qcow2HeaderLayout.SnapshotCountAt, 1);
            hands.Set(Qcow2HeaderLayout.SnapshotsOffsetAt, (ulong)end);
        }

        CheckReport report = _opener.Check(path);
        Assert.Contains(report.Findings, f => f.Kind == "snapshot-external");
        Assert.Equal(2, report.ExitCode);
    }

    [Theory]
    [InlineData("snapshot's L1 table outside", 0x7FFF0000)]
    [InlineData("bitmap table outside", 0x7FFF0000)]
    public void A_region_outside_the_file(string damage, ulong offset)
    {
        string path = Made();
        using (Damage hands = new(path))
            hands.Set(damage[0] == 's' ? hands.Header.SnapshotsOffset : hands.Header.Bitmaps!.DirectoryOffset, offset);
        CheckReport report = _opener.Check(path);
        Assert.Contains(report.Findings, f => f.Kind == "out-of-range");
        Assert.Equal(2, report.ExitCode);

        // QEMU does not get as far as checking.
        Assert.Contains(QemuImg.Check(path).ExitCode, (int[])[1, 2]);
        Assert.Equal(2, _opener.Repair(path, RepairMode.All).ExitCode);
    }

    private string Made()
    {
        string path = DamagedImage.Make(_temp);

        // The table of the snapshot has an own copy of the first entries, and the bitmap has marks.
        Qemu.Io("qcow2", path, "write -P 9 0 64k");
        using Damage hands = new(path);
        Assert.Equal(0UL, hands.Get(hands.L2At(FreeEntry)));
        return path;
    }

    private static long PlaceOf(Damage hands, string structure)
    {
        Qcow2Header header = hands.Header;
        long Table(long offset) => (long)(hands.Get(offset) & L1Entry.OffsetMask);
        long bitmapTable = (long)hands.Get(header.Bitmaps!.DirectoryOffset);
        long snapshotL1 = (long)hands.Get(header.SnapshotsOffset);
        return structure switch
        {
            "header" => 0,
            "refcount table" => header.RefcountTableOffset,
            "refcount block" => (long)hands.Get(header.RefcountTableOffset),
            "L1 table" => header.L1Offset,
            "L2 table" => Table(header.L1Offset),
            "data" => Table(hands.L2At(20)),
            "compressed" => CompressedDescriptor.Of(new L2Entry(hands.Get(hands.L2At(48))), 16).Offset,
            "snapshot table" => header.SnapshotsOffset,
            "snapshot's L1 table" => snapshotL1,
            "snapshot's L2 table" => Table(snapshotL1),
            "snapshot's data" => Table(Table(snapshotL1)),
            "bitmap directory" => header.Bitmaps!.DirectoryOffset,
            "bitmap table" => bitmapTable,
            _ => Table(bitmapTable),
        };
    }

    private static long ChangeCount(string path, string structure, Func<int, int> change)
    {
        using Damage hands = new(path);
        long place = PlaceOf(hands, structure) & ~0xFFFFL;
        Assert.True(place > 0 || structure == "header");
        long count = hands.CountAt(place >> 16);
        hands.Set16(count, (ushort)change((int)(hands.Get(count) >> 48)));
        return place;
    }

    // The engine does not write where the entry leads.
    private static long TableAt(string path)
    {
        using Damage hands = new(path);
        return hands.L2At(0);
    }

    private void AssertNotWritten(string path, byte[] before, long place)
    {
        try
        {
            using IDiskImage image = _opener.Open(path, new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero });
            Assert.Throws<ImageFormatException>(() => image.Write(FreeEntry << 16, new byte[] { 1, 2, 3 }));
            image.Close();
        }
        catch (ImageFormatException)
        {
            // Or it does not open the image for writing at all.
        }

        Assert.True(File.ReadAllBytes(path).AsSpan((int)place, 512).SequenceEqual(before.AsSpan((int)place, 512)), "the structure was written");
        File.WriteAllBytes(path, before);
    }

    private void AssertRepaired(string path, RepairMode mode)
    {
        CheckReport report = _opener.Repair(path, mode);
        Assert.True(report.ExitCode == 0, string.Join("; ", report.Findings.Select(f => f.Message)));
        (int theirs, _) = QemuImg.Check(path);
        Assert.Equal(0, theirs);
    }
}
