// Opening host files by name. Every name that comes from a user is opened by Open, every name that comes from inside an image by
// OpenBeneath or by a caller whose policy allows more.
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>What a host file is opened for.</summary>
public enum StorageAccess
{
    /// <summary>Read-only.</summary>
    Read,
    /// <summary>Read and write.</summary>
    Write,
    /// <summary>Makes the file, which must not exist, to read and write it. The name is durable after
    /// <see cref="HostFiles.SyncDirectory"/>.</summary>
    Create,
}

/// <summary>Opens host files. Thread-safe. Failures are <see cref="StorageException"/>.</summary>
public static class HostFiles
{
    // A rename elsewhere in the tree during the walk makes openat2 give up with EAGAIN; it says so, and a new walk is right.
    private const int BeneathAttempts = 32;

    /// <summary>Opens a regular file or block device by name. With <paramref name="directIo"/> its transfers bypass the host's page
    /// cache; EOPNOTSUPP where the file system cannot.</summary>
    public static FileStorage Open(string path, StorageAccess access, bool directIo = false)
    {
        int fd = Libc.Open(path, Flags(access, directIo), CreationMode);
        return Own(fd, Libc.LastErrno, path, access, directIo);
    }

    /// <summary>
    /// Opens a file below a directory. No component of <paramref name="relativePath"/> may leave the directory, be it by "..", by a
    /// symbolic link or by an absolute path (EXDEV), at whatever moment someone changes the tree. <paramref name="name"/> is what
    /// error messages call the file. With <paramref name="noLinks"/> no component may be a symbolic link (ELOOP).
    /// </summary>
    public static FileStorage OpenBeneath(
        SafeFileHandle directory, string relativePath, string name, StorageAccess access, bool directIo = false, bool noLinks = false)
    {
        ulong rules = Libc.RESOLVE_BENEATH | Libc.RESOLVE_NO_MAGICLINKS | (noLinks ? Libc.RESOLVE_NO_SYMLINKS : 0);
        uint mode = access == StorageAccess.Create ? CreationMode : 0;
        int fd = -1;
        for (int attempt = 0; attempt < BeneathAttempts; attempt++)
        {
            fd = Libc.OpenAt2((int)directory.DangerousGetHandle(), relativePath, Flags(access, directIo), mode, rules);
            if (fd >= 0 || Libc.LastErrno is not (Errno.EAGAIN or Errno.EINTR))
                break;
        }
        GC.KeepAlive(directory);
        return Own(fd, Libc.LastErrno, name, access, directIo);
    }

    /// <summary>Opens a file by a path that starts at a directory and may lead anywhere. <paramref name="name"/> is what error messages
    /// call it.</summary>
    public static FileStorage OpenAt(SafeFileHandle directory, string relativePath, string name, StorageAccess access, bool directIo)
    {
        int fd = Libc.OpenAt((int)directory.DangerousGetHandle(), relativePath, Flags(access, directIo), CreationMode);
        Errno failure = Libc.LastErrno;
        GC.KeepAlive(directory);
        return Own(fd, failure, name, access, directIo);
    }

    /// <summary>Opens a directory, to open files beneath it. The caller owns the handle.</summary>
    public static SafeFileHandle OpenDirectory(string path)
    {
        int fd = Libc.Open(path, Libc.O_RDONLY | Libc.O_DIRECTORY | Libc.O_CLOEXEC, 0);
        return fd >= 0 ? new SafeFileHandle(fd, ownsHandle: true) : throw new StorageException(Libc.LastErrno, "open", path);
    }

    /// <summary>The length of a regular file, without opening it; null where there is none, it cannot be seen, or it is anything else, a symbolic link
    /// among them.</summary>
    public static long? TryGetLength(string path) =>
        Libc.Status(path, Libc.AT_SYMLINK_NOFOLLOW, out StatxData facts) == Errno.None && (facts.Mode & Libc.S_IFMT) == Libc.S_IFREG ? (long)facts.Size : null;

    /// <summary>Makes the names in a directory durable: a new, renamed or removed file survives a crash only after this.</summary>
    public static void SyncDirectory(string path)
    {
        using SafeFileHandle directory = OpenDirectory(path);
        if (Libc.Fsync((int)directory.DangerousGetHandle()) != 0)
            throw new StorageException(Libc.LastErrno, "sync", path);
    }

    /// <summary>Whether two paths lead to the same file, which is opened by neither. False where one leads nowhere.</summary>
    public static bool AreSame(string first, string second) =>
        Libc.Status(first, 0, out StatxData one) == Errno.None && Libc.Status(second, 0, out StatxData other) == Errno.None
        && (one.DeviceMajor, one.DeviceMinor, one.Inode) == (other.DeviceMajor, other.DeviceMinor, other.Inode);

    /// <summary>Removes a file's name. No fault where there is none.</summary>
    public static void Delete(string path)
    {
        try
        {
            File.Delete(path);
        }
        catch (UnauthorizedAccessException)
        {
            throw new StorageException(Errno.EACCES, "delete", path);
        }
    }

