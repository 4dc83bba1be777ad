// How mounts begin and end.
using System.Diagnostics;
using System.Text.Json;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class LifecycleTests
{
    [SkippableTheory]
    [MemberData(nameof(Disks.Formats), MemberType = typeof(Disks))]
    public void A_directory_shows_the_disk_and_its_facts(string format)
    {
        using Sandbox box = new();
        string image = box.Make(format, "64M");
        string raw = box.MountWritable(image);
        Assert.Equal($".qcowfs\n{image}.raw", box.Run("ls", "-A", "m").Expect());
        Assert.Equal("info.json\nmap.json\nstats.json", box.Run("ls", $"m/.qcowfs/{image}").Expect());
        Assert.Equal("600 67108864 root", box.Run("stat", "-c", "%a %s %U", raw).Expect());
        Assert.Equal("700", box.Run("stat", "-c", "%a", "m").Expect());
        foreach (string facts in new[] { "info", "map", "stats" })
            JsonDocument.Parse(box.Run("cat", $"m/.qcowfs/{image}/{facts}.json").Expect()).Dispose();
        string mounts = box.Run("grep", "fuse.qcowfs", "/proc/self/mountinfo").Expect();
        Assert.Contains($" - fuse.qcowfs {box.Path}/{image} rw,", mounts, StringComparison.Ordinal);
        Assert.Contains("default_permissions", mounts, StringComparison.Ordinal);
        box.UnmountAndCheck(image);
        box.WaitForServersToEnd();
        Assert.Equal("", box.Run("ls", "-A", "m").Expect());
    }

    [SkippableFact]
    public void Read_only_files_have_their_modes_and_refuse_writers()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        string before = box.Hash(image);
        string raw = box.MountReadOnly(image);
        Assert.Equal("400", box.Run("stat", "-c", "%a", raw).Expect());
        Assert.Equal("500", box.Run("stat", "-c", "%a", "m").Expect());
        Assert.Contains("Read-only file system", box.Shell($"echo x > {raw}").Errors, StringComparison.Ordinal);
        Assert.Contains("Read-only file system", box.Run("truncate", "-s", "1M", raw).Errors, StringComparison.Ordinal);
        box.Run("cmp", "-n", "67108864", raw, "/dev/zero").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(before, box.Hash(image));
    }

    [SkippableTheory]
    [InlineData("512")]
    [InlineData("128", "--cache=none")] // its memory is given out
    public void Files_that_the_kernel_caches_are_read_ahead_far_enough(string expected, params string[] options)
    {
        using Sandbox box = new();
        Tools.Require(box.Run("test", "-w", "/sys/class/bdi").ExitCode == 0, "sysfs cannot be written here");
        string image = box.Make("qcow2", "64M");
        box.Run("mkdir", "m").Expect();
        box.QcowFs(["mount", .. options, image, "m"]).Expect();
        Assert.Equal(expected, box.Shell("cat /sys/class/bdi/$(mountpoint -d m)/read_ahead_kb").Expect().Trim());
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableTheory]
    [MemberData(nameof(Disks.Formats), MemberType = typeof(Disks))]
    public void A_regular_file_is_covered_and_is_the_disk(string format)
    {
        using Sandbox box = new();
        string image = box.Make(format, "64M");
        File.WriteAllText(box.Path + "/target", "covered");
        string[] stated = format == "raw" ? ["-f", "raw"] : [];
        box.QcowFs(["mount", "-w", .. stated, image, "target"]).Expect();
        Assert.Equal("67108864 600", box.Run("stat", "-c", "%s %a", "target").Expect());
        box.Shell("echo hello | dd of=target bs=1M seek=3 conv=notrunc,fsync status=none").Expect();
        box.QcowFs("umount", "target").Expect();
        Assert.Equal("covered", File.ReadAllText(box.Path + "/target"));
        box.Check(image);
        // The image itself may be the mount point.
        box.QcowFs(["mount", .. stated, image, image]).Expect();
        Assert.Equal("67108864", box.Run("stat", "-c", "%s", image).Expect());
        Assert.Equal("hello", box.Shell($"dd if={image} bs=5 skip=3M count=1 iflag=skip_bytes status=none").Expect());
        box.QcowFs("umount", image).Expect();
    }

    [SkippableFact]
    public void The_command_line_shows_what_is_mounted_and_the_server_is_on_its_own()
    {
        using Sandbox box = new();
        string image = box.Make("raw", "1M");
        box.MakeDirectory("m");
        // The pipes of the caller must end with the command, or this call would not return.
        box.Shell($"exec 9>held; $QCOWFS mount -f raw ./{image} m/ | cat").Expect();
        int server = Assert.Single(box.Servers());
        Assert.Equal($"qcowfs\0mount\0-f\0raw\0./{image}\0m/\0", File.ReadAllText($"/proc/{server}/cmdline"));
        Assert.Equal(server.ToString(), File.ReadAllText($"/proc/{server}/stat").Split(' ')[5]); // leader of its session
        foreach (string fd in new[] { "0", "1", "2" })
            Assert.Equal("/dev/null", new FileInfo($"/proc/{server}/fd/{fd}").LinkTarget);
        Assert.DoesNotContain($"{box.Path}/held", Directory.GetFiles($"/proc/{server}/fd").Select(f => new FileInfo(f).LinkTarget));
        Assert.Equal("/", new FileInfo($"/proc/{server}/cwd").LinkTarget);
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void Umount_prints_the_receipt()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        string raw = box.MountWritable(image);
        box.Shell($"dd if=/dev/urandom of={raw} bs=1M count=4 conv=notrunc status=none").Expect();
        box.Run("fallocate", "-p", "-o", "1M", "-l", "1M", raw).Expect();
        using JsonDocument json = JsonDocument.Parse(box.QcowFs("umount", "--json", "m").Expect());
        Assert.Equal($"{box.Path}/m", json.RootElement.GetProperty("mountpoint").GetString());
        JsonElement entry = Assert.Single(json.RootElement.GetProperty("images").EnumerateArray());
        Assert.Equal(
            ["name", "replayed", "written", "discarded", "shared", "check", "error"], entry.EnumerateObject().Select(p => p.Name));
        Assert.Equal(image, entry.GetProperty("name").GetString());
        Assert.Equal(4 << 20, entry.GetProperty("written").GetInt64());
        Assert.Equal(1 << 20, entry.GetProperty("discarded").GetInt64());
        Assert.Equal(JsonValueKind.Null, entry.GetProperty("error").ValueKind);
        Assert.Equal("clean", entry.GetProperty("check").GetString());
        raw = box.MountWritable(image);
        box.Shell($"echo x | dd of={raw} conv=notrunc status=none").Expect();
        Assert.Equal("disk.qcow2: 2 B written, 0 B discarded, check: clean; closed and durable", box.QcowFs("umount", "m").Expect());
        Assert.Contains("2 B written", File.ReadAllText(box.Path + "/run/qcowfs/qcowfs.log"), StringComparison.Ordinal);
    }

    /// <summary>What a server holds, such as the file system that the image lies on, is free when the unmount returns.</summary>
    [SkippableFact]
    public void Umount_returns_when_the_server_has_ended()
    {
        using Sandbox box = new();
        Tools.Require("strace");
        box.MountWritable(box.Make("raw", "1M"));
        int server = Assert.Single(box.Servers());
        // The server's end takes two seconds longer than it would.
        using Process strace = box.Start("strace", "-f", "-p", $"{server}", "-o", "/dev/null", "-e", "inject=exit_group:delay_enter=2000000");
        Assert.Contains("attached", strace.StandardError.ReadLine()!, StringComparison.Ordinal);
        box.QcowFs("umount", "m").Expect();
        Assert.Empty(box.Servers());
        strace.WaitForExit();
    }

    [SkippableFact]
    public void Umount_names_who_holds_the_mount_and_lazy_waits()
    {
        using Sandbox box = new();
        string image = box.Make("raw", "64M");
        string raw = box.MountWritable(image);
        using Process holder = box.Start("bash", "-c", $"exec 3<>{raw}; echo open; read wait; echo -n abc >&3; exec 3>&-; read wait");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        Assert.Equal(
            $"qcowfs: m: in use by bash (process {holder.Id}); end that first, or give --lazy", box.QcowFs("umount", "m").ExpectError());
        using Process umount = box.Start(Sandbox.Program, "umount", "--lazy", "m");
        while (box.Run("mountpoint", "-q", "m").ExitCode == 0)
        {
        }
        Assert.False(umount.HasExited); // it waits for the last close
        holder.StandardInput.WriteLine();
        Assert.Equal("disk.img: 3 B written, 0 B discarded; closed and durable", umount.StandardOutput.ReadLine());
        umount.WaitForExit();
        Assert.Equal(0, umount.ExitCode);
        holder.StandardInput.WriteLine();
        holder.WaitForExit();
        Assert.Equal("abc", box.Run("head", "-c", "3", image).Expect());
    }

    [SkippableTheory]
    [InlineData("umount m")]
    [InlineData("fusermount3 -u m")]
    [InlineData("umount -l m")]
    public void Any_other_unmount_closes_the_image_properly(string command)
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        string raw = box.MountWritable(image);
        box.Shell($"dd if=/dev/urandom of={raw} bs=1M count=4 conv=notrunc status=none; sha256sum < {raw} > before; {command}").Expect();
        box.WaitForServersToEnd();
        box.Check(image);
        Assert.StartsWith(box.HashByQemu(image), File.ReadAllText(box.Path + "/before"), StringComparison.Ordinal);
        Assert.Contains("4 MiB written, 0 B discarded, check: clean; closed and durable", File.ReadAllText(box.Path + "/run/qcowfs/qcowfs.log"), StringComparison.Ordinal);
        Assert.Empty(Directory.GetFiles(box.Path + "/run/qcowfs", "*.sock"));
    }

    [SkippableFact]
    public void SIGTERM_serves_until_the_last_close_and_ends_with_0()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.MakeDirectory("m");
        using Process server = box.Start(Sandbox.Program, "mount", "-w", "--foreground", image, "m");
        while (box.Run("mountpoint", "-q", "m").ExitCode != 0) Assert.False(server.HasExited);
        using Process holder = box.Start("bash", "-c", $"exec 3<>m/{image}.raw; echo open; read wait; echo -n abc >&3; exec 3>&-; read wait");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        box.Run("kill", "-TERM", server.Id.ToString()).Expect();
        while (box.Run("mountpoint", "-q", "m").ExitCode == 0) Assert.False(server.HasExited);
        Assert.False(server.HasExited);
        holder.StandardInput.WriteLine();
        Assert.Equal("disk.qcow2: 3 B written, 0 B discarded, check: clean; closed and durable", server.StandardOutput.ReadLine());
        server.WaitForExit();
        Assert.Equal(0, server.ExitCode);
        holder.StandardInput.WriteLine();
        holder.WaitForExit();
        box.Check(image);
        Assert.Equal("abc", box.Shell($"qemu-io -f qcow2 -c 'read -v 0 16' {image} | head -1").Expect().Split("  ")[^1].TrimEnd('.')[..3]);
    }

    [SkippableFact]
    public void A_second_SIGTERM_is_a_kill()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        string raw = box.MountWritable(image);
        using Process holder = box.Start("bash", "-c", $"exec 3<>{raw}; echo open; read wait");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        int server = Assert.Single(box.Servers());
        box.Run("kill", "-TERM", server.ToString()).Expect();
        while (box.Run("mountpoint", "-q", "m").ExitCode == 0)
        {
        }
        box.Run("kill", "-TERM", server.ToString()).Expect();
        Sandbox.WaitForEnd(server);
        holder.StandardInput.WriteLine();
        holder.WaitForExit();
        box.Run("qemu-img", "check", "-q", image).Expect();
    }

    [SkippableFact]
    public void A_dead_servers_mount_is_cleaned_up_and_said_so()
    {
        using Sandbox box = new();
        string image = box.Make("raw", "64M");
        box.MountWritable(image);
        int server = Assert.Single(box.Servers());
        box.Run("kill", "-KILL", server.ToString()).Expect();
        Sandbox.WaitForEnd(server);
        Assert.Equal(
            $"qcowfs: m: {box.Path}/{image} is mounted there already; run \"qcowfs umount m\" first",
            box.QcowFs("mount", "-f", "raw", image, "m").ExpectError());
        using (JsonDocument list = JsonDocument.Parse(box.QcowFs("list", "--json").Expect()))
            Assert.Equal("dead", list.RootElement.EnumerateArray().Single(IsHere).GetProperty("state").GetString());
        Assert.Equal(
            $"qcowfs: m: its server had died; the stale mount is removed; run \"qcowfs check {box.Path}/{image}\"",
            box.QcowFs("umount", "m").ExpectError());
        Assert.Empty(Directory.GetFiles(box.Path + "/run/qcowfs", "*.sock"));
        box.MountWritable(image);
        box.QcowFs("umount", "m").Expect();

        bool IsHere(JsonElement mount) => mount.GetProperty("mountpoint").GetString() == box.Path + "/m";
    }

    [SkippableFact]
    public void List_tells_what_is_mounted()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "1G");
        string raw = box.MountWritable(image);
        using Process holder = box.Start("bash", "-c", $"exec 3<>{raw}; echo open; read wait");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        int server = Assert.Single(box.Servers());
        using JsonDocument json = JsonDocument.Parse(box.QcowFs("list", "--json").Expect());
        JsonElement mount = json.RootElement.EnumerateArray().Single(m => m.GetProperty("mountpoint").GetString() == box.Path + "/m");
        Assert.Equal($"{box.Path}/{image}", mount.GetProperty("source").GetString());
        Assert.Equal(server, mount.GetProperty("pid").GetInt32());
        Assert.True(mount.GetProperty("writable").GetBoolean());
        JsonElement held = Assert.Single(mount.GetProperty("images").EnumerateArray());
        Assert.Equal("qcow2", held.GetProperty("format").GetString());
        Assert.Equal(1L << 30, held.GetProperty("virtual-size").GetInt64());
        Assert.Equal(1, held.GetProperty("opens").GetInt32());
        Assert.Contains(
            $"{box.Path}/m  {box.Path}/{image}  qcow2  1 GiB  writable  1 open  pid {server}", box.QcowFs("list").Expect(), StringComparison.Ordinal);
        holder.StandardInput.WriteLine();
        holder.WaitForExit();
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void Only_the_owner_and_root_may_ask_the_server()
    {
        using Sandbox box = new();
        string image = box.Make("raw", "1M");
        box.MountReadOnly(image);
        Outcome refused = box.ShellAsUser("XDG_RUNTIME_DIR=$PWD/run $QCOWFS umount m");
        Assert.Equal(1, refused.ExitCode);
        Assert.Equal(0, box.Run("mountpoint", "-q", "m").ExitCode);
        box.QcowFs("umount", "m").Expect();
    }
}
