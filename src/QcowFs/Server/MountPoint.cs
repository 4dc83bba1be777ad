// Judging a mount point before anything is opened or mounted.
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>A mount point that can be used.</summary>
/// <param name="Path">Canonical path, as the kernel's list of mounts will show it.</param>
/// <param name="IsFile">A regular file, which the mount covers; else a directory.</param>
internal sealed record MountPoint(string Path, bool IsFile)
{
    /// <summary>Checks the mount point that was given, or says what is wrong with it.</summary>
    public static MountPoint Check(string given, bool mayBeFull)
    {
        Errno errno = Libc.Canonical(given, out string path);
        if (errno == Errno.ENOENT) throw new CommandFailure(given, "no such mount point", "create an empty directory there first");
        if (errno != Errno.None) throw new CommandFailure(given, ErrnoText.Describe(errno), "choose another mount point");
        // Asked before its facts: those of a mount that is there would come from its server, which may be dead or stopped.
        if (MountTable.FindTop(path) is { IsOurs: true } there)
            throw new CommandFailure(given, $"{there.Source} is mounted there already", $"run \"qcowfs umount {given}\" first");
        errno = Libc.Status(path, 0, out StatxData facts);
        if (errno == Errno.ENOTCONN)
            throw new CommandFailure(given, "a mount whose server has died is there", $"run \"fusermount3 -u {given}\" first");
        if (errno != Errno.None) throw new CommandFailure(given, ErrnoText.Describe(errno), "choose another mount point");
        int type = facts.Mode & Libc.S_IFMT;
        if (type is not (Libc.S_IFDIR or Libc.S_IFREG))
            throw new CommandFailure(given, "neither a directory nor a regular file", "choose another mount point");
        if (type == Libc.S_IFDIR && !mayBeFull) RequireEmpty(given, path);
        return new MountPoint(path, type == Libc.S_IFREG);
    }

    // Through a descriptor, since the runtime cannot name every directory.
    private static void RequireEmpty(string given, string path)
    {
        int fd = Libc.Open(path, Libc.O_RDONLY | Libc.O_DIRECTORY | Libc.O_CLOEXEC, 0);
        Errno errno = Libc.LastErrno;
        if (fd < 0) throw new CommandFailure(given, ErrnoText.Describe(errno), "choose a mount point of yours");
        using SafeFileHandle directory = new(fd, ownsHandle: true);
        using IEnumerator<string> entries = Directory.EnumerateFileSystemEntries(
            "/proc/self/fd/" + fd.ToString(System.Globalization.CultureInfo.InvariantCulture)).GetEnumerator();
        if (entries.MoveNext()) throw new CommandFailure(given, "the directory is not empty", "choose an empty one, or give --nonempty");
    }
}
