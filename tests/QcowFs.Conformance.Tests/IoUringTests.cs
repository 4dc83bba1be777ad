// A mount whose requests come over io_uring, as people and the kernel's own file systems use it.
using System.Diagnostics;
using System.Globalization;
using QcowFs.Testing;
using QcowFs.Testing.Host;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class IoUringTests : IClassFixture<IoUringSwitch>
{
    public IoUringTests(IoUringSwitch kernel) => kernel.Require();

    [SkippableFact]
    public void Random_IO_verifies_and_a_tree_on_a_loop_device_survives()
    {
        using Sandbox box = new();
        Tools.Require("fio", "losetup", "mkfs.ext4", "tar", "e2fsck");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string image = box.Make("qcow2", "512M");
        string raw = Mount(box, image);
        foreach (string how in new[] { "--bs=4k --iodepth=32 --fsync=64", "--bsrange=512-256k --iodepth=16 --numjobs=2 --size=48M --offset_increment=48M" })
        {
            box.Shell(
                $"fio --name=v --filename={raw} --rw=randrw --size=96M {how} --direct=1 --ioengine=io_uring --verify=crc32c --verify_fatal=1 "
                + "--randseed=5 --group_reporting > fio.out").Expect();
        }
        box.Shell("mkdir tree fs; tar -C /usr/share/perl -cf tree.tar .; tar -C tree -xf tree.tar").Expect();
        string loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"mkfs.ext4 -q {loop}; mount {loop} fs; tar -C fs -xf tree.tar; sync; diff -r --no-dereference tree fs -x lost+found; umount fs; e2fsck -fn {loop}; losetup -d {loop}").Expect();
        box.UnmountAndCheck(image);
        Assert.Contains(", writable, over io_uring\n", File.ReadAllText(box.Path + "/log"), StringComparison.Ordinal);

        raw = Mount(box, image);
        loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"e2fsck -fn {loop}; mount -o ro {loop} fs; diff -r --no-dereference tree fs -x lost+found; umount fs; losetup -d {loop}").Expect();
        box.UnmountAndCheck(image);
    }

    [SkippableFact]
    public void A_killed_server_loses_nothing_that_was_synced()
    {
        using Sandbox box = new();
        Tools.Require("fio");
        string image = box.Make("qcow2", "128M");
        string raw = Mount(box, image);
        box.Shell($"dd if=/dev/urandom of=front bs=1M count=16 status=none; dd if=front of={raw} bs=1M conv=notrunc,fsync status=none").Expect();
        using Process fio = box.Start(
            "fio", "--name=load", $"--filename={raw}", "--rw=randwrite", "--bs=4k", "--offset=16M", "--size=112M", "--direct=1",
            "--ioengine=libaio", "--iodepth=32", "--fsync=16", "--time_based", "--runtime=600", "--randrepeat=0");
        int server = Assert.Single(box.Servers());
        while (WrittenBytes(server) < 64L << 20) Assert.False(fio.HasExited);
        box.Run("kill", "-KILL", $"{server}").Expect();
        fio.StandardOutput.ReadToEnd();
        fio.WaitForExit();
        Sandbox.WaitForEnd(server);
        box.QcowFs("umount", "m").Expect(1);
        Assert.Contains(box.Run("qemu-img", "check", image).ExitCode, new[] { 0, 3 }); // leaks, never damage
        raw = Mount(box, image);
        box.Run("cmp", "-n", $"{16 << 20}", "front", raw).Expect();
        box.UnmountAndCheck(image);
    }

    /// <summary>All of it on one processor, and so in one queue.</summary>
    [SkippableFact]
    public void Writes_that_wait_for_a_thaw_hold_up_no_read_and_SIGTERM_serves_to_the_last_close()
    {
        using Sandbox box = new();
        Tools.Require("taskset");
        string image = box.Make("qcow2", "64M");
        string raw = Mount(box, image);
        box.Shell($"dd if=/dev/urandom of=data bs=1M count=8 status=none; taskset -c 0 dd if=data of={raw} bs=4k oflag=direct conv=notrunc status=none").Expect(); // quick by now
        box.QcowFs("sync", "--freeze", "m").Expect();
        using Process writer = box.Start("taskset", "-c", "0", "dd", "if=data", $"of={raw}", "bs=1M", "seek=8", "count=8", "oflag=direct", "conv=notrunc", "status=none");
        Wait.Until(() => Directory.EnumerateFiles($"/proc/{writer.Id}", "stack").Any() && IsInFuse(writer.Id), "the write is under way");
        box.Shell($"taskset -c 0 cmp -n 8388608 data {raw}; taskset -c 0 grep -q virtual-size m/.qcowfs/{image}/info.json").Expect();
        Assert.False(writer.HasExited);

        int server = Assert.Single(box.Servers());
        box.Run("kill", "-TERM", $"{server}").Expect(); // thaws, and serves what is open to its end
        writer.WaitForExit();
        Assert.Equal(0, writer.ExitCode);
        Sandbox.WaitForEnd(server);
        raw = box.MountReadOnly(image, "--transport=device");
        box.Shell($"cmp -n 8388608 data {raw}; cmp -n 8388608 -i 0:8388608 data {raw}").Expect();
        box.UnmountAndCheck(image);
    }

    private static bool IsInFuse(int process)
    {
        // nsenter becomes taskset becomes dd: the number stays.
        string path = $"/proc/{process}/stack";
        return File.ReadAllText(path).Contains("fuse_", StringComparison.Ordinal);
    }

    private static string Mount(Sandbox box, string image) => box.MountWritable(image, "--transport=uring", "--log=log");

    private static long WrittenBytes(int process)
    {
        string line = File.ReadLines($"/proc/{process}/io").First(l => l.StartsWith("wchar:", StringComparison.Ordinal));
        return long.Parse(line["wchar:".Length..], CultureInfo.InvariantCulture);
    }
}
