// qcowfs resize, judged by QEMU.
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class ResizeTests
{
    // VHDX is tried elsewhere: QEMU reads every byte of its holes to compare them.
    [SkippableTheory]
    [InlineData("raw")]
    [InlineData("qcow2")]
    public void Grown_and_shrunk_QEMU_reads_what_it_should(string format)
    {
        using Sandbox box = new();
        string image = box.Make(format, "64M");
        box.Run("qemu-io", "-f", format, "-c", "write -P 7 0 4M", "-c", "write -P 8 60M 4M", image).Expect();
        box.Run("qemu-img", "convert", "-f", format, "-O", "raw", image, "model").Expect();

        Assert.Equal($"{image}: the disk has 10 GiB (10737418240 bytes)", box.QcowFs("resize", "-f", format, image, "10G").Expect());
        Compare(box, image, format, "10G");
        Assert.Equal($"{image}: the disk has 10.5 GiB (11274289152 bytes)", box.QcowFs("resize", "-f", format, image, "+512M").Expect());
        Assert.Equal(
            $"qcowfs: {image}: size: 65536 bytes are less than the disk's 11274289152, and what lies past them would be lost; give --shrink if that is meant",
            box.QcowFs("resize", "-f", format, image, "64k").ExpectError());
        Assert.Equal($"{image}: the disk has 62 MiB (65011712 bytes)",
            box.QcowFs("resize", "-f", format, "--shrink", image, "-11209277440").Expect());
        Compare(box, image, format, "62M");
        box.QcowFs("resize", "-f", format, image, "64M").Expect();
        box.Run("truncate", "-s", "62M", "model").Expect();
        Compare(box, image, format, "64M");
    }

    [SkippableFact]
    public void What_cannot_be_is_refused_in_one_line()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        string before = box.Hash(image);
        Assert.StartsWith("qcowfs: SIZE: \"much\" is not a size; ", box.QcowFs("resize", image, "much").ExpectError(64), StringComparison.Ordinal);
        Assert.StartsWith("qcowfs: SIZE: \"+-1\" is not a size; ", box.QcowFs("resize", image, "+-1").ExpectError(64), StringComparison.Ordinal);
        Assert.StartsWith("qcowfs: [+|-]SIZE: missing; ", box.QcowFs("resize", image).ExpectError(64), StringComparison.Ordinal);
        Assert.Equal($"qcowfs: {image}: size: the disk has only 67108864 bytes; give less", box.QcowFs("resize", "--shrink", image, "-65M").ExpectError());
        Assert.Equal($"qcowfs: {image}: size: a qcow2 disk cannot have 67108865 bytes; give a multiple of 512", box.QcowFs("resize", image, "+1").ExpectError());
        box.MountReadOnly(image);
        Assert.StartsWith($"qcowfs: {image}: ", box.QcowFs("resize", image, "1G").ExpectError(), StringComparison.Ordinal);
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(before, box.Hash(image));
    }

    /// <summary>To cut one does nothing, so nobody may be told that it was done.</summary>
    [SkippableFact]
    public void A_block_device_keeps_its_size()
    {
        using Sandbox box = new();
        Testing.Tools.Require("losetup");
        Testing.Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string device = box.Shell("truncate -s 8M device; losetup --find --show device").Expect();
        foreach (string size in (string[])["4M", "16M"])
        {
            Assert.Equal(
                $"qcowfs: {device}: size: a block device keeps its 8388608 bytes; change its size where it was made",
                box.QcowFs("resize", "-f", "raw", "--shrink", device, size).ExpectError());
        }

        box.Run("mkdir", "m").Expect();
        box.QcowFs("mount", "-w", "--growable", "-f", "raw", device, "m").Expect();
        box.Shell($"! truncate -s 4M m/*.raw 2>error && test $(stat -c %s m/*.raw) = 8388608").Expect();
        box.QcowFs("umount", "m").Expect();
        box.Run("losetup", "-d", device).Expect();
    }

    // The model is grown with zeros to the size that the disk must have.
    private static void Compare(Sandbox box, string image, string format, string size)
    {
        box.Check(image);
        box.Run("truncate", "-s", size, "model").Expect();
        string bytes = $"({new FileInfo(box.Path + "/model").Length} bytes)";
        Assert.Contains(bytes, box.Run("qemu-img", "info", "-f", format, image).Expect(), StringComparison.Ordinal);
        box.Run("qemu-img", "compare", "-f", format, "-F", "raw", image, "model").Expect();
    }
}
