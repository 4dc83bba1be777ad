// qcowfs loop: loop devices made and ended by the program, under memory pressure, and when the server is told to end.
using System.Globalization;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class LoopCommandTests
{
    [SkippableFact]
    public void A_file_system_on_the_device_and_back()
    {
        using Sandbox box = Prepare();
        string image = box.Make("qcow2", "256M");
        string device = box.QcowFs("loop", "-w", image).Expect();
        Assert.Matches("^/dev/loop[0-9]+$", device);
        Assert.Equal("1 512", box.Shell($"losetup -n -O DIO,LOG-SEC {device} | xargs").Expect());
        box.MakeTree("tree", 3);
        box.Shell($"mkdir files; mkfs.ext4 -q -F {device}; mount {device} files; cp -a tree files/tree; sync -f files").Expect();
        Assert.Equal($"qcowfs: {device}: in use by the mount at {box.Path}/files; end that first", box.QcowFs("loop", "-d", device).ExpectError());
        box.Shell("umount files").Expect();
        Assert.Matches("^disk.qcow2: .* written, .* discarded, check: clean; closed and durable$", box.QcowFs("loop", "-d", device).Expect());
        AssertNothingIsLeft(box);
        box.Check(image);

        // Read-only without -w; found by the image's name.
        string before = box.Hash(image);
        device = box.QcowFs("loop", image).Expect();
        Assert.Equal("1", box.Run("blockdev", "--getro", device).Expect());
        box.Shell($"mount -o ro,noload {device} files; diff -r --no-dereference tree files/tree; umount files").Expect();
        box.QcowFs("loop", "-d", image).Expect();
        AssertNothingIsLeft(box);
        Assert.Equal(before, box.Hash(image));

        // With an overlay the image stays as it is.
        device = box.QcowFs("loop", "--overlay", image).Expect();
        box.Shell($"mount {device} files; rm -r files/tree; umount files").Expect();
        Assert.Contains("temporary overlay", box.QcowFs("loop", "-d", device).Expect(), StringComparison.Ordinal);
        Assert.Equal(before, box.Hash(image));
    }

    [SkippableFact]
    public void Partitions_and_sector_sizes()
    {
        using Sandbox box = Prepare("sfdisk", "partx");
        string image = box.Make("raw", "64M");
        box.Shell($"printf 'label: gpt\\n,20M\\n,20M\\n' | sfdisk -q {image}").Expect();
        string device = box.QcowFs("loop", "-w", "-f", "raw", image).Expect();
        string name = Path.GetFileName(device);
        Assert.Equal($"{name}p1 {name}p2", box.Shell($"ls -d /sys/block/{name}/{name}p* | xargs -n1 basename | xargs").Expect());
        box.Shell($"echo in partition 2 | dd of={device}p2 conv=notrunc,fsync status=none").Expect();
        box.QcowFs("loop", "-d", device).Expect();
        AssertNothingIsLeft(box);
        Assert.Equal("in partition 2", box.Shell($"dd if={image} bs=512 skip=$(sfdisk -J {image} | grep -o '\"start\":[0-9 ]*' | tail -1 | tr -dc 0-9) count=1 status=none | head -1").Expect());

        // A table that was written for sectors of 4096 bytes.
        string large = box.QcowFs("loop", "-w", "-f", "raw", "--sector-size=4096", image).Expect();
        Assert.Equal("4096", box.Run("blockdev", "--getss", large).Expect());
        box.Shell($"dd if=/dev/zero of={large} bs=1M count=1 conv=notrunc,fsync status=none; printf 'label: gpt\\n,20M\\n' | sfdisk -q --wipe=always {large}").Expect();
        box.QcowFs("loop", "-d", large).Expect();
        device = box.QcowFs("loop", "-f", "raw", image).Expect();
        Assert.Equal("4096", box.Run("blockdev", "--getss", device).Expect());
        box.QcowFs("loop", "-d", device).Expect();
    }

    [SkippableFact]
    public void Where_no_device_can_be_had_one_line_says_so_and_nothing_is_left()
    {
        using Sandbox box = Prepare();
        string image = box.Make("qcow2", "1M");
        box.Run("qemu-img", "create", "-q", "-f", "qcow2", "empty.qcow2", "0").Expect();
        Assert.Equal("qcowfs: empty.qcow2: the disk has 0 bytes, less than a sector; a loop device needs a disk of one sector at least", box.QcowFs("loop", "empty.qcow2").ExpectError());
        box.Run("chmod", "0644", image).Expect();
        Assert.Equal("qcowfs: /dev/loop-control: permission denied; run as root, who alone may attach loop devices", box.QcowFsAsUser("loop", image).ExpectError());
        Assert.Equal("qcowfs: /dev/loop99: is not attached; see \"losetup -l\"", box.QcowFs("loop", "-d", "/dev/loop99").ExpectError());
        Assert.Equal($"qcowfs: {image}: no loop device of qcowfs shows it; see \"qcowfs list\" and \"losetup -l\"", box.QcowFs("loop", "-d", image).ExpectError());
        box.Shell("truncate -s 1M plain").Expect();
        string foreign = box.Run("losetup", "--find", "--show", "plain").Expect();
        Assert.Equal($"qcowfs: {foreign}: is attached to {box.Path}/plain, not by qcowfs loop; use losetup -d", box.QcowFs("loop", "-d", foreign).ExpectError());
        box.Run("losetup", "-d", foreign).Expect();
        // As where no node is left for another device.
        box.Shell("mkdir dev; mknod dev/loop-control c 10 237; mknod -m 666 dev/null c 1 3; mknod -m 666 dev/fuse c 10 229; mount --bind dev /dev").Expect();
        Assert.Matches(
            "^qcowfs: /dev/loop[0-9]+: every loop device that there is a node for is in use; detach one that is not needed", box.QcowFs("loop", image).ExpectError());
        box.Shell("rm /dev/loop-control").Expect();
        Assert.Equal("qcowfs: /dev/loop-control: no such file or directory; load the kernel's module first: modprobe loop", box.QcowFs("loop", image).ExpectError());
        box.Shell("umount /dev").Expect();
        AssertNothingIsLeft(box);
    }

    /// <summary>SIGTERM while a file system is mounted on the device: what was written becomes durable, the mount leaves the tree, and the
    /// file system goes on until it is unmounted.</summary>
    [SkippableFact]
    public void A_server_that_is_told_to_end_serves_the_device_to_its_last_close()
    {
        using Sandbox box = Prepare();
        string image = box.Make("qcow2", "256M");
        string device = box.QcowFs("loop", "-w", "--cache=none", image).Expect();
        box.Shell($"mkdir files; mkfs.ext4 -q -F {device}; mount {device} files; echo before > files/before; sync -f files").Expect();
        int server = Assert.Single(box.Servers());
        box.Run("kill", server.ToString(CultureInfo.InvariantCulture)).Expect();
        WaitUntilDetached(box);
        box.Shell("dd if=/dev/urandom of=files/after bs=1M count=32 conv=fsync status=none; cp files/after copy; umount files").Expect();
        Assert.Equal([server], box.Servers());
        box.QcowFs("loop", "-d", device).Expect();
        Sandbox.WaitForEnd(server);
        box.Check(image);
        string again = box.QcowFs("loop", image).Expect();
        box.Shell($"mount -o ro {again} files; cmp files/after copy; grep before files/before; umount files").Expect();
        box.QcowFs("loop", "-d", again).Expect();
    }

    /// <summary>The second SIGTERM is a kill: what fsync acknowledged is there.</summary>
    [SkippableFact]
    public void A_second_signal_is_a_kill()
    {
        using Sandbox box = Prepare();
        string image = box.Make("qcow2", "64M");
        string device = box.QcowFs("loop", "-w", image).Expect();
        box.Shell($"dd if=/dev/urandom of=data bs=1M count=4 status=none; dd if=data of={device} bs=1M conv=notrunc,fsync status=none").Expect();
        int server = Assert.Single(box.Servers());
        box.Run("kill", server.ToString(CultureInfo.InvariantCulture)).Expect();
        WaitUntilDetached(box);
        box.Run("kill", server.ToString(CultureInfo.InvariantCulture)).Expect();
        Sandbox.WaitForEnd(server);
        box.Run("losetup", "-d", device).Expect();
        string raw = box.MountReadOnly(image);
        box.Run("cmp", "-n", "4194304", raw, "data").Expect();
        box.QcowFs("umount", "m").Expect();
    }

    /// <summary>Writers and server in one memory cgroup of 256 MiB: the server must need no memory that only its own work can free.</summary>
    [SkippableFact]
    public void Writers_and_server_share_a_small_memory_cgroup()
    {
        using Sandbox box = Prepare("timeout");
        string group = MakeGroup(256L << 20, out string limit, out string reached);
        try
        {
            string image = box.Make("qcow2", "4G");
            File.WriteAllText(box.Path + "/work.sh", $$"""
                set -e
                echo $$ > {{group}}/cgroup.procs
                device=$($QCOWFS loop -w --cache=none {{image}})
                mkfs.ext4 -q -F $device; mkdir files; mount $device files
                for i in 1 2 3 4; do dd if=/dev/zero of=files/big$i bs=1M count=300 status=none & done; wait
                mkdir files/small; for i in $(seq 1 2000); do echo $i > files/small/$i; done
                sync -f files
                umount files
                $QCOWFS loop -d $device
                """);
            using System.Diagnostics.Process work = box.Start("timeout", "-k", "1", "290", "bash", "work.sh"); // for a slow disk too
            bool ended = work.WaitForExit(TimeSpan.FromSeconds(300));
            // Whatever hangs waits for the limit: without it the sandbox can clean up.
            if (!ended) File.WriteAllText(limit, (8L << 30).ToString(CultureInfo.InvariantCulture));
            Assert.True(ended, "the writers wait for the server, and the server for memory");
            Assert.True(work.ExitCode == 0, work.StandardError.ReadToEnd());
            Assert.Matches("[1-9]", reached.Contains("events", StringComparison.Ordinal) ? File.ReadAllLines(reached).First(l => l.StartsWith("max ", StringComparison.Ordinal)) : File.ReadAllText(reached));
            box.Check(image);
        }
        finally
        {
            Wait.Until(() => TryRemove(group), "the cgroup is empty");
        }
    }

    private static Sandbox Prepare(params string[] tools)
    {
        Tools.Require(["losetup", "mkfs.ext4", "blockdev", .. tools]);
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        return new Sandbox();
    }

    private static void AssertNothingIsLeft(Sandbox box)
    {
        box.WaitForServersToEnd();
        Assert.Empty(Directory.Exists(box.Path + "/run/qcowfs/loop") ? Directory.GetFiles(box.Path + "/run/qcowfs/loop") : []);
        Assert.DoesNotContain(box.Path, box.Run("losetup", "-l", "-n", "-O", "BACK-FILE").Expect(), StringComparison.Ordinal);
    }

    private static void WaitUntilDetached(Sandbox box) => Wait.Until(
        () => !box.Shell("cat /proc/self/mountinfo").Expect().Contains($" {box.Path}/run/qcowfs/", StringComparison.Ordinal), "the mount leaves the tree");

    private static string MakeGroup(long bytes, out string limit, out string reached)
    {
        bool isFirst = Directory.Exists("/sys/fs/cgroup/memory");
        string root = isFirst ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
        Tools.Require(isFirst || File.Exists(root + "/cgroup.subtree_control"), "there is no memory cgroup");
        string group = $"{root}/qcowfs-test-{Environment.ProcessId}";
        if (!isFirst) File.WriteAllText(root + "/cgroup.subtree_control", "+memory");
        Directory.CreateDirectory(group);
        limit = group + (isFirst ? "/memory.limit_in_bytes" : "/memory.max");
        reached = group + (isFirst ? "/memory.failcnt" : "/memory.events");
        File.WriteAllText(limit, bytes.ToString(CultureInfo.InvariantCulture));
        return group;
    }

    /// <summary>Removes a cgroup when nothing is in it; what is still in it, such as a server that hangs, is moved out. Whatever is on its
    /// way to its end cannot be moved, and need not.</summary>
    private static bool TryRemove(string group)
    {
        try
        {
            foreach (string process in File.ReadAllLines(group + "/cgroup.procs"))
                File.WriteAllText(Path.GetDirectoryName(group) + "/cgroup.procs", process);
            Directory.Delete(group);
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }
}
