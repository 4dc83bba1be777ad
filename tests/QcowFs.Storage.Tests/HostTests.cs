// What other tests lean on: programs end with their test, namespaces hide their mounts, a missing tool is not passed over in CI.
using QcowFs.Testing;
using Xunit;
using Xunit.Sdk;

namespace QcowFs.Storage.Tests;

public sealed class HostTests
{
    [Fact]
    public void Program_gives_exit_code_output_and_errors()
    {
        ToolResult result = ChildProcess.Run("sh", "-c", "echo out; echo err >&2; exit 3");
        Assert.Equal((3, "out\n", "err\n"), (result.ExitCode, result.Output, result.Errors));
        Assert.Contains("err", Assert.ThrowsAny<XunitException>(() => result.MustSucceed()).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Disposing_ends_the_program_and_what_it_started()
    {
        string grandchild;
        using (ChildProcess child = ChildProcess.Start("sh", "-c", "sleep 1000 & echo $! ready; wait"))
        {
            child.WaitForText("ready");
            grandchild = child.Output.Split(' ')[0];
            Assert.True(Directory.Exists($"/proc/{grandchild}"));
        }
        // Killed; whoever reaps it may take a moment.
        Wait.Until(() => !Directory.Exists($"/proc/{grandchild}") || IsZombie(grandchild), "the grandchild is gone");
    }

    [Fact]
    public void Text_that_never_comes_fails_when_the_program_ends()
    {
        using ChildProcess child = ChildProcess.Start("echo", "something else");
        Assert.ThrowsAny<XunitException>(() => child.WaitForText("ready"));
    }

    [Fact]
    public void Hang_fails_the_test()
    {
        using ChildProcess child = ChildProcess.Start("sleep", "1000");
        Assert.ThrowsAny<XunitException>(() => child.WaitForExit(TimeSpan.FromMilliseconds(1)));
        Assert.True(child.HasExited);
    }

    [Fact]
    public void Missing_tool_skips_for_a_person_and_fails_in_CI()
    {
        Assert.Throws<Xunit.SkipException>(() => Tools.Require(condition: false, "no frobnicator", isCi: false));
        Assert.ThrowsAny<XunitException>(() => Tools.Require(condition: false, "no frobnicator", isCi: true));
        Tools.Require(condition: true, "", isCi: true);
        Assert.Null(Tools.Find("no-such-program-anywhere"));
        Assert.NotNull(Tools.Find("sh"));
    }

    [SkippableFact]
    public void Mount_in_a_namespace_is_seen_there_only_and_goes_with_it()
    {
        using var directory = new TempDirectory();
        string root;
        using (var mounts = new MountNamespace())
        {
            mounts.Run("mount", "-t", "tmpfs", "none", directory.Root).MustSucceed();
            mounts.Run("touch", directory["inside"]).MustSucceed();
            root = mounts.Root;
            Assert.True(File.Exists(root + directory["inside"]));
            Assert.False(File.Exists(directory["inside"]));
            ToolResult who = mounts.StartAs(65534, "id", "-u").WaitForExit();
            Assert.Equal("65534\n", who.Output);
        }
        Assert.DoesNotContain(directory.Root, File.ReadAllText("/proc/self/mountinfo"), StringComparison.Ordinal);
        Assert.False(Directory.Exists(root));
    }

    [Fact]
    public void Pattern_does_not_depend_on_how_it_is_cut()
    {
        byte[] whole = Pattern.Bytes(3, 1000, 5000);
        byte[] pieces = new byte[5000];
        for (int at = 0; at < pieces.Length; at += 37)
            Pattern.Fill(pieces.AsSpan(at, Math.Min(37, pieces.Length - at)), 3, 1000 + at);
        Assert.Equal(whole, pieces);
        Assert.NotEqual(whole, Pattern.Bytes(4, 1000, 5000));
        Assert.NotEqual(whole, Pattern.Bytes(3, 1008, 5000));
    }

    private static bool IsZombie(string process)
    {
        try
        {
            return File.ReadAllText($"/proc/{process}/stat").Contains(") Z ", StringComparison.Ordinal);
        }
        catch (IOException)
        {
            return true;
        }
    }
}
