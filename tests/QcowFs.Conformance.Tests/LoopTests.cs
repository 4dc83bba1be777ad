// File systems of the kernel on a loop device over the raw file.
using System.Diagnostics;
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
        box.MakeTree("tree", 96);
        box.Shell("mkdir fs; tar -C tree -cf tree.tar .").Expect();
        string loop = box.Run("losetup", "--find", "--show", $"--direct-io={direct}", raw).Expect();
        box.Shell($"mkfs.{fileSystem} -q {loop}; mount {loop} fs; tar -C fs -xf tree.tar; sync -f fs; diff -r --no-dereference tree fs -x lost+found; umount fs").Expect();
        string fsck = fileSystem == "ext4" ? "e2fsck -fn" : "xfs_repair -n";
        box.Shell($"{fsck} {loop}; losetup -d {loop}").Expect();
        box.UnmountAndCheck(image);
        long full = box.Kilobytes(image);

        raw = box.MountWritable(image);
        loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"{fsck} {loop}; mount {loop} fs; diff -r --no-dereference tree fs -x lost+found; rm -rf fs/*; sync -f fs; fstrim fs; umount fs; {fsck} {loop}; losetup -d {loop}").Expect();
        box.UnmountAndCheck(image);
        Assert.True(box.Kilobytes(image) < full / 2, $"{full} KiB before, {box.Kilobytes(image)} KiB after fstrim");
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

        // A mounted one goes by its last close too, but not by itself.
        box.Shell($"mkfs.ext4 -q -F {raw}; mkdir fs; mount -o loop {raw} fs").Expect();
        loop = box.Run("findmnt", "-n", "-o", "SOURCE", "fs").Expect();
        Assert.Equal($"qcowfs: m: in use by {loop}; end that first, or give --lazy", box.QcowFs("umount", "m").ExpectError());
        box.Run("umount", "fs").Expect();
        box.QcowFs("umount", "m").Expect();
    }

    /// <summary>A loop device that is detached while a program looks at it goes when that closes it, and an unmount waits: but not for
    /// ever.</summary>
    [SkippableFact]
    public void Umount_waits_for_a_loop_device_that_is_on_its_way_out()
    {
        using Sandbox box = new();
        Tools.Require("losetup");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string raw = box.MountWritable(box.Make("raw", "1M"));
        string loop = box.Run("losetup", "--find", "--show", raw).Expect();
        using Process looker = box.Start("bash", "-c", $"exec 3<{loop}; echo open; read wait; sleep 1");
        Assert.Equal("open", looker.StandardOutput.ReadLine());
        box.Run("losetup", "-d", loop).Expect();
        Assert.Equal($"{box.Path}/{raw}", LoopDevice.BackingFileOf(Path.GetFileName(loop)));
        Assert.Equal($"qcowfs: m: in use by {loop}; end that first, or give --lazy", box.QcowFs("umount", "m").ExpectError());
        looker.StandardInput.WriteLine(); // a second from now it closes the device; the unmount has met it by then
        box.QcowFs("umount", "m").Expect();
        looker.WaitForExit();
    }
}
