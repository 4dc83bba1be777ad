// What "durable" and "full" mean on a mount: the device's sync precedes the reply, and a host without space or with a bad disk.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class DurabilityTests
{
    [SkippableTheory]
    [InlineData("O_DSYNC", "dd if=/dev/zero of={0} bs=4k count=1 seek=3 oflag=dsync conv=notrunc status=none")]
    [InlineData("O_SYNC", "xfs_io -s -c 'pwrite -q 8192 4096' {0}")]
    [InlineData("RWF_DSYNC", "xfs_io -c 'pwrite -q -V 1 -D 8192 4096' {0}")]
    [InlineData("fsync", "xfs_io -c 'pwrite -q 8192 4096' -c fsync {0}")]
    [InlineData("fdatasync", "xfs_io -c 'pwrite -q 8192 4096' -c fdatasync {0}")]
    public void The_devices_sync_precedes_the_reply(string what, string command)
    {
        foreach (string format in new[] { "raw", "qcow2" })
        {
            using Sandbox box = new();
            Tools.Require("xfs_io");
            string image = box.Make(format, "64M");
            string raw = box.MountWritable(image);
            using ServerTrace trace = new(box, "fdatasync,fsync,pwrite64,pwritev,write,writev");
            box.Shell(string.Format(null, command, raw)).Expect();
            string[] lines = trace.End();
            Assert.True(SyncPrecedesAnAnswer(lines, image), $"{what}, {format}:\n{string.Join('\n', lines)}");
            box.UnmountAndCheck(image);
        }
    }

    [SkippableFact]
    public void A_full_host_gives_ENOSPC_and_goes_on_when_space_is_freed()
    {
        using Sandbox box = new();
        box.Shell("mkdir small; mount -t tmpfs -o size=24M none small; dd if=/dev/zero of=small/ballast bs=1M count=12 status=none").Expect();
        box.Shell("qemu-img create -q -f qcow2 small/disk.qcow2 64M; mkdir m").Expect();
        box.QcowFs("mount", "-w", "small/disk.qcow2", "m").Expect();
        const string raw = "m/disk.qcow2.raw";
        box.Shell($"dd if=/dev/urandom of=first bs=1M count=4 status=none; dd if=first of={raw} bs=1M conv=notrunc,fsync status=none").Expect();
        Outcome full = box.Run("dd", "if=/dev/urandom", $"of={raw}", "bs=1M", "seek=8", "count=40", "conv=notrunc");
        Assert.Contains("No space left on device", full.Errors, StringComparison.Ordinal);
        box.Run("cmp", "-n", $"{4 << 20}", "first", raw).Expect();
        box.Run("rm", "small/ballast").Expect();
        box.Shell($"dd if=first of={raw} bs=1M seek=50 conv=notrunc,fsync status=none").Expect();
        box.Shell($"cmp -n 4194304 first {raw}; cmp -n 4194304 first <(tail -c +52428801 {raw})").Expect();
        Assert.Contains("closed and durable", box.QcowFs("umount", "m").Expect(), StringComparison.Ordinal);
        box.Run("qemu-img", "check", "-q", "small/disk.qcow2").Expect();
        box.Run("umount", "small").Expect();
    }

    [SkippableFact]
    public void A_bad_host_disk_gives_EIO_is_latched_and_told_by_umount()
    {
        using Sandbox box = new();
        Tools.Require("losetup", "mkfs.ext4");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        // The image lies on a file system whose device loses its upper half: writes there fail.
        string loop = box.Shell("truncate -s 256M device; losetup --find --show device").Expect();
        box.Shell($"mkfs.ext4 -q -O ^has_journal {loop}; mkdir host m; mount {loop} host; qemu-img create -q -f qcow2 -o preallocation=falloc host/disk.qcow2 160M; sync -f host").Expect();
        box.QcowFs("mount", "-w", "host/disk.qcow2", "m").Expect();
        const string raw = "m/disk.qcow2.raw";
        box.Shell($"dd if=/dev/urandom of={raw} bs=1M count=4 conv=notrunc,fsync status=none").Expect();
        box.Shell($"truncate -s 32M device; losetup -c {loop}").Expect();
        Outcome broken = box.Run("dd", "if=/dev/urandom", $"of={raw}", "bs=1M", "seek=8", "count=140", "conv=notrunc,fsync");
        Assert.Contains("Input/output error", broken.Errors, StringComparison.Ordinal);
        // Latched: what would have worked is refused now.
        Assert.Contains("Input/output error", box.Run("dd", "if=/dev/zero", $"of={raw}", "bs=1M", "count=1", "conv=notrunc,fsync").Errors, StringComparison.Ordinal);
        Outcome umount = box.QcowFs("umount", "m");
        Assert.StartsWith("qcowfs: disk.qcow2: not everything is on stable storage: ", umount.ExpectError(), StringComparison.Ordinal);
        Assert.Contains("NOT complete: ", umount.Output, StringComparison.Ordinal);
        Assert.Contains("NOT complete: ", File.ReadAllText(box.Path + "/run/qcowfs/qcowfs.log"), StringComparison.Ordinal);
        box.Run("umount", "-l", "host");
    }

    /// <summary>The image's last write, then a finished sync of the image, then an answer to the kernel by the same thread.</summary>
    private static bool SyncPrecedesAnAnswer(string[] lines, string image)
    {
        int write = Array.FindLastIndex(lines, l => l.Contains(" pwrite", StringComparison.Ordinal) && l.Contains(image, StringComparison.Ordinal));
        int sync = Array.FindIndex(lines, write + 1, l => l.Contains(" fdatasync(", StringComparison.Ordinal) && l.Contains(image, StringComparison.Ordinal));
        if (write < 0 || sync < 0) return false;
        string thread = lines[sync].Split(' ')[0] + " ";
        int end = lines[sync].Contains("unfinished", StringComparison.Ordinal)
            ? Array.FindIndex(lines, sync, l => l.StartsWith(thread, StringComparison.Ordinal) && l.Contains("fdatasync resumed", StringComparison.Ordinal))
            : sync;
        // No answer to the kernel between the write and the end of the sync: fio and dd wait for nothing else.
        return end > 0 && lines[end].EndsWith("= 0", StringComparison.Ordinal)
            && Array.FindIndex(lines, end, l => l.Contains("/dev/fuse>", StringComparison.Ordinal)) > end;
    }
}
