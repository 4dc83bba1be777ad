// Edits of the header's extensions and of the backing name's place: after a crash at any instant the header says all that it said, and
// what was added is there or not.
using QcowFs.Images.Qcow2;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class HeaderEditTests
{
    private const HeaderExtensionType Unknown = (HeaderExtensionType)0x11223344;
    private static readonly FeatureName[] QemusNames = [.. FeatureNameTable.Written.Where(n => n.Bit < 48)];

    /// <summary>A header to be edited.</summary>
    /// <param name="ClusterSize">Bytes.</param>
    /// <param name="NameLength">Bytes of the backing name, which lies behind the extensions without a gap; 0 for none.</param>
    /// <param name="Gap">Bytes between the extensions and the name.</param>
    /// <param name="HasNames">A names table as QEMU writes it.</param>
    /// <param name="IsNamesLast">Nothing stands behind the names table.</param>
    public sealed record Layout(int ClusterSize, int NameLength, int Gap = 0, bool HasNames = true, bool IsNamesLast = true)
    {
        public override string ToString() => $"clusters of {ClusterSize}, name of {NameLength} behind {Gap}, {(HasNames ? IsNamesLast ? "names last" : "names" : "no names")}";
    }

    public static TheoryData<Layout> Layouts =>
    [
        new Layout(512, 20, HasNames: false),
        new Layout(512, 130, HasNames: false),
        new Layout(1024, 300, HasNames: false),
        new Layout(2048, 0),
        new Layout(4096, 20),
        new Layout(4096, 700),
        new Layout(4096, 20, Gap: 16),
        new Layout(4096, 20, Gap: 1000, IsNamesLast: false),
        new Layout(4096, 333, IsNamesLast: false),
        new Layout(65536, 1023),
        new Layout(65536, 1023, HasNames: false),
        new Layout(65536, 0, IsNamesLast: false),
    ];

    [Theory]
    [MemberData(nameof(Layouts))]
    public void A_journals_extension_comes_and_goes_at_every_instant(Layout layout)
    {
        byte[] image = Make(layout);
        JournalArea area = new(64 * layout.ClusterSize, 1 << 20);
        SimulatedDisk whole = DiskOf(image);
        Qcow2Header before = Header(whole);
        Edit(whole, area);
        Qcow2Header after = Header(whole.Crash(CrashChoice.Nothing));
        Assert.Null(after.FindExtension(HeaderExtensionType.Journal));
        Assert.Equal(before.BackingName, after.BackingName);
        Assert.Equal(layout.HasNames ? FeatureNameTable.Written : [], after.FeatureNames);
        bool moved = after.BackingNameOffset != before.BackingNameOffset;
        Assert.Equal(layout.NameLength > 0 && layout.Gap < 1000, moved);
        for (long tick = 1; tick <= whole.Clock; tick++)
        {
            SimulatedDisk disk = DiskOf(image);
            disk.CrashAt(tick);
            Assert.Throws<SimulatedCrashException>(() => Edit(disk, area));
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(40, (ulong)tick))
            {
                Judge(before, Header(survivor), area, $"{layout}, tick {tick}, {choice}");

                // What the crash left is edited again.
                Edit(survivor, area);
                Judge(before, Header(survivor), area, $"{layout}, tick {tick}, {choice}, again");
            }
        }
    }

    /// <summary>QEMU reads the header at every instant.</summary>
    [Fact]
    public void QEMU_reads_what_a_crash_leaves()
    {
        byte[] image = Make(new Layout(4096, 333, IsNamesLast: false));
        SimulatedDisk whole = DiskOf(image);
        Edit(whole, new JournalArea(64 * 4096, 1 << 20));
        using TempDirectory folder = new();
        HashSet<string> seen = [];
        for (long tick = 1; tick <= whole.Clock; tick++)
        {
            SimulatedDisk disk = DiskOf(image);
            disk.CrashAt(tick);
            Assert.Throws<SimulatedCrashException>(() => Edit(disk, new JournalArea(64 * 4096, 1 << 20)));
            byte[] left = disk.Crash(CrashChoice.Everything).Content("image");
            if (!seen.Add(Convert.ToHexString(left)))
                continue;
            File.WriteAllBytes(folder["left.qcow2"], left);
            bool hasJournal = Qcow2HeaderReader.Parse(left, "left").HasJournal;
            (int exitCode, string text) = Info(folder["left.qcow2"]);
            Assert.Equal(hasJournal ? 1 : 0, exitCode);
            Assert.Contains(hasJournal ? "Unsupported qcow2 feature(s): qcowfs journal" : $"backing file: {new string('b', 333)}", text, StringComparison.Ordinal);
        }
    }

    /// <summary>QEMU drops the names when it writes the header; they come again, in the place of what covered them.</summary>
    [Fact]
    public void What_a_crash_left_covered_is_used_up()
    {
        byte[] image = Make(new Layout(4096, 20));
        Qcow2Header before = Qcow2HeaderReader.Parse(image, "image");
        byte[] names = FeatureNameTable.WithPrivateNames(before.FindExtension(HeaderExtensionType.FeatureNames)!.Data)!;
        for (long tick = 1; ; tick++)
        {
            SimulatedDisk again = DiskOf(image);
            using SimulatedStorage crashed = again.Open("image");
            again.CrashAt(tick);
            Assert.Throws<SimulatedCrashException>(() => HeaderExtensionEdit.TryReplace(crashed, HeaderExtensionType.FeatureNames, names));
            SimulatedDisk left = again.Crash(CrashChoice.Everything);
            if (!Header(left).Extensions.Any(e => (uint)e.Type == 0x51464356))
                continue;
            using SimulatedStorage covered = left.Open("image");
            Assert.True(HeaderExtensionEdit.TryReplace(covered, HeaderExtensionType.FeatureNames, [.. names, .. names.AsSpan(0, FeatureNameTable.EntrySize)]));
            Qcow2Header after = Header(left);
            Assert.DoesNotContain(after.Extensions, e => (uint)e.Type == 0x51464356);
            Assert.Equal(before.BackingName, after.BackingName);
            return;
        }
    }

    [Fact]
    public void Where_there_is_no_room_nothing_changes()
    {
        byte[] image = Make(new Layout(512, 330, HasNames: false));
        Qcow2Header header = Qcow2HeaderReader.Parse(image, "image");
        Assert.False(HeaderExtensionEdit.Fits(header, JournalArea.Size));
        Assert.Equal("the header has no room for the journal's extension", JournalHeader.FindObstacle(header));
        SimulatedDisk disk = DiskOf(Make(new Layout(2048, 900)));
        byte[] before = disk.Content("image");
        using SimulatedStorage file = disk.Open("image");
        byte[] names = FeatureNameTable.WithPrivateNames(Header(disk).FindExtension(HeaderExtensionType.FeatureNames)!.Data)!;
        Assert.False(HeaderExtensionEdit.TryReplace(file, HeaderExtensionType.FeatureNames, names));
        Assert.False(HeaderExtensionEdit.TryReplace(file, Unknown, []));
        Assert.Equal(before, disk.Content("image"));
    }

    private static void Edit(SimulatedDisk disk, JournalArea area)
    {
        using SimulatedStorage file = disk.Open("image");
        JournalHeader.Make(file, area);
        JournalHeader.Remove(file);
    }

    private static Qcow2Header Header(SimulatedDisk disk)
    {
        using SimulatedStorage file = disk.Open("image", readOnly: true);
        return Qcow2HeaderReader.Read(file);
    }

    private static void Judge(Qcow2Header before, Qcow2Header now, JournalArea area, string where)
    {
        Assert.True(before.BackingName == now.BackingName && before.BackingFormat == now.BackingFormat, $"{where}: the backing file is {now.BackingName}");
        foreach (HeaderExtension extension in before.Extensions.Where(e => e.Type != HeaderExtensionType.FeatureNames))
            Assert.True(now.FindExtension(extension.Type)?.Data.AsSpan().SequenceEqual(extension.Data), $"{where}: extension {extension.Type} is lost");
        Assert.True(now.FeatureNames.Take(before.FeatureNames.Count).SequenceEqual(before.FeatureNames), $"{where}: names are lost");
        Assert.True(!now.HasJournal || now.Journal == area, $"{where}: the journal's place is {now.Journal}");
        Assert.Equal(before.L1Offset, now.L1Offset);
    }

    private static (int ExitCode, string Text) Info(string path)
    {
        ToolResult result = Qemu.TryImg("info", "-f", "qcow2", path);
        return (result.ExitCode, result.Output + result.Errors);
    }

    private static byte[] Make(Layout layout)
    {
        List<HeaderExtension> extensions = [];
        if (layout.NameLength > 0)
            extensions.Add(new HeaderExtension(HeaderExtensionType.BackingFormat, "raw"u8.ToArray()));
        if (layout.HasNames)
            extensions.Add(new HeaderExtension(HeaderExtensionType.FeatureNames, FeatureNameTable.ToBytes(QemusNames)));
        if (!layout.IsNamesLast)
            extensions.Add(new HeaderExtension(Unknown, Pattern.Bytes(9, 0, 77)));
        Qcow2Header header = new()
        {
            Version = 3,
            ClusterBits = System.Numerics.BitOperations.Log2((uint)layout.ClusterSize),
            VirtualSize = 0,
            L1Size = 0,
            L1Offset = layout.ClusterSize,
            RefcountTableOffset = 2L * layout.ClusterSize,
            RefcountTableClusters = 1,
            HeaderLength = Qcow2HeaderLayout.WrittenLength,
            Extensions = extensions,
            BackingName = layout.NameLength == 0 ? null : new string('b', layout.NameLength),
        };
        byte[] image = new byte[4 * layout.ClusterSize];
        Assert.True(header.TryWriteTo(image.AsSpan(0, layout.ClusterSize)));
        if (layout.Gap > 0)
        {
            int at = header.ExtensionsEnd;
            image.AsSpan(at, layout.NameLength).CopyTo(image.AsSpan(at + layout.Gap));
            image.AsSpan(at, Math.Min(layout.Gap, layout.NameLength)).Clear();
            System.Buffers.Binary.BinaryPrimitives.WriteInt64BigEndian(image.AsSpan(Qcow2HeaderLayout.BackingNameOffsetAt), at + layout.Gap);
        }

        return image;
    }

    private static SimulatedDisk DiskOf(byte[] image)
    {
        SimulatedDisk disk = new();
        disk.Create("image", image);
        return disk;
    }
}
