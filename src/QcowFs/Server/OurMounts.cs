// The mount that a person means by a path.
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>Finds our mounts.</summary>
internal static class OurMounts
{
    /// <summary>The mount at a path, or what is wrong with it.</summary>
    public static MountEntry At(string given)
    {
        Errno errno = Libc.Canonical(given, out string path);
        if (errno == Errno.ENOENT) throw new CommandFailure(given, "no such file or directory", "see \"qcowfs list\"");
        if (errno != Errno.None) throw new CommandFailure(given, ErrnoText.Describe(errno), "see \"qcowfs list\"");
        MountEntry mount = MountTable.FindTop(path) ?? throw new CommandFailure(given, "nothing is mounted there", "see \"qcowfs list\"");
        return mount.IsOurs ? mount : throw new CommandFailure(given, $"the mount there is {mount.Type}, not ours", $"run \"umount {given}\"");
    }
}
