// Where a server leaves its control socket and its log, and where others look for them.
using System.Globalization;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>The runtime directory: $XDG_RUNTIME_DIR/qcowfs, else /run/qcowfs for root, else /tmp/qcowfs-UID.</summary>
internal static class RuntimeDirectory
{
    private const UnixFileMode Private = UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute;

    /// <summary>The directory of this process's user; made where it does not exist, refused where others could have put things in.</summary>
    public static string Create()
    {
        uint uid = Libc.GetUserId();
        string path = uid == 0 ? "/run/qcowfs" : string.Create(CultureInfo.InvariantCulture, $"/tmp/qcowfs-{uid}");
        // sudo may leave the variable of another user, whose directory is not for us.
        if (SessionDirectory() is { } session && Libc.Status(session, 0, out StatxData facts) == Errno.None && facts.UserId == uid)
            path = session + "/qcowfs";
        try
        {
            Directory.CreateDirectory(path, Private);
        }
        catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
        {
            throw new CommandFailure(path, "cannot be created", "set XDG_RUNTIME_DIR to a directory of yours");
        }
        return IsPrivateTo(path, uid)
            ? path
            : throw new CommandFailure(path, "is not a directory that only you can use", "remove it, or set XDG_RUNTIME_DIR");
    }

    /// <summary>Where a server of a user may have its socket: the environment of the one who mounted need not be ours. The kernel's list
    /// of sockets tells where it really is, unless it listens in another network namespace; the usual places are tried as well.</summary>
    /// <param name="uid">The user who mounted.</param>
    /// <param name="socketName">Name of the socket (<see cref="SocketName"/>).</param>
    public static IEnumerable<string> CandidatesFor(uint uid, string socketName)
    {
        List<string> paths = [.. Listening(socketName)];
        if (SessionDirectory() is { } session) paths.Add(session + "/qcowfs");
        paths.Add(string.Create(CultureInfo.InvariantCulture, $"/run/user/{uid}/qcowfs"));
        if (uid == 0) paths.Add("/run/qcowfs");
        paths.Add(string.Create(CultureInfo.InvariantCulture, $"/tmp/qcowfs-{uid}"));
        return paths.Distinct().Where(p => IsPrivateTo(p, uid));
    }

    /// <summary>Directories of sockets of that name. Lines of /proc/net/unix end with the path, where there is one.</summary>
    private static IEnumerable<string> Listening(string socketName)
    {
        string end = "/qcowfs/" + socketName;
        string[] lines;
        try
        {
            lines = File.ReadAllLines("/proc/net/unix");
        }
        catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
        {
            yield break;
        }
        foreach (string line in lines)
        {
            int path = line.IndexOf(" /", StringComparison.Ordinal) + 1;
            if (path > 0 && line.EndsWith(end, StringComparison.Ordinal)) yield return line[path..^(socketName.Length + 1)];
        }
    }

    /// <summary>Name of the control socket of the file system with a device number "0:53".</summary>
    public static string SocketName(string device) => $"mount-{device[(device.IndexOf(':', StringComparison.Ordinal) + 1)..]}.sock";

    private static string? SessionDirectory()
    {
        string? path = Environment.GetEnvironmentVariable("XDG_RUNTIME_DIR");
        return string.IsNullOrEmpty(path) || !Path.IsPathRooted(path) ? null : path.TrimEnd('/');
    }

    private static bool IsPrivateTo(string path, uint uid)
    {
        const int othersMayWrite = 0x12; // 0022
        return Libc.Status(path, Libc.AT_SYMLINK_NOFOLLOW, out StatxData facts) == Errno.None
            && (facts.Mode & Libc.S_IFMT) == Libc.S_IFDIR
            && facts.UserId == uid
            && (facts.Mode & othersMayWrite) == 0;
    }
}
