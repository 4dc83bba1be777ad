// Commands on images that are mounted: their server does what they ask.
using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class OnlineTests
{
    [SkippableTheory]
    [InlineData("disk.qcow2", "m")]          // an image
    [InlineData("d", "m")]                   // a directory with it
    [InlineData("disk.qcow2", "disk.qcow2")] // an image that its own mount covers
    public void Snapshots_sizes_and_checks_go_through_the_server(string source, string mountPoint)
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.Shell("mkdir m d").Expect();
        if (source == "d")
        {
            File.Move($"{box.Path}/{image}", $"{box.Path}/d/{image}");
            image = "d/" + image;
        }
        box.QcowFs("mount", "-w", source, mountPoint).Expect();
        string raw = mountPoint == "m" ? "m/disk.qcow2.raw" : mountPoint;
        using Process holder = box.Start("bash", "-c", $"exec 3<>{raw}; echo open; read wait; printf later >&3; echo written; read wait");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        box.Shell($"printf first | dd of={raw} conv=notrunc status=none").Expect();
        Assert.Equal("", box.QcowFs("snapshot", "create", image, "one two").Expect());
        holder.StandardInput.WriteLine();
        Assert.Equal("written", holder.StandardOutput.ReadLine());
        Assert.Equal("later", box.Run("head", "-c", "5", raw).Expect());
        if (mountPoint == "m")
        {
            Assert.Equal("400 67108864 first", box.Shell("f=m/disk.qcow2@one%20two.raw; stat -c '%a %s' $f | tr '\\n' ' '; head -c 5 $f").Expect());
            Assert.Contains("one two", box.QcowFs("snapshot", "list", image).Expect(), StringComparison.Ordinal);
        }
        Assert.Equal(
            $"qcowfs: {image}: its disk is open, and would become another under whoever reads it; close what is open first",
            box.QcowFs("snapshot", "apply", image, "one two").ExpectError());
        Assert.Equal($"{image}: the disk has 128 MiB (134217728 bytes)", box.QcowFs("resize", image, "+64M").Expect());
        Assert.Equal("134217728", box.Run("stat", "-c", "%s", raw).Expect());
        Assert.StartsWith($"{image}: clean", box.QcowFs("check", image).Expect(), StringComparison.Ordinal);
        Assert.Equal(0, JsonDocument.Parse(box.QcowFs("check", "--json", image).Expect()).RootElement.GetProperty("corruptions").GetInt32());
        Assert.Contains("there is no snapshot \"none\"", box.QcowFs("snapshot", "delete", image, "none").ExpectError(), StringComparison.Ordinal);
        holder.StandardInput.WriteLine();
        holder.WaitForExit();
        box.QcowFs("snapshot", "apply", image, "one two").Expect();
        // In a directory the image may be closed by now, and then it was changed behind the server's back: a listing looks again.
        Assert.Equal("67108864 first", box.Shell($"ls {mountPoint} >/dev/null; stat -c %s {raw} | tr '\\n' ' '; head -c 5 {raw}").Expect());
        box.QcowFs("snapshot", "delete", image, "1").Expect();
        if (mountPoint == "m") Assert.Equal("disk.qcow2.raw", box.Run("ls", "m").Expect());
        Assert.Contains("10 B written", box.QcowFs("umount", mountPoint).Expect(), StringComparison.Ordinal);
        box.Run("qemu-img", "check", "-q", image).Expect();
        Assert.Equal("first", box.Shell($"qemu-img convert -O raw {image} out; head -c 5 out").Expect());
    }

    [SkippableFact]
    public void A_deleted_snapshots_file_must_be_closed_and_a_read_only_mount_stays_as_it_is()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.Run("qemu-img", "snapshot", "-c", "one", image).Expect();
        box.MountWritable(image);
        using Process holder = box.Start("bash", "-c", $"exec 3<m/{image}@one.raw; echo open; read wait; head -c 3 <&3 | od -An -tx1; read wait");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        Assert.Equal($"qcowfs: {image}: the file of snapshot \"one\" is open; close what is open first", box.QcowFs("snapshot", "delete", image, "one").ExpectError());
        box.QcowFs("snapshot", "create", image, "two").Expect();
        box.QcowFs("snapshot", "delete", image, "two").Expect();
        holder.StandardInput.WriteLine();
        Assert.Equal(" 00 00 00", holder.StandardOutput.ReadLine());
        holder.StandardInput.WriteLine();
        holder.WaitForExit();
        box.QcowFs("snapshot", "delete", image, "one").Expect();
        box.UnmountAndCheck(image);
        string before = box.Hash(image);
        box.MountReadOnly(image);
        Assert.Equal($"qcowfs: {image}: it is mounted read-only; mount it with -w, or unmount it first", box.QcowFs("snapshot", "create", image, "x").ExpectError());
        box.QcowFs("check", image).Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(before, box.Hash(image));
    }

    [SkippableFact]
    public void Frozen_writers_wait_and_the_file_is_complete()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        string raw = box.MountWritable(image);
        box.Shell($"printf before | dd of={raw} conv=notrunc status=none").Expect();
        box.QcowFs("sync", "m").Expect();
        box.QcowFs("sync", "--freeze", "m").Expect();
        Assert.Contains("FROZEN", box.QcowFs("list").Expect(), StringComparison.Ordinal);
        using Process writer = box.Start("bash", "-c", $"printf after_ | dd of={raw} conv=notrunc,fsync status=none; echo written");
        Assert.Equal("before", box.Run("head", "-c", "6", raw).Expect());
        box.Shell($"cp {image} copy.qcow2; qemu-img check -q copy.qcow2; qemu-img convert -O raw copy.qcow2 out; test $(head -c 6 out) = before").Expect();
        Assert.Equal($"qcowfs: {image}: the mount is frozen; run \"qcowfs sync --thaw\" first", box.QcowFs("snapshot", "create", image, "x").ExpectError());
        Assert.False(writer.HasExited);
        box.QcowFs("sync", "--thaw", "m").Expect();
        Assert.Equal("written", writer.StandardOutput.ReadLine());
        writer.WaitForExit();
        Assert.Equal("after_", box.Run("head", "-c", "6", raw).Expect());
        box.QcowFs("sync", "--freeze", "m").Expect();
        box.QcowFs("umount", "m").Expect();
        box.Check(image);
        Assert.Equal("qcowfs: --thaw: contradicts --freeze; give one of them", box.QcowFs("sync", "--freeze", "--thaw", "m").ExpectError(64));
        Assert.Equal("qcowfs: m: nothing is mounted there; see \"qcowfs list\"", box.QcowFs("sync", "m").ExpectError());
    }

    [SkippableFact]
    public void A_server_that_dies_in_the_middle_of_edits_leaves_a_sound_image()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "256M");
        for (int round = 0; round < 4; round++)
        {
            string raw = box.MountWritable(image);
            int server = Assert.Single(box.Servers());
            // Writers and edits at once; the kill comes at whatever moment the third edit has brought about.
            using Process busy = box.Start(
                "bash", "-c",
                $"(while dd if=/dev/urandom of={raw} bs=64k count=16 seek=$((RANDOM % 4000)) conv=notrunc status=none; do :; done) & "
                + $"for i in 1 2 3 4 5 6; do $QCOWFS snapshot create {image} r{round}-$i && echo done; $QCOWFS snapshot delete {image} r{round}-$((i - 1)); done; wait");
            for (int edits = 0; edits <= round; edits++) Assert.Equal("done", busy.StandardOutput.ReadLine());
            box.Run("kill", "-KILL", server.ToString()).Expect();
            Sandbox.WaitForEnd(server);
            busy.StandardInput.Close();
            busy.WaitForExit();
            box.Run("umount", "-l", "m").Expect();
            Outcome check = box.QcowFs("check", image);
            Assert.True(check.ExitCode is 0 or 3 || check.Output.Contains("harmless", StringComparison.Ordinal), check.Output);
        }
        box.MountWritable(image);
        box.QcowFs("umount", "m").Expect();
        box.QcowFs("check", "--repair", image).Expect();
        box.Check(image);
    }

    [SkippableFact]
    public void The_receipt_of_a_directory_tells_what_was_done_to_each()
    {
        using Sandbox box = new();
        box.Shell(
            """
            mkdir d m; for i in a b c; do qemu-img create -q -f qcow2 d/$i.qcow2 64M; done; $QCOWFS mount -w d m
            for i in 1 2 3; do dd if=/dev/urandom of=m/a.qcow2.raw bs=1M count=$i seek=$i conv=notrunc status=none; done
            fallocate -p -o 1M -l 2M m/a.qcow2.raw; cat m/b.qcow2.raw >/dev/null
            """).Expect();
        JsonElement[] images = [.. JsonDocument.Parse(box.QcowFs("umount", "--json", "m").Expect()).RootElement.GetProperty("images").EnumerateArray()];
        Assert.Equal(["a.qcow2", "b.qcow2"], images.Select(i => i.GetProperty("name").GetString()));
        Assert.Equal([6L << 20, 0], images.Select(i => i.GetProperty("written").GetInt64()));
        Assert.Equal([2L << 20, 0], images.Select(i => i.GetProperty("discarded").GetInt64()));
        Assert.Equal(["clean", "not run"], images.Select(i => i.GetProperty("check").GetString()));
        box.QcowFs("mount", "-w", "d", "m").Expect();
        box.Shell("printf abc | dd of=m/c.qcow2.raw conv=notrunc status=none; cat m/a.qcow2.raw m/b.qcow2.raw > /dev/null").Expect();
        Assert.Equal(
            "c.qcow2: 3 B written, 0 B discarded, check: clean; closed and durable\n2 images were only read", box.QcowFs("umount", "m").Expect());
    }
}
