// A mount namespace of a test's own: mounts made in it are invisible outside, and gone with its last process.
namespace QcowFs.Testing;

/// <summary>A private mount namespace, held by a sleeping process until disposed. Needs root. The processes that run in it are the
/// client side of a mount test: the test's own process must never touch a mount that it may have to kill the server of.</summary>
public sealed class MountNamespace : IDisposable
{
    /// <summary>A script for a new namespace, which has copies of all mounts of the one before. A copy keeps a file system alive after
    /// its own has been unmounted: so those of loop devices and of FUSE, which somebody may want to see end, are dropped, unless the
    /// working directory is on them.</summary>
    public const string DropForeignMounts =
        """
        cat /proc/mounts | while read -r source at type rest; do
            case $source:$type in /dev/loop*|*:fuse|*:fuse.*|*:fuseblk) ;; *) continue ;; esac
            case $PWD/ in "${at%/}"/*) continue ;; esac
            umount -i -l "$at" 2>/dev/null || : # -i: a helper would ask the server to unmount its own
        done

        """;

    private readonly ChildProcess _holder;

    public MountNamespace()
    {
        Tools.RequireRoot();
        Tools.Require("unshare", "nsenter", "setpriv");
        _holder = ChildProcess.Start("unshare", "--mount", "--propagation", "private", "sh", "-c", $"cd {Path.GetTempPath()}\n{DropForeignMounts}echo ready; exec sleep infinity");
        _holder.WaitForText("ready");
    }

    /// <summary>The root directory as the namespace sees it. Files on mounts with a kernel file system may be opened through it from
    /// outside; those on a mount of ours must not be.</summary>
    public string Root => $"/proc/{_holder.Id}/root";

    /// <summary>Where the kernel keeps the namespace, for what enters it by itself.</summary>
    public string NamespaceFile => $"/proc/{_holder.Id}/ns/mnt";

    /// <summary>Runs a program in the namespace to its end.</summary>
    public ToolResult Run(string program, params string[] arguments)
    {
        using ChildProcess child = Start(program, arguments);
        return child.WaitForExit();
    }

    /// <summary>Starts a program in the namespace.</summary>
    public ChildProcess Start(string program, params string[] arguments) =>
        ChildProcess.Start("nsenter", ["--target", $"{_holder.Id}", "--mount", "--", Tools.Find(program) ?? program, .. arguments]);

    /// <summary>Starts a program in the namespace as an ordinary user.</summary>
    public ChildProcess StartAs(int user, string program, params string[] arguments) =>
        Start("setpriv", [$"--reuid={user}", $"--regid={user}", "--clear-groups", Tools.Find(program) ?? program, .. arguments]);

    /// <summary>Lets ordinary users in the namespace open /dev/fuse, as udev would: where it is 0600 a node with 0666 covers it.</summary>
    public void OpenFuseToAll(TempDirectory directory)
    {
        Run("mknod", "-m", "0666", directory["fuse"], "c", "10", "229").MustSucceed();
        Run("mount", "--bind", directory["fuse"], "/dev/fuse").MustSucceed();
    }

    public void Dispose() => _holder.Dispose();
}
