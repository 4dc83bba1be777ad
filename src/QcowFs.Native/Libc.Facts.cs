// What a path leads to, without opening its content: facts, and its one true name.
using System.Globalization;
using System.Runtime.InteropServices;
using System.Runtime.InteropServices.Marshalling;

namespace QcowFs.Native;

public static unsafe partial class Libc
{
    /// <summary>statx: a symbolic link itself is meant.</summary>
    public const int AT_SYMLINK_NOFOLLOW = 0x100;
    /// <summary>statx: ask the server, do not answer from a cache.</summary>
    public const int AT_STATX_FORCE_SYNC = 0x2000;

    /// <summary>statx(2) with the basic facts.</summary>
    public static Errno Status(string path, int flags, out StatxData facts)
    {
        StatxData found;
        int result = Statx(AT_FDCWD, path, flags, STATX_BASIC_STATS, &found);
        facts = found;
        return result == 0 ? Errno.None : LastErrno;
    }

    /// <summary>The path as the kernel writes it in /proc: absolute, without links. Reaches a mount's root without asking its server,
    /// so it neither hangs nor fails on a mount whose server is gone.</summary>
    public static Errno Canonical(string path, out string canonical)
    {
        canonical = path;
        int fd = Open(path, O_PATH | O_CLOEXEC, 0);
        if (fd < 0) return LastErrno;
        Errno errno = ReadLink("/proc/self/fd/" + fd.ToString(CultureInfo.InvariantCulture), out canonical);
        _ = Close(fd);
        return errno;
    }

    /// <summary>readlink(2).</summary>
    public static Errno ReadLink(string path, out string target)
    {
        const int longest = 4096;
        byte* buffer = stackalloc byte[longest];
        nint length = ReadLinkRaw(path, buffer, longest);
        Errno errno = length < 0 ? LastErrno : Errno.None;
        target = length < 0 ? "" : HostText.Decode(new ReadOnlySpan<byte>(buffer, (int)length));
        return errno;
    }

    [LibraryImport(LibraryName, EntryPoint = "readlink", SetLastError = true)]
    private static partial nint ReadLinkRaw([MarshalUsing(typeof(HostPathMarshaller))] string path, byte* buffer, nint size);
}
