// The check of add-cow images and its repair.
using QcowFs.Testing;

namespace QcowFs.Images.Tests.AddCow;

public sealed class AddCowCheckTests
{
    private static readonly AddCowBytes Valid = new() { DiskSize = 300_000, ClusterBits = 12, Backing = "base", IsAllocated = c => c % 2 == 0 };

    public static TheoryData<string, Action<byte[]>> Harmless => new()
    {
        { "padding", f => f[4000] = 1 },
        { "padding", f => f[100] = 1 },
        { "padding-bits", f => f[4096 + 9] |= 0x80 },
        { "resize-interrupted", f => f[AddCowBytes.CompatFeaturesAt + 7] = 0x80 },
    };

    [Theory]
    [MemberData(nameof(Harmless))]
    public void What_is_harmless_is_found_opens_and_is_mended(string kind, Action<byte[]> breakIt)
    {
        SimulatedDisk disk = DiskOf(Valid, breakIt);
        CheckReport report = new ImageOpener(disk).Check("overlay");
        Assert.Equal((2, 1L, 1L, kind), (report.ExitCode, report.Corruptions, report.HarmlessCorruptions, report.Findings.Single().Kind));
        new ImageOpener(disk).Open("overlay", new OpenOptions()).Dispose();
        AssertRepaired(disk, Valid.Final());
    }

    [Fact]
    public void Leaks_only_repairs_nothing_here()
    {
        SimulatedDisk disk = DiskOf(Valid, f => f[4000] = 1);
        Assert.Equal(2, new ImageOpener(disk).Repair("overlay", RepairMode.Leaks).ExitCode);
        Assert.Equal(1, disk.Content("overlay")[4000]);
    }

    [Fact]
    public void An_image_file_that_was_cut_is_found_and_the_rest_is_dropped_on_demand()
    {
        AddCowBytes larger = Valid with { DiskSize = 600_000 };
        SimulatedDisk disk = DiskOf(larger, _ => { });
        ImageOpener opener = new(disk);
        CheckReport report = opener.Check("overlay");
        Assert.Equal((2, 0L, "image-short"), (report.ExitCode, report.HarmlessCorruptions, report.Findings.Single().Kind));
        Assert.Throws<ImageFormatException>(() => opener.Open("overlay", new OpenOptions()));
        AssertRepaired(disk, Valid.Final());
        opener.Open("overlay", new OpenOptions()).Dispose();
    }

    [Fact]
    public void A_bitmap_that_was_cut_is_found_and_left_alone()
    {
        SimulatedDisk disk = DiskOf(Valid, _ => { }, cut: 100);
        byte[] before = disk.Content("overlay");
        CheckReport report = new ImageOpener(disk).Repair("overlay", RepairMode.All);
        Assert.Equal((2, 0L, "bitmap-short"), (report.ExitCode, report.CorruptionsFixed, report.Findings.Single().Kind));
        Assert.Equal(before, disk.Content("overlay"));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    [InlineData(-3000)]
    [InlineData(5000)]
    public void A_complete_disk_has_a_full_bitmap(int difference)
    {
        AddCowBytes complete = Valid with { CompatFeatures = 1, IsAllocated = _ => true };
        SimulatedDisk disk = DiskOf(complete with { IsAllocated = c => c != 5 }, _ => { }, cut: -difference);
        CheckReport report = new ImageOpener(disk).Check("overlay");
        Assert.Equal((2, 1L, "bitmap-not-full"), (report.ExitCode, report.HarmlessCorruptions, report.Findings.Single().Kind));
        AssertRepaired(disk, complete.Final());
    }

    [Theory]
    [InlineData("image", "image-unreachable")]
    [InlineData("base", "backing-unreachable")]
    public void What_cannot_be_reached_is_told(string name, string kind)
    {
        SimulatedDisk disk = DiskOf(Valid, _ => { });
        ((IHostFiles)disk).Delete(name);
        CheckReport report = new ImageOpener(disk).Check("overlay");
        Assert.Equal((1, 1L, kind), (report.ExitCode, report.CheckErrors, report.Findings.Single().Kind));
        Assert.Equal("\"" + name + "\": it does not exist", report.Findings.Single().Message);
    }

    [Fact]
    public void What_the_policy_does_not_allow_is_not_reached()
    {
        SimulatedDisk disk = DiskOf(Valid, _ => { });
        CheckReport report = new ImageOpener(disk).Check("overlay", null, ReferencePolicy.None);
        Assert.Equal(["image-unreachable", "backing-unreachable"], report.Findings.Select(f => f.Kind));
        Assert.Equal(1, report.ExitCode);
    }

    [Fact]
    public void The_layout_of_March_2012_is_checked_too()
    {
        SimulatedDisk disk = DiskOf(Valid, _ => { });
        disk = new SimulatedDisk();
        disk.Create("overlay", Valid.March());
        disk.Create("base", 1000);
        disk.Create("image", 300_000);
        CheckReport report = new ImageOpener(disk).Check("overlay");
        Assert.Equal((0, 586L, 293L), (report.ExitCode, report.TotalClusters, report.AllocatedClusters));
        using (SimulatedStorage file = disk.Open("overlay"))
            file.Write(disk.Content("overlay").Length - 1, [0x81]);
        Assert.Equal("padding-bits", new ImageOpener(disk).Check("overlay").Findings.Single().Kind);
        report = new ImageOpener(disk).Repair("overlay", RepairMode.All);
        Assert.Equal((0, 1L), (report.ExitCode, report.CorruptionsFixed));
        Assert.Equal(0x01, disk.DurableContent("overlay")[^1]);
    }

    private static void AssertRepaired(SimulatedDisk disk, byte[] expected)
    {
        CheckReport report = new ImageOpener(disk).Repair("overlay", RepairMode.All);
        Assert.Equal((0, 1L), (report.ExitCode, report.CorruptionsFixed));
        byte[] repaired = disk.DurableContent("overlay");
        Assert.True(repaired.AsSpan().SequenceEqual(expected), $"byte {repaired.AsSpan().CommonPrefixLength(expected)} of {repaired.Length}");
    }

    private static SimulatedDisk DiskOf(AddCowBytes bytes, Action<byte[]> breakIt, int cut = 0)
    {
        byte[] overlay = bytes.Final();
        breakIt(overlay);
        Array.Resize(ref overlay, overlay.Length - cut);
        SimulatedDisk disk = new();
        disk.Create("overlay", overlay);
        disk.Create("base", Pattern.Bytes(1, 0, 200_000));
        disk.Create("image", Pattern.Bytes(2, 0, 300_000));
        return disk;
    }
}
