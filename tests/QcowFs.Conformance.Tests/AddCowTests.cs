// add-cow on real mounts: the way from an overlay to a plain raw file, a killed server, holes and space.
using System.Diagnostics;
using System.Text.Json;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class AddCowTests
{
    /// <summary>A base image with ext4, an overlay that is used and changed through a loop device, filled while it is in use; then the raw
    /// file stands alone.</summary>
    [SkippableFact]
    public void An_overlay_ends_as_a_raw_file()
    {
        using Sandbox box = new();
        Tools.Require("losetup", "mkfs.ext4", "e2fsck", "tar");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        box.MakeTree("tree", 6);
        box.Shell("truncate -s 128M base.raw; mkfs.ext4 -q base.raw; mkdir fs m; tar -C tree -cf tree.tar .").Expect();
        box.Shell("mount -o loop base.raw fs; tar -C fs -xf tree.tar; umount fs; sha256sum base.raw > base.sum").Expect();
        box.QcowFs("create", "-f", "add-cow", "-b", "base.raw", "-F", "raw", "-o", "image_file=disk.raw", "disk.add-cow").Expect();

        string raw = box.MountWritable("disk.add-cow");
        string loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"mount {loop} fs; diff -r --no-dereference tree fs -x lost+found; mkdir fs/new; cp -a tree/. fs/new; rm -r fs/d0; umount fs; losetup -d {loop}").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(0, box.QcowFs("check", "disk.add-cow").ExitCode);
        Assert.InRange(Percent(box), 1, 99);

        // Filled while the file system is at work.
        box.MountWritable("disk.add-cow", "--stream=40M");
        loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"mount {loop} fs; mv fs/new fs/moved; cp tree.tar fs/; sync -f fs").Expect();
        Wait.Until(() => StreamState(box) != "running", "the streaming to end");
        Assert.Equal("done", StreamState(box));
        using (JsonDocument info = JsonDocument.Parse(File.ReadAllText($"{box.Path}/disk-info.json")))
        {
            JsonElement data = info.RootElement.GetProperty("format-specific").GetProperty("data");
            Assert.True(data.GetProperty("all-allocated").GetBoolean());
            Assert.Equal(100, data.GetProperty("allocated-percent").GetDouble());
        }

        Assert.Contains("streaming is done", File.ReadAllText(box.Path + "/run/qcowfs/qcowfs.log"), StringComparison.Ordinal);
        box.Shell($"cp tree.tar fs/again.tar; cmp tree.tar fs/again.tar; umount fs; losetup -d {loop}").Expect();
        string hash = box.Hash(raw);
        box.QcowFs("umount", "m").Expect();
        box.QcowFs("check", "disk.add-cow").Expect();
        Assert.Equal(hash, box.Hash("disk.raw"));

        // Neither sidecar nor base image is needed any more.
        box.Shell("sha256sum -c --quiet base.sum; rm disk.add-cow base.raw; e2fsck -fn disk.raw").Expect();
        box.Shell("mount -o loop,ro disk.raw fs; cmp tree.tar fs/tree.tar; cmp tree.tar fs/again.tar; test -d fs/moved; test ! -e fs/new; umount fs").Expect();
    }

    [SkippableTheory]
    [InlineData("4k", "")]
    [InlineData("64k", "")]
    [InlineData("64k", "--stream=20M")]
    public void A_killed_server_loses_nothing_that_was_synced(string clusterSize, string option)
    {
        using Sandbox box = new();
        Tools.Require("fio");
        box.Shell("dd if=/dev/urandom of=base.raw bs=1M count=48 status=none; mkdir m").Expect();
        box.QcowFs("create", "-f", "add-cow", "-b", "base.raw", "-F", "raw", "-o", $"image_file=disk.raw,cluster_size={clusterSize}", "disk.add-cow", "64M").Expect();
        string[] options = option.Length > 0 ? [option] : [];
        string raw = box.MountWritable("disk.add-cow", options);
        box.Shell($"dd if=/dev/urandom of=front bs=1M count=4 status=none; dd if=front of={raw} bs=1M conv=notrunc,fsync status=none").Expect();
        box.QcowFs("umount", "m").Expect();
        foreach (int round in Soak.Rounds()) KillOnce(box, options, killAfterMiB: 12 + (round * 7 % 100));
    }

    private static void KillOnce(Sandbox box, string[] options, int killAfterMiB)
    {
        string raw = box.MountWritable("disk.add-cow", options);
        using Process fio = box.Start(
            "fio", "--name=load", $"--filename={raw}", "--rw=randwrite", "--bs=4k", "--offset=24M", "--size=40M", "--direct=1",
            "--ioengine=libaio", "--iodepth=32", "--fsync=16", "--time_based", "--runtime=600", "--randrepeat=0");
        // The server is killed once it has demonstrably written much: no timing decides.
        int server = Assert.Single(box.Servers());
        while (Sandbox.WrittenBytes(server) < (long)killAfterMiB << 20) Assert.False(fio.HasExited);
        box.Run("kill", "-KILL", $"{server}").Expect();
        fio.StandardOutput.ReadToEnd();
        fio.WaitForExit();
        Sandbox.WaitForEnd(server);
        box.QcowFs("umount", "m").Expect(1);
        box.QcowFs("check", "disk.add-cow").Expect();
        raw = box.MountWritable("disk.add-cow", options);
        // What was written before, and what nobody wrote: the base image's.
        box.Run("cmp", "-n", $"{4 << 20}", "front", raw).Expect();
        box.Shell($"cmp <(tail -c +{(4 << 20) + 1} base.raw | head -c {20 << 20}) <(tail -c +{(4 << 20) + 1} {raw} | head -c {20 << 20})").Expect();
        box.Shell($"cat {raw} > /dev/null; echo again | dd of={raw} bs=1M seek=50 conv=notrunc,fsync status=none").Expect();
        box.QcowFs("umount", "m").Expect();
        box.QcowFs("check", "disk.add-cow").Expect();
    }

    [SkippableTheory]
    [InlineData(1, 32)]
    [InlineData(0, 1)]
    public void Random_writes_verify(int direct, int depth)
    {
        using Sandbox box = new();
        Tools.Require("fio");
        box.Shell("dd if=/dev/urandom of=base.raw bs=1M count=48 status=none").Expect();
        box.QcowFs("create", "-f", "add-cow", "-b", "base.raw", "-F", "raw", "-o", "image_file=disk.raw", "disk.add-cow", "64M").Expect();
        string raw = box.MountWritable("disk.add-cow", "--stream=10M");
        box.Run(
            "fio", "--name=verify", $"--filename={raw}", "--rw=randwrite", "--bsrange=512-128k", "--blockalign=512", "--size=64M",
            "--io_size=32M", $"--direct={direct}", "--ioengine=libaio", $"--iodepth={depth}", "--verify=crc32c", "--do_verify=1",
            "--verify_fatal=1", "--fsync=64", "--randrepeat=0").Expect();
        string hash = box.Hash(raw);
        box.QcowFs("umount", "m").Expect();
        box.QcowFs("check", "disk.add-cow").Expect();
        raw = box.MountReadOnly("disk.add-cow");
        Assert.Equal(hash, box.Hash(raw));
        box.QcowFs("umount", "m").Expect();
    }

    /// <summary>Holes of the raw file are those that the map tells, and what is discarded gives its space back.</summary>
    [SkippableFact]
    public void Holes_and_space_follow_the_bitmap()
    {
        using Sandbox box = new();
        Tools.Require("xfs_io", "fallocate");
        box.Shell("truncate -s 4M base.raw; dd if=/dev/urandom of=base.raw bs=64k count=20 seek=4 conv=notrunc status=none").Expect();
        box.QcowFs("create", "-f", "add-cow", "-b", "base.raw", "-F", "raw", "-o", "image_file=disk.raw", "disk.add-cow", "8M").Expect();
        string raw = box.MountWritable("disk.add-cow");
        box.Shell($"dd if=/dev/urandom of={raw} bs=64k count=16 seek=96 conv=notrunc,fsync status=none").Expect();
        long before = box.Kilobytes("disk.raw");
        // Of the base image's data, and of the disk's own.
        box.Shell($"fallocate -p -o {10 << 16} -l {4 << 16} {raw}; fallocate -p -o {100 << 16} -l {8 << 16} {raw}; sync {raw}").Expect();
        Assert.InRange(box.Kilobytes("disk.raw"), 0, before - (8 << 6));
        string[] expected = ["DATA 262144", "HOLE 655360", "DATA 917504", "HOLE 1572864", "DATA 6291456", "HOLE 6553600", "DATA 7077888", "HOLE 7340032"];
        Assert.Equal(["HOLE 0", .. expected], Seek(box, raw));
        Assert.Equal(box.Kilobytes("disk.raw"), box.Kilobytes(raw));
        box.QcowFs("umount", "m").Expect();
        using JsonDocument map = JsonDocument.Parse(box.QcowFs("map", "--json", "disk.add-cow").Expect());
        List<string> edges = [];
        foreach (JsonElement entry in map.RootElement.EnumerateArray())
        {
            string kind = entry.GetProperty("kind").GetString() == "data" ? "DATA" : "HOLE";
            if (edges.Count == 0 || !edges[^1].StartsWith(kind, StringComparison.Ordinal)) edges.Add($"{kind} {entry.GetProperty("offset").GetInt64()}");
            Assert.Equal((kind, entry.GetProperty("depth").GetInt32()) switch { ("DATA", 0) => "disk.raw", ("DATA", _) => "base.raw", _ => null }, entry.GetProperty("file").GetString());
        }

        Assert.Equal(["HOLE 0", .. expected], edges);
    }

    /// <summary>The size of a disk in use changes while it is filled; the filling goes on with the new one.</summary>
    [SkippableFact]
    public void A_disk_is_resized_while_it_is_filled()
    {
        using Sandbox box = new();
        box.Shell("dd if=/dev/urandom of=base.raw bs=1M count=24 status=none").Expect();
        box.QcowFs("create", "-f", "add-cow", "-b", "base.raw", "-F", "raw", "-o", "image_file=disk.raw", "disk.add-cow", "16M").Expect();
        string raw = box.MountWritable("disk.add-cow", "--stream=4M");
        box.Shell($"echo mine | dd of={raw} bs=1M seek=15 conv=notrunc,fsync status=none").Expect();
        box.QcowFs("resize", "disk.add-cow", "20M").Expect();
        Wait.Until(() => StreamState(box) != "running", "the streaming to end");
        Assert.Equal("done", StreamState(box));
        box.QcowFs("umount", "m").Expect();
        box.QcowFs("check", "disk.add-cow").Expect();
        // The base image goes on where the disk ended: what is new is zeros all the same.
        box.Shell("cmp -n 15728640 base.raw disk.raw; head -c 15728645 disk.raw | tail -c 5 | cmp - <(echo mine); cmp <(head -c 4194304 /dev/zero) <(tail -c 4194304 disk.raw)").Expect();
    }

    [SkippableFact]
    public void Streaming_is_for_writable_add_cow_images()
    {
        using Sandbox box = new();
        box.MakeDirectory("m");
        string image = box.Make("qcow2", "1M");
        Assert.Equal("qcowfs: --stream: needs --writable; give -w too", box.QcowFs("mount", "--stream", image, "m").ExpectError(64));
        Assert.Equal($"qcowfs: --stream: {image} is qcow2, and only add-cow images are filled from their backing file; leave it out",
            box.QcowFs("mount", "-w", "--stream", image, "m").ExpectError(64));
        Assert.Equal("qcowfs: --stream: 1024 bytes a second are too few; give at least 64k", box.QcowFs("mount", "-w", "--stream=1k", image, "m").ExpectError(64));
    }

    private static IEnumerable<string> Seek(Sandbox box, string raw) => box.Run("xfs_io", "-r", "-c", "seek -a -r 0", raw).Expect()
        .Split('\n').Skip(1).Select(line => string.Join(' ', line.Split('\t', ' '))).Where(line => !line.EndsWith("EOF", StringComparison.Ordinal));

    private static double Percent(Sandbox box)
    {
        using JsonDocument info = JsonDocument.Parse(box.QcowFs("info", "--json", "disk.add-cow").Expect());
        return info.RootElement.GetProperty("format-specific").GetProperty("data").GetProperty("allocated-percent").GetDouble();
    }

    private static string? StreamState(Sandbox box)
    {
        box.Shell("cat m/.qcowfs/disk.add-cow/stats.json > disk-stats.json; cat m/.qcowfs/disk.add-cow/info.json > disk-info.json").Expect();
        using JsonDocument stats = JsonDocument.Parse(File.ReadAllText($"{box.Path}/disk-stats.json"));
        return stats.RootElement.GetProperty("stream").GetProperty("state").GetString();
    }
}
