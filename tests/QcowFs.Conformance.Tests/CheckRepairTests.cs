// qcowfs check --repair as a user meets it: words, exit codes, JSON, and an image that somebody uses.
using System.Text.Json;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class CheckRepairTests
{
    [SkippableFact]
    public void Leaks_are_mended_and_nothing_is_changed_without_being_asked()
    {
        using Sandbox box = new();
        string image = Written(box);
        box.Patch(image, FirstBlock(box, image) + 1, 2); // the header's count
        string before = box.Hash(image);
        Assert.EndsWith($"{image}: 1 leaked\n16 of 1024 clusters allocated (1.6 %)", box.QcowFs("check", image).Expect(3), StringComparison.Ordinal);
        Assert.Equal(before, box.Hash(image));
        Assert.Equal(
            $"repaired: 0 corrupt, 1 leaked\n{image}: clean\n16 of 1024 clusters allocated (1.6 %)", box.QcowFs("check", "--repair=leaks", image).Expect());
        Assert.StartsWith($"{image}: clean\n", box.QcowFs("check", "--repair=leaks", image).Expect(), StringComparison.Ordinal);
        box.Check(image);
    }

    [SkippableFact]
    public void Corruption_is_mended_only_by_all()
    {
        using Sandbox box = new();
        string image = Written(box);
        box.Patch(image, FirstBlock(box, image) + 1, 0);
        box.Patch(image, 79, 2);
        Assert.StartsWith("corruption: cluster at byte 0: ", box.QcowFs("check", "--repair=leaks", image).Expect(2), StringComparison.Ordinal);
        box.MakeDirectory("m");
        Assert.EndsWith($"run qcowfs check --repair {image}, or mount it without -w", box.QcowFs("mount", "-w", image, "m").ExpectError(), StringComparison.Ordinal);
        JsonElement report = JsonDocument.Parse(box.QcowFs("check", "--repair", "--json", image).Expect()).RootElement;
        Assert.Equal(1, report.GetProperty("corruptions-fixed").GetInt64());
        Assert.Equal(0, report.GetProperty("corruptions").GetInt64());
        box.Check(image);
        box.MountWritable(image);
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void A_dirty_image_is_repaired_by_a_writable_mount_and_only_by_that()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M", "lazy_refcounts=on");
        _ = box.Run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "-c", "sigraise 9", image);
        Assert.Contains("dirty", box.QcowFs("info", image).Expect(), StringComparison.Ordinal);
        string before = box.Hash(image);
        box.MountReadOnly(image);
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(before, box.Hash(image));
        string raw = box.MountWritable(image);
        box.Shell($"cmp -n 1048576 {raw} <(head -c 1048576 /dev/zero | tr '\\0' '\\7')").Expect();
        Assert.Contains("the image was marked dirty; ", box.QcowFs("umount", "m").Expect(), StringComparison.Ordinal);
        Assert.DoesNotContain("dirty", box.QcowFs("info", image).Expect(), StringComparison.Ordinal);
        box.Check(image);
    }

    [SkippableFact]
    public void What_cannot_be_mended_is_reported()
    {
        using Sandbox box = new();
        string image = Written(box);
        box.Patch(image, 0x30000 + 1, 0x40); // the first L1 entry: a reserved bit
        Assert.Contains("(repair: none)\n", box.QcowFs("check", "--repair=all", image).Expect(2), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void An_image_in_use_and_wrong_usage_are_refused()
    {
        using Sandbox box = new();
        string image = Written(box);
        box.MountReadOnly(image);
        box.QcowFs("check", image).Expect();
        Assert.Contains("in use", box.QcowFs("check", "--repair", image).ExpectError(), StringComparison.Ordinal);
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(
            "qcowfs: --repair: \"some\" is not one of its values; use all, leaks", box.QcowFs("check", "--repair=some", image).ExpectError(64));
    }

    private static string Written(Sandbox box)
    {
        string image = box.Make("qcow2", "64M");
        box.Run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", image).Expect();
        return image;
    }

    // Of a small image with clusters of 64 KiB: the table is in cluster 1.
    private static long FirstBlock(Sandbox box, string image)
    {
        byte[] bytes = File.ReadAllBytes($"{box.Path}/{image}");
        return System.Buffers.Binary.BinaryPrimitives.ReadInt64BigEndian(bytes.AsSpan(0x10000));
    }
}
