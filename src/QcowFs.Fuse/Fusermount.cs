// The set-user-id program fusermount3: it mounts for an ordinary user and passes back the descriptor over a socket, whose number it
// is told in _FUSE_COMMFD. What it says when it fails is in words, which are turned into what a program can branch on here.
using System.Diagnostics;
using System.Globalization;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal static unsafe class Fusermount
{
    private const string Program = "fusermount3";
    private static readonly string[] FallbackDirectories = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"];

    public static SafeFileHandle Mount(string mountPoint, FuseMountOptions options)
    {
        string program = Find(mountPoint);
        (SafeFileHandle ours, SafeFileHandle theirs) = ConnectedSockets(mountPoint);
        using (ours)
        {
            ProcessStartInfo start = Command(program, "-o", MountOptionText.ForFusermount(options), "--", mountPoint);
            start.Environment["_FUSE_COMMFD"] = theirs.DangerousGetHandle().ToString(CultureInfo.InvariantCulture);
            string complaint;
            SafeFileHandle? device;
            using (Process process = Start(start, mountPoint))
            {
                // Ours of theirs is closed before the wait, so that its death is seen as the end of the socket.
                theirs.Dispose();
                device = ReceiveDescriptor((int)ours.DangerousGetHandle());
                complaint = process.StandardError.ReadToEnd();
                process.WaitForExit();
            }
            return device ?? throw MountFailure(complaint, mountPoint);
        }
    }

    public static void Unmount(string mountPoint, bool lazy)
    {
        ProcessStartInfo start = lazy
            ? Command(Find(mountPoint), "-u", "-z", "--", mountPoint)
            : Command(Find(mountPoint), "-u", "--", mountPoint);
        using Process process = Start(start, mountPoint);
        string complaint = process.StandardError.ReadToEnd();
        process.WaitForExit();
        if (process.ExitCode != 0) throw UnmountFailure(complaint, mountPoint);
    }

    private static string Find(string mountPoint)
    {
        string path = Environment.GetEnvironmentVariable("PATH") ?? "";
        string[] directories = path.Split(':', StringSplitOptions.RemoveEmptyEntries);
        foreach (string directory in directories.Concat(FallbackDirectories))
        {
            string candidate = Path.Combine(directory, Program);
            if (Path.IsPathRooted(candidate) && Exists(candidate)) return candidate;
        }
        throw new FuseMountException(
            FuseMountFailure.MountProgramMissing, Errno.ENOENT, mountPoint,
            "fusermount3, which mounts for ordinary users, is not installed", "install the package fuse3, or mount as root");
    }

    private static bool Exists(string path)
    {
        StatxData facts;
        return Libc.Statx(Libc.AT_FDCWD, path, 0, Libc.STATX_BASIC_STATS, &facts) == 0;
    }

    private static ProcessStartInfo Command(string program, params ReadOnlySpan<string> arguments)
    {
        var start = new ProcessStartInfo(program) { RedirectStandardError = true, UseShellExecute = false };
        foreach (string argument in arguments) start.ArgumentList.Add(argument);
        // Its words are read below, so they have to be English.
        start.Environment["LC_ALL"] = "C";
        return start;
    }

    private static Process Start(ProcessStartInfo start, string mountPoint)
    {
        try
        {
            return Process.Start(start)!;
        }
        catch (System.ComponentModel.Win32Exception exception)
        {
            throw new FuseMountException(
                FuseMountFailure.MountProgramMissing, (Errno)exception.NativeErrorCode, mountPoint,
                "fusermount3 cannot be started", "reinstall the package fuse3, or mount as root");
        }
    }

    /// <summary>Two connected sockets: ours is closed on exec, theirs is what the program inherits.</summary>
    private static (SafeFileHandle Ours, SafeFileHandle Theirs) ConnectedSockets(string mountPoint)
    {
        int* pair = stackalloc int[2];
        if (Libc.SocketPair(Libc.AF_UNIX, Libc.SOCK_STREAM | Libc.SOCK_CLOEXEC, 0, pair) != 0) throw NoSocket(Libc.LastErrno, mountPoint);
        var ours = new SafeFileHandle(pair[0], ownsHandle: true);
        var theirs = new SafeFileHandle(pair[1], ownsHandle: true);
        if (Libc.Fcntl(pair[1], Libc.F_SETFD, 0) == 0) return (ours, theirs);
        Errno errno = Libc.LastErrno;
        ours.Dispose();
        theirs.Dispose();
        throw NoSocket(errno, mountPoint);
    }

    private static FuseMountException NoSocket(Errno errno, string mountPoint)
        => new(FuseMountFailure.Other, errno, mountPoint, "no socket for fusermount3: " + ErrnoText.Describe(errno), "see ulimit -n");

    /// <summary>Takes the descriptor that comes with one byte (SCM_RIGHTS); null where the program ended without sending one.</summary>
    private static SafeFileHandle? ReceiveDescriptor(int socket)
    {
        const int controlHead = 16, controlLength = controlHead + 8;
        byte data;
        byte* control = stackalloc byte[controlLength];
        var vector = new Iovec { Base = &data, Length = 1 };
        nint received;
        do
        {
            var message = new MessageHeader { Vectors = &vector, VectorCount = 1, Control = control, ControlLength = controlLength };
            received = Libc.ReceiveMessage(socket, &message, Libc.MSG_CMSG_CLOEXEC);
            if (received > 0 && message.ControlLength >= controlHead + sizeof(int)
                && *(int*)(control + 8) == Libc.SOL_SOCKET && *(int*)(control + 12) == Libc.SCM_RIGHTS)
                return new SafeFileHandle(*(int*)(control + controlHead), ownsHandle: true);
        }
        while (received < 0 && Libc.LastErrno == Errno.EINTR);
        return null;
    }

    private static FuseMountException MountFailure(string complaint, string path)
    {
        (string Phrase, FuseMountFailure Failure, string What, string Advice)[] known =
        [
            ("user_allow_other", FuseMountFailure.AllowOtherForbidden,
                "allow_other is not allowed to ordinary users", "put a line user_allow_other into /etc/fuse.conf, or mount as root"),
            ("mount_max", FuseMountFailure.TooManyMounts,
                "you have as many FUSE mounts as are allowed", "unmount one, or raise mount_max in /etc/fuse.conf"),
            ("device not found", FuseMountFailure.DeviceMissing,
                "the kernel has no FUSE", "load the fuse module"),
            ("failed to open /dev/fuse", FuseMountFailure.DeviceForbidden,
                "/dev/fuse cannot be opened", "check that it exists and has mode 0666"),
            ("no write access to mountpoint", FuseMountFailure.NotPermitted,
                "an ordinary user needs write access to the mount point", "choose a directory of your own"),
            ("not owned by user", FuseMountFailure.NotPermitted,
                "an ordinary user has to own the mount point", "choose a directory of your own"),
            ("mounting over filesystem type", FuseMountFailure.NotPermitted,
                "an ordinary user may not mount over this kind of file system", "choose another mount point"),
            ("Transport endpoint is not connected", FuseMountFailure.DeadMount,
                "a mount whose server has died is in the way", "unmount it first"),
            ("Operation not permitted", FuseMountFailure.NotPermitted,
                "mounting is not permitted here", "check that fusermount3 is set-user-id root, and what the container allows"),
            ("Permission denied", FuseMountFailure.NotPermitted,
                "mounting is not permitted here", "check the permissions of the mount point"),
        ];
        foreach ((string phrase, FuseMountFailure failure, string what, string advice) in known)
        {
            if (complaint.Contains(phrase, StringComparison.OrdinalIgnoreCase)) return new(failure, Errno.None, path, what, advice);
        }
        return new(FuseMountFailure.Other, Errno.None, path, Words(complaint), "see dmesg");
    }

    private static FuseMountException UnmountFailure(string complaint, string path)
    {
        (string Phrase, FuseMountFailure Failure, Errno Errno, string What, string Advice)[] known =
        [
            ("busy", FuseMountFailure.Busy, Errno.EBUSY,
                "the mount is in use", "close what is open there, or unmount lazily"),
            ("not found in /etc/mtab", FuseMountFailure.NotMounted, Errno.EINVAL,
                "nothing of yours is mounted there", "check the path and the user"),
            ("Invalid argument", FuseMountFailure.NotMounted, Errno.EINVAL,
                "nothing is mounted there", "check the path"),
            ("No such file", FuseMountFailure.MountPointMissing, Errno.ENOENT,
                "the mount point does not exist", "check the path"),
            ("not permitted", FuseMountFailure.NotPermitted, Errno.EPERM,
                "the mount is not yours", "unmount it as the user who made it, or as root"),
        ];
        foreach ((string phrase, FuseMountFailure failure, Errno errno, string what, string advice) in known)
        {
            if (complaint.Contains(phrase, StringComparison.OrdinalIgnoreCase)) return new(failure, errno, path, what, advice);
        }
        return new(FuseMountFailure.Other, Errno.None, path, Words(complaint), "see dmesg");
    }

    /// <summary>The program's own words in one line.</summary>
    private static string Words(string complaint)
        => complaint.Trim().Length == 0 ? "fusermount3 failed without a word" : complaint.Trim().ReplaceLineEndings(", ");
}