    /// <summary>Makes a file without a name, to read and write: its space is free again when it is closed, however the process ends.
    /// It lies in <paramref name="directory"/>, or where that cannot be written in $TMPDIR, /var/tmp or /tmp.</summary>
    /// <param name="directory">The directory that is tried first.</param>
    /// <param name="name">What error messages call the file.</param>
    /// <param name="directIo">Whether transfers bypass the host's page cache.</param>
    public static FileStorage CreateUnnamed(string directory, string name, bool directIo = false)
    {
        Errno failure = Errno.None;
        foreach (string? place in (string?[])[directory, Environment.GetEnvironmentVariable("TMPDIR"), "/var/tmp", "/tmp"])
        {
            if (string.IsNullOrEmpty(place))
                continue;
            int fd = OpenUnnamed(place, directIo);
            if (fd >= 0)
                return Own(fd, Errno.None, name, StorageAccess.Create, directIo);
            // What is said of the place beside the image tells most.
            failure = failure == Errno.None ? Libc.LastErrno : failure;
            if (Libc.LastErrno is not (Errno.EROFS or Errno.EACCES or Errno.EPERM or Errno.ENOENT or Errno.ENOTDIR))
                break;
        }

        throw new StorageException(failure, "create", name);
    }

    /// <summary>Makes a file without a name in a directory and nowhere else: EOPNOTSUPP where its file system knows no such files.</summary>
    internal static FileStorage CreateUnnamed(SafeFileHandle directory, string name)
    {
        int fd = Libc.OpenAt((int)directory.DangerousGetHandle(), ".", Libc.O_TMPFILE | Libc.O_RDWR | Libc.O_EXCL | Libc.O_CLOEXEC, PrivateMode);
        Errno failure = fd < 0 ? Libc.LastErrno : Errno.None;
        GC.KeepAlive(directory);
        return Own(fd, failure, name, StorageAccess.Create, directIo: false);
    }

    private static int OpenUnnamed(string directory, bool directIo)
    {
        const int attempts = 100;
        int direct = directIo ? Libc.O_DIRECT : 0;
        int fd = Libc.Open(directory, Libc.O_TMPFILE | Libc.O_RDWR | Libc.O_EXCL | Libc.O_CLOEXEC | direct, PrivateMode);
        // Kernels say EISDIR and file systems EOPNOTSUPP where they do not know such files: then a name exists for a moment.
        for (int attempt = 0; fd < 0 && Libc.LastErrno is Errno.EOPNOTSUPP or Errno.EISDIR or Errno.EEXIST && attempt < attempts; attempt++)
        {
            string path = Path.Join(directory, FormattableString.Invariant($".qcowfs-overlay-{Environment.ProcessId}-{attempt}"));
            fd = Libc.Open(path, Libc.O_CREAT | Libc.O_EXCL | Libc.O_RDWR | Libc.O_CLOEXEC | direct, PrivateMode);
            if (fd >= 0)
                Delete(path);
        }

        return fd;
    }

    /// <summary>Gives a file the permission bits <paramref name="mode"/>.</summary>
    public static void SetMode(FileStorage file, int mode)
    {
        try
        {
            File.SetUnixFileMode(file.Handle, (UnixFileMode)(mode & 0x1FF));
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new StorageException(Errno.EACCES, "chmod", file.Name);
        }
    }

    private const uint CreationMode = 0x1b6; // 0666, cut by the umask
    private const uint PrivateMode = 0x180; // 0600

    // O_NONBLOCK: opening a FIFO or a terminal that a name leads to must not hang before its type can be seen and refused.
    private static int Flags(StorageAccess access, bool directIo) =>
        Libc.O_CLOEXEC | Libc.O_NOCTTY | Libc.O_NONBLOCK | (directIo ? Libc.O_DIRECT : 0) | access switch
        {
            StorageAccess.Read => Libc.O_RDONLY,
            StorageAccess.Write => Libc.O_RDWR,
            _ => Libc.O_RDWR | Libc.O_CREAT | Libc.O_EXCL,
        };

    private static FileStorage Own(int fd, Errno failure, string name, StorageAccess access, bool directIo)
    {
        if (fd < 0)
        {
            // A file system without direct I/O says EINVAL to O_DIRECT; nothing else in our flags earns that.
            bool refusesDirect = directIo && failure == Errno.EINVAL;
            throw new StorageException(refusesDirect ? Errno.EOPNOTSUPP : failure, refusesDirect ? "direct I/O" : "open", name);
        }
        var handle = new SafeFileHandle(fd, ownsHandle: true);
        try
        {
            RequireFileOrDevice(fd, name);
            return new FileStorage(handle, name, access == StorageAccess.Read, directIo);
        }
        catch
        {
            handle.Dispose();
            throw;
        }
    }

    private static void RequireFileOrDevice(int fd, string name)
    {
        if (Libc.Statx(fd, Libc.STATX_BASIC_STATS, out StatxData facts) != 0)
            throw new StorageException(Libc.LastErrno, "stat", name);
        int type = facts.Mode & Libc.S_IFMT;
        if (type == Libc.S_IFDIR)
            throw new StorageException(Errno.EISDIR, "open", name);
        if (type is not (Libc.S_IFREG or Libc.S_IFBLK))
            throw new StorageException(Errno.EOPNOTSUPP, "open (neither a regular file nor a block device)", name);
    }
}
