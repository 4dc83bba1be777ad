// What the kernel is told about a fault. The session calls this in the one place where it catches.
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.FileSystem;

/// <summary>Turns faults into the error numbers that programs on the mount see.</summary>
public static class ErrorMap
{
    /// <summary>ENOSPC where the host has run out of space or quota, which passes when space is freed; EBUSY where somebody else uses an
    /// image that was to be opened or changed, which passes too; everything else is EIO, as from a disk: a host's EACCES or EBADF would tell a
    /// program on the mount something untrue about its own file.</summary>
    public static Errno ToErrno(Exception fault) => fault switch
    {
        StorageException { IsOutOfSpace: true } => Errno.ENOSPC,
        ImageInUseException or ImageBusyException => Errno.EBUSY,
        _ => Errno.EIO,
    };
}
