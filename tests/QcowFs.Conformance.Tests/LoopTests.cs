// File systems of the kernel on a loop device over the raw file.
using System.Globalization;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class LoopTests
{
    [SkippableTheory]
    [InlineData("raw", "ext4", "", "on")]
    [InlineData("qcow2", "ext4", "", "on")]
    [InlineData("qcow2", "ext4", "", "off")]
    [InlineData("qcow2", "xfs", "", "on")]
    [InlineData("qcow2", "ext4", "--cache=none", "on")]
    [InlineData("vhdx", "ext4", "", "on")]
    public void A_tree_unpacked_through_a_loop_device_survives(string format, string fileSystem, string option, string direct)
    {
        using Sandbox box = new();
        Tools.Require("losetup", $"mkfs.{fileSystem}", "fstrim", "tar", "xfs_repair", "e2fsck");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string image = box.Make(format, "1G");
        string raw = box.MountWritable(image, option.Length > 0 ? [option] : []);
        box.Shell("tar -C /usr/share -cf tree.tar doc perl 2>/dev/null || tar -C /usr/share -cf tree.tar doc").Expect();
        box.Shell("mkdir tree fs; tar -C tree -xf tree.tar").Expect();
        string loop = box.Run("losetup", "--find", "--show", $"--direct-io={direct}", raw).Expect();
        box.Shell($"mkfs.{fileSystem} -q {loop}; mount {loop} fs; tar -C fs -xf tree.tar; sync; diff -r --no-dereference tree fs -x lost+found; umount fs").Expect();
        string fsck = fileSystem == "ext4" ? "e2fsck -fn" : "xfs_repair -n";
        box.Shell($"{fsck} {loop}; losetup -d {loop}").Expect();
        box.UnmountAndCheck(image);
        long full = Kilobytes(image);

        raw = box.MountWritable(image);
        loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"{fsck} {loop}; mount {loop} fs; diff -r --no-dereference tree fs -x lost+found; rm -rf fs/*; sync; fstrim fs; umount fs; {fsck} {loop}; losetup -d {loop}").Expect();
        box.UnmountAndCheck(image);
        Assert.True(Kilobytes(image) < full / 2, $"{full} KiB before, {Kilobytes(image)} KiB after fstrim");

        long Kilobytes(string file) => long.Parse(box.Shell($"du -k {file} | cut -f1").Expect(), CultureInfo.InvariantCulture);
    }

    [SkippableFact]
    public void Umount_names_the_loop_device_that_holds_the_mount()
    {
        using Sandbox box = new();
        Tools.Require("losetup");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string image = box.Make("raw", "1M");
        string raw = box.MountWritable(image);
        string loop = box.Run("losetup", "--find", "--show", raw).Expect();
        Assert.Equal($"qcowfs: m: in use by {loop}; end that first, or give --lazy", box.QcowFs("umount", "m").ExpectError());
        box.Run("losetup", "-d", loop).Expect();
        box.QcowFs("umount", "m").Expect();
    }
}
