// Mounting and unmounting: by the kernel directly where that is allowed, else through the set-user-id program fusermount3.
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>
/// A mount that this process made. It holds the connection's first descriptor until a session takes it. Disposing one does not
/// unmount: a mount outlives the object until it is unmounted or the last descriptor is closed.
/// </summary>
public sealed class FuseMount : IDisposable
{
    private SafeFileHandle? _device;

    private FuseMount(string mountPoint, SafeFileHandle device, bool direct)
    {
        MountPoint = mountPoint;
        _device = device;
        IsDirect = direct;
    }

    /// <summary>Absolute path of the mount point.</summary>
    public string MountPoint { get; }

    /// <summary>Whether mount(2) made it; else fusermount3 did.</summary>
    public bool IsDirect { get; }

    /// <summary>Mounts. Accesses wait until a session on <see cref="TakeDevice"/> has started. Never called for a mount point inside a
    /// mount that this very thread serves.</summary>
    /// <exception cref="FuseMountException">It could not be done.</exception>
    public static FuseMount Create(FuseMountOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        string mountPoint = Path.GetFullPath(options.MountPoint);
        uint mode = ModeOf(mountPoint);
        SafeFileHandle device = FuseDevice.OpenNew(out Errno errno);
        switch (errno)
        {
            case Errno.None:
                break;
            case Errno.EACCES or Errno.EPERM:
                return new FuseMount(mountPoint, Fusermount.Mount(mountPoint, options), direct: false);
            default:
                throw DeviceFailure(errno);
        }

        string data = MountOptionText.ForKernel(options, (int)device.DangerousGetHandle(), mode, Libc.GetUserId(), Libc.GetGroupId());
        if (Libc.Mount(options.Source, mountPoint, "fuse." + options.Subtype, MountOptionText.Flags(options), data) == 0)
            return new FuseMount(mountPoint, device, direct: true);
        errno = Libc.LastErrno;
        device.Dispose();
        return errno == Errno.EPERM
            ? new FuseMount(mountPoint, Fusermount.Mount(mountPoint, options), direct: false)
            : throw MountFailure(errno, mountPoint);
    }

    /// <summary>The descriptor of the connection, which becomes the caller's; callable once.</summary>
    public SafeFileHandle TakeDevice()
        => Interlocked.Exchange(ref _device, null) ?? throw new InvalidOperationException("The descriptor has been taken.");

    /// <summary>Unmounts; see <see cref="Unmount(string, bool)"/>.</summary>
    /// <exception cref="FuseMountException">It could not be done.</exception>
    public void Unmount(bool lazy) => Unmount(MountPoint, lazy);

    /// <summary>Unmounts any FUSE mount by its mount point. <paramref name="lazy"/>: takes it out of the tree at once, also while files
    /// are open; it ends at the last close.</summary>
    /// <exception cref="FuseMountException">It is busy, not a mount, or not ours to unmount.</exception>
    public static void Unmount(string mountPoint, bool lazy)
    {
        ArgumentNullException.ThrowIfNull(mountPoint);
        string path = Path.GetFullPath(mountPoint);
        if (Libc.Unmount(path, Libc.UMOUNT_NOFOLLOW | (lazy ? Libc.MNT_DETACH : 0)) == 0) return;
        Errno errno = Libc.LastErrno;
        if (errno != Errno.EPERM) throw UnmountFailure(errno, path);
        Fusermount.Unmount(path, lazy);
    }

    /// <summary>Closes the descriptor unless a session took it, which ends the connection.</summary>
    public void Dispose() => Interlocked.Exchange(ref _device, null)?.Dispose();

    private static unsafe uint ModeOf(string mountPoint)
    {
        StatxData facts;
        // The kernel is made to ask whoever serves the place now: a mount whose server has died says so only then, and would
        // otherwise be covered by ours.
        Errno errno = Libc.Statx(Libc.AT_FDCWD, mountPoint, 0, Libc.STATX_BASIC_STATS, &facts) == 0
            ? Errno.None
            : Libc.LastErrno;
        return errno switch
        {
            Errno.None when (facts.Mode & Libc.S_IFMT) is Libc.S_IFDIR or Libc.S_IFREG => facts.Mode,
            Errno.None => throw new FuseMountException(
                FuseMountFailure.MountPointUnusable, Errno.EINVAL, mountPoint,
                "the mount point is neither a directory nor a regular file", "choose another"),
            _ => throw MountFailure(errno, mountPoint),
        };
    }

    private static FuseMountException DeviceFailure(Errno errno) => errno switch
    {
        Errno.ENOENT => new(
            FuseMountFailure.DeviceMissing, errno, FuseDevice.Path,
            "the device does not exist", "load the fuse module, or give the container /dev/fuse"),
        Errno.ENODEV or Errno.ENXIO => new(
            FuseMountFailure.DeviceMissing, errno, FuseDevice.Path,
            "the kernel has no FUSE", "load the fuse module"),
        _ => new(
            FuseMountFailure.Other, errno, FuseDevice.Path,
            ErrnoText.Describe(errno), "see dmesg"),
    };

    private static FuseMountException MountFailure(Errno errno, string path) => errno switch
    {
        Errno.ENOENT => new(
            FuseMountFailure.MountPointMissing, errno, path,
            "the mount point does not exist", "create it"),
        Errno.ENOTDIR => new(
            FuseMountFailure.MountPointMissing, errno, path,
            "the mount point lies below something that is not a directory", "choose another"),
        Errno.EACCES => new(
            FuseMountFailure.NotPermitted, errno, path,
            "the mount point cannot be reached", "check the permissions of the directories above it"),
        Errno.ENOTCONN => new(
            FuseMountFailure.DeadMount, errno, path,
            "a mount whose server has died is in the way", "unmount it first"),
        Errno.ENODEV => new(
            FuseMountFailure.DeviceMissing, errno, path,
            "the kernel has no FUSE", "load the fuse module"),
        _ => new(
            FuseMountFailure.Other, errno, path,
            "mount: " + ErrnoText.Describe(errno), "see dmesg"),
    };

    private static FuseMountException UnmountFailure(Errno errno, string path) => errno switch
    {
        Errno.EBUSY => new(
            FuseMountFailure.Busy, errno, path,
            "the mount is in use", "close what is open there, or unmount lazily"),
        Errno.EINVAL => new(
            FuseMountFailure.NotMounted, errno, path,
            "nothing is mounted there", "check the path"),
        Errno.ENOENT => new(
            FuseMountFailure.MountPointMissing, errno, path,
            "the mount point does not exist", "check the path"),
        Errno.EACCES => new(
            FuseMountFailure.NotPermitted, errno, path,
            "the mount point cannot be reached", "check the permissions of the directories above it"),
        _ => new(
            FuseMountFailure.Other, errno, path,
            "umount: " + ErrnoText.Describe(errno), "see dmesg"),
    };
}
