// Deduplication through real mounts: file systems of the kernel, cloned disks, kills, and the commands.
using System.Globalization;
using System.Text.Json;
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Conformance.Tests;

public sealed class DedupTests(ITestOutputHelper output)
{
    /// <summary>Where the README's figures are from.</summary>
    [SkippableTheory]
    [InlineData("4k", 0.35)]
    [InlineData("64k", 1.1)]
    public void Two_copies_of_a_tree_and_two_clones_of_a_disk(string cluster, double mostForSecondCopy)
    {
        using Sandbox box = new();
        Tools.Require("losetup", "mkfs.ext4", "e2fsck", "tar");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string image = box.Make("qcow2", "512M", $"cluster_size={cluster}");
        box.MakeTree("tree", 32);
        box.MakeDirectory("fs");
        string raw = box.MountWritable(image, "--dedup");
        string loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"mkfs.ext4 -q {loop}; mount {loop} fs; cp -a tree fs/one; sync -f fs; umount fs").Expect();
        box.Run("losetup", "-d", loop).Expect();
        box.UnmountAndCheck(image);
        long one = box.Kilobytes(image);
        raw = box.MountWritable(image, "--dedup");
        loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"mount {loop} fs; cp -a tree fs/two; sync -f fs; umount fs; e2fsck -fn {loop}; mount -o ro {loop} fs; diff -r --no-dereference tree fs/one; diff -r --no-dereference tree fs/two; umount fs").Expect();
        box.Run("losetup", "-d", loop).Expect();
        box.UnmountAndCheck(image);
        long two = box.Kilobytes(image);

        // The disk as it is now is cloned into a second image, twice.
        string clones = "clones.qcow2";
        box.Run("qemu-img", "create", "-q", "-f", "qcow2", "-o", $"cluster_size={cluster}", clones, "1G").Expect();
        box.MakeDirectory("r");
        box.QcowFs("mount", image, "r").Expect();
        raw = box.MountWritable(clones, "--dedup");
        box.Shell($"dd if=r/{image}.raw of={raw} bs=1M conv=notrunc,sparse status=none; dd if=r/{image}.raw of={raw} bs=1M seek=512 conv=notrunc,sparse,fsync status=none").Expect();
        box.Shell($"cmp -n 536870912 r/{image}.raw {raw}; cmp -n 536870912 -i 0:536870912 r/{image}.raw {raw}").Expect();
        box.QcowFs("umount", "r").Expect();
        box.UnmountAndCheck(clones);
        long cloned = box.Kilobytes(clones);
        long tree = long.Parse(box.Shell("du -sk tree | cut -f1").Expect(), CultureInfo.InvariantCulture);
        output.WriteLine($"clusters of {cluster}: tree {tree} KiB, disk with one copy {one}, with two {two}, two clones of that disk {cloned}");
        Assert.True(two - one < tree * mostForSecondCopy, $"one copy {one} KiB, two {two} KiB");
        Assert.True(cloned < two * 1.1, $"one disk {two} KiB, two clones {cloned} KiB");
        Assert.Equal(box.HashByQemu(image), box.Shell($"qemu-img convert -O raw {clones} c.raw; truncate -s 512M c.raw; sha256sum c.raw").Expect().Split(' ')[0]);
    }

    [SkippableFact]
    public void A_killed_server_loses_nothing_and_the_next_mount_goes_on()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M", "cluster_size=4k");
        box.Shell("head -c 4M /dev/urandom > part").Expect();
        for (int round = 0; round < 3; round++)
        {
            string raw = box.MountWritable(image, "--dedup");
            box.Shell($"dd if=part of={raw} bs=256k seek={round * 32} conv=notrunc,fsync status=none; dd if=part of={raw} bs=64k seek={(round * 128) + 64} conv=notrunc status=none").Expect();
            int server = Assert.Single(box.Servers());
            box.Run("kill", "-9", server.ToString(CultureInfo.InvariantCulture)).Expect();
            Sandbox.WaitForEnd(server);
            _ = box.QcowFs("umount", "m");
        }

        string last = box.MountWritable(image, "--dedup");
        for (int round = 0; round < 3; round++)
            box.Shell($"cmp -n 4194304 -i {round * 8388608}:0 {last} part").Expect();
        box.Shell($"dd if=part of={last} bs=1M seek=40 conv=notrunc,fsync status=none").Expect();
        // A kill costs the entries of the index's last page, no more.
        long shared;
        using (JsonDocument stats = JsonDocument.Parse(box.Run("cat", $"m/.qcowfs/{image}/stats.json").Expect()))
            shared = stats.RootElement.GetProperty("bytes-shared").GetInt64();
        Assert.InRange(shared, (4 << 20) - (127 * 4096), 4 << 20);
        using (JsonDocument receipt = JsonDocument.Parse(box.QcowFs("umount", "--json", "m").Expect()))
            Assert.Equal(shared, receipt.RootElement.GetProperty("images")[0].GetProperty("shared").GetInt64());
        box.Check(image);
    }

    [SkippableFact]
    public void The_commands_estimate_scan_show_rebuild_and_end()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "32M", "cluster_size=4k");
        string raw = box.MountWritable(image);
        box.Shell($"head -c 1M /dev/urandom > part; for i in 0 3 7; do dd if=part of={raw} bs=1M seek=$i conv=notrunc,fsync status=none; done").Expect();
        box.UnmountAndCheck(image);
        string before = box.HashByQemu(image);
        using (JsonDocument estimate = JsonDocument.Parse(box.QcowFs("dedup", "estimate", "--json", image, image).Expect()))
        {
            JsonElement row = estimate.RootElement[0];
            Assert.Equal(4096, row.GetProperty("cluster-size").GetInt32());
            Assert.Equal(5 << 20, row.GetProperty("bytes-saved").GetInt64());
            Assert.Equal(10, estimate.RootElement.GetArrayLength());
        }

        Assert.Contains("2 MiB shared", box.QcowFs("dedup", "scan", image).Expect());
        Assert.Equal(before, box.HashByQemu(image));
        box.Check(image);
        using (JsonDocument status = JsonDocument.Parse(box.QcowFs("dedup", "status", "--json", image).Expect()))
        {
            Assert.Equal(2 << 20, status.RootElement.GetProperty("bytes-saved").GetInt64());
            Assert.Equal(256, status.RootElement.GetProperty("index").GetProperty("entries").GetInt64());
            Assert.True(status.RootElement.GetProperty("index").GetProperty("bound").GetBoolean());
        }

        Assert.Contains("3 MiB indexed", box.QcowFs("dedup", "rebuild", "--dedup-hash=sha256", image).Expect());
        Assert.Contains("sha256", box.QcowFs("dedup", "status", image).Expect());
        Assert.Contains("removed", box.QcowFs("dedup", "off", image).Expect());
        Assert.False(File.Exists($"{box.Path}/{image}.dedup"));
        box.Check(image);
        Assert.Equal(before, box.HashByQemu(image));
    }

    [SkippableFact]
    public void What_cannot_be_deduplicated_is_refused_in_one_line()
    {
        using Sandbox box = new();
        box.MakeDirectory("m");
        box.Make("raw", "1M");
        box.Run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "two.qcow2", "1M").Expect();
        box.Run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "external.qcow2", "1M").Expect();
        Assert.Contains("its format cannot map two blocks to one place; convert it to qcow2", box.QcowFs("mount", "-w", "--dedup", "-f", "raw", "disk.img", "m").ExpectError());
        Assert.Contains("version 2", box.QcowFs("mount", "-w", "--dedup", "two.qcow2", "m").ExpectError());
        Assert.Contains("external data file", box.QcowFs("mount", "-w", "--dedup", "external.qcow2", "m").ExpectError());
        Assert.Contains("--dedup: needs --writable", box.QcowFs("mount", "--dedup", "two.qcow2", "m").ExpectError(64));
        Assert.Contains("--dedup-memory: needs --dedup", box.QcowFs("mount", "-w", "--dedup-memory=64M", "two.qcow2", "m").ExpectError(64));
        Assert.Contains("too few", box.QcowFs("mount", "-w", "--dedup", "--dedup-memory=1M", "two.qcow2", "m").ExpectError(64));
        Assert.Contains("\"fly\" is not one of its values", box.QcowFs("dedup", "fly", "two.qcow2").ExpectError(64));
        Assert.False(File.Exists($"{box.Path}/two.qcow2.dedup"));
    }

}
