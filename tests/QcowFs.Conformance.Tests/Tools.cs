// What the tests need of the machine. A person's run skips loudly what cannot run; CI fails.
using Xunit;

namespace QcowFs.Conformance.Tests;

internal static class Tools
{
    /// <summary>The program under test: the release build where the runner names it, else the build of the referenced project.</summary>
    public static string Program { get; } =
        Environment.GetEnvironmentVariable("QCOWFS_PROGRAM") is { Length: > 0 } given ? given : AppContext.BaseDirectory + "qcowfs";

    private static bool InCI => Environment.GetEnvironmentVariable("CI") is { Length: > 0 } ci && ci != "false";

    /// <summary>Skips the test where a program is missing.</summary>
    public static void Require(params string[] programs)
    {
        foreach (string program in programs)
        {
            string[] places = [.. (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':'), "/usr/sbin", "/sbin"];
            Need(places.Any(p => File.Exists($"{p}/{program}")), $"{program} is not installed (make deps)");
        }
    }

    public static void RequireRootAndFuse()
    {
        Need(Environment.IsPrivilegedProcess, "needs root, for a mount namespace of its own");
        Need(File.Exists("/dev/fuse"), "/dev/fuse is missing");
        Require("unshare", "nsenter", "setpriv");
    }

    public static void RequireLoopDevices() => Need(File.Exists("/dev/loop-control"), "there are no loop devices");

    private static void Need(bool present, string why)
    {
        if (present) return;
        if (InCI) Assert.Fail(why);
        Skip.If(true, why);
    }
}
