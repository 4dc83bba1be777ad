// Why a mount could not be made or removed, in a form that a program can branch on and a person can read.
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>What stood in the way of mounting or unmounting.</summary>
public enum FuseMountFailure
{
    /// <summary>Something else; the error number and the message say what.</summary>
    Other,
    /// <summary>The mount point does not exist.</summary>
    MountPointMissing,
    /// <summary>The mount point is neither a directory nor a regular file.</summary>
    MountPointUnusable,
    /// <summary>At the mount point stands a FUSE mount whose server has died.</summary>
    DeadMount,
    /// <summary>The user may not mount there.</summary>
    NotPermitted,
    /// <summary>/dev/fuse does not exist.</summary>
    DeviceMissing,
    /// <summary>/dev/fuse may not be opened.</summary>
    DeviceForbidden,
    /// <summary>Not privileged, and fusermount3 is not installed.</summary>
    MountProgramMissing,
    /// <summary>allow_other is not allowed to ordinary users.</summary>
    AllowOtherForbidden,
    /// <summary>The user has as many FUSE mounts as /etc/fuse.conf allows.</summary>
    TooManyMounts,
    /// <summary>Unmounting: files are open or a process works there.</summary>
    Busy,
    /// <summary>Unmounting: nothing is mounted there.</summary>
    NotMounted,
}

/// <summary>A mount could not be made or removed. <see cref="Exception.Message"/> is what is wrong, <see cref="Advice"/> what to do; both
/// are clauses without a full stop, for "path: what is wrong; what to do".</summary>
public sealed class FuseMountException : Exception
{
    internal FuseMountException(FuseMountFailure failure, Errno errno, string path, string what, string advice)
        : base(what)
    {
        Failure = failure;
        Errno = errno;
        Path = path;
        Advice = advice;
    }

    /// <summary>What stood in the way.</summary>
    public FuseMountFailure Failure { get; }

    /// <summary>The error number behind it, or <see cref="Errno.None"/> where a program gave words only.</summary>
    public Errno Errno { get; }

    /// <summary>The mount point or device in question.</summary>
    public string Path { get; }

    /// <summary>What to do about it.</summary>
    public string Advice { get; }
}
