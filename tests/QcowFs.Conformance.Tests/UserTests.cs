// An ordinary user, who may not attach loop devices, works on the raw file itself.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class UserTests
{
    [SkippableFact]
    public void File_system_tools_work_on_the_raw_file()
    {
        using Sandbox box = new();
        Tools.Require("fusermount3", "mkfs.ext4", "e2fsck", "debugfs");
        Mount(box);
        box.ShellAsUser(
            """
            raw=u/m/disk.qcow2.raw
            mkfs.ext4 -q -E root_owner $raw
            echo hello > u/file
            debugfs -w -R "write u/file greeting" $raw 2>/dev/null
            test "$(debugfs -R "cat greeting" $raw 2>/dev/null)" = hello
            e2fsck -fn $raw
            head -c 1M /dev/urandom > u/block
            dd if=u/block of=$raw bs=1M seek=500 conv=notrunc,fsync status=none
            cmp u/block <(dd if=$raw bs=1M skip=500 count=1 status=none)
            cp --sparse=always $raw u/copy; cmp $raw u/copy; cp u/copy $raw
            """).Expect();
        Assert.Contains("closed and durable", box.QcowFsAsUser("umount", "u/m").Expect(), StringComparison.Ordinal);
        box.Check("u/disk.qcow2");
        box.WaitForServersToEnd();
    }

    [SkippableFact]
    public void Fuse2fs_mounts_what_is_in_it()
    {
        using Sandbox box = new();
        Tools.Require("fusermount3", "mkfs.ext4", "fuse2fs", "e2fsck");
        Mount(box);
        box.ShellAsUser(
            """
            raw=u/m/disk.qcow2.raw; mkdir u/fs
            mkfs.ext4 -q -E root_owner $raw
            fuse2fs $raw u/fs -o fakeroot
            mkdir u/tree; for i in $(seq 60); do head -c $((i * 997)) /dev/urandom > u/tree/$i; done
            cp -r u/tree u/fs/; diff -r u/tree u/fs/tree
            fusermount3 -u u/fs
            """).Expect();
        // fuse2fs writes back after fusermount3 has returned; `qcowfs umount` says who is in the way, or waits for nobody.
        while (box.ShellAsUser("$QCOWFS umount u/m").ExitCode != 0) Assert.NotEmpty(box.Servers());
        box.Check("u/disk.qcow2");
        string raw = box.HashByQemu("u/disk.qcow2");
        Assert.NotEmpty(raw);
        box.Shell("qemu-img convert -O raw u/disk.qcow2 u/out; e2fsck -fn u/out").Expect();
    }

    [SkippableFact]
    public void Fio_verifies()
    {
        using Sandbox box = new();
        Tools.Require("fusermount3", "fio");
        Mount(box);
        box.RunAsUser(
            "fio", "--name=verify", "--filename=u/m/disk.qcow2.raw", "--rw=randwrite", "--bs=4k", "--size=64M", "--direct=1",
            "--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1").Expect();
        box.QcowFsAsUser("umount", "u/m").Expect();
        box.Check("u/disk.qcow2");
    }

    [SkippableFact]
    public void Nobody_else_gets_in_and_root_may_unmount()
    {
        using Sandbox box = new();
        Tools.Require("fusermount3");
        Mount(box);
        Assert.Contains("Permission denied", box.Run("ls", "u/m").Errors, StringComparison.Ordinal);
        Assert.Contains(
            "allow_other", box.ShellAsUser("mkdir u/n; qemu-img create -q -f raw u/other 1M; $QCOWFS mount --allow-other -f raw u/other u/n").ExpectError(),
            StringComparison.Ordinal);
        // Root finds the user's server although its own environment names another runtime directory.
        Assert.Contains(
            "closed and durable",
            box.Shell("XDG_RUNTIME_DIR=$PWD/run-user $QCOWFS umount u/m").Expect(), StringComparison.Ordinal);
        box.Check("u/disk.qcow2");
    }

    private static void Mount(Sandbox box)
    {
        box.MakeDirectory("u", forUser: true);
        box.ShellAsUser("mkdir u/m; $QCOWFS create -f qcow2 u/disk.qcow2 1G; $QCOWFS mount -w u/disk.qcow2 u/m").Expect();
        Assert.Equal("65534", box.RunAsUser("stat", "-c", "%u", "u/m/disk.qcow2.raw").Expect());
    }
}
