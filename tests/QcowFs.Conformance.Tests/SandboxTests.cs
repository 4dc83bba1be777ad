// The sandbox keeps its own promise: whatever a test leaves, nothing of it is left.
using System.Diagnostics;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class SandboxTests
{
    [SkippableFact]
    public void A_server_that_hangs_with_a_file_system_on_top_is_cleaned_away()
    {
        Tools.Require("losetup", "mkfs.ext4");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        Sandbox box = new();
        using Process reader = Prepare(box, out int server, out string loop);
        box.Dispose();
        Assert.True(reader.HasExited || reader.WaitForExit(TimeSpan.FromMinutes(1)));
        Assert.Null(new FileInfo($"/proc/{server}/exe").LinkTarget); // ended; whether its parent has taken notice does not matter
        Assert.False(Directory.Exists(box.Path));

        // Another test may have been given the same device since. Without its mount the file has only its name left.
        string now = LoopDevice.BackingFileOf(Path.GetFileName(loop)) ?? "";
        Assert.False(now.StartsWith(box.Path, StringComparison.Ordinal) || now == "/disk.img.raw", now);
    }

    /// <summary>S3.</summary>
    [SkippableFact]
    public void A_namespace_keeps_no_file_system_of_others_alive()
    {
        Tools.Require("losetup", "mkfs.ext4");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        using Sandbox box = new();
        string raw = box.MountWritable(box.Make("raw", "64M"));
        string loop = box.Run("losetup", "--find", "--show", raw).Expect();
        box.Shell($"mkfs.ext4 -q {loop}; mkdir fs; mount {loop} fs").Expect();
        // One that stays for as long as its input is open.
        using Process other = box.Start("unshare", "--mount", "--propagation", "private", "sh", "-c", MountNamespace.DropForeignMounts + "cat /proc/mounts; echo end; read wait");
        List<string> seen = [];
        while (other.StandardOutput.ReadLine() is { } line && line != "end") seen.Add(line);
        Assert.NotEmpty(seen);
        Assert.DoesNotContain(seen, line => line.Contains($" {box.Path}/m ", StringComparison.Ordinal) || line.Contains($" {box.Path}/fs ", StringComparison.Ordinal));
        box.Shell($"umount fs; losetup -d {loop}").Expect();
        box.QcowFs("umount", "m").Expect();
        other.StandardInput.WriteLine();
        other.WaitForExit();
    }

    private static Process Prepare(Sandbox box, out int server, out string loop)
    {
        string image = box.Make("raw", "64M");
        string raw = box.MountWritable(image);
        loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"mkfs.ext4 -q {loop}; mkdir fs; mount {loop} fs; echo x > fs/x; sync -f fs").Expect();
        server = Assert.Single(box.Servers());
        box.Run("kill", "-STOP", $"{server}").Expect();
        return box.Start("cat", raw); // waits in the kernel for an answer that does not come
    }
}
