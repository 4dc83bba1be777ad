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

        // Another test may have been given the same device since.
        string backing = $"/sys/block/{Path.GetFileName(loop)}/loop/backing_file";
        Assert.False(File.Exists(backing) && File.ReadAllText(backing).StartsWith(box.Path, StringComparison.Ordinal));
    }

    private static Process Prepare(Sandbox box, out int server, out string loop)
    {
        string image = box.Make("raw", "64M");
        string raw = box.MountWritable(image);
        loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"mkfs.ext4 -q {loop}; mkdir fs; mount {loop} fs; echo x > fs/x; sync").Expect();
        server = Assert.Single(box.Servers());
        box.Run("kill", "-STOP", $"{server}").Expect();
        return box.Start("cat", raw); // waits in the kernel for an answer that does not come
    }
}
