// Passthrough: the kernel serves a file of ours out of a host file.
using Microsoft.Win32.SafeHandles;
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>
/// Host files that the kernel may serve files of this connection out of. An open that is answered with
/// <see cref="FuseOpenFlags.Passthrough"/> and an id reads, writes and maps the host file with the open flags of the caller and the rights
/// of this process; the size that the file system states bounds nothing. FSYNC, FALLOCATE, LSEEK and SETATTR come to the file system
/// all the same. Thread-safe.
/// </summary>
public interface IBackingFiles
{
    /// <summary>Makes a host file known to the kernel, which keeps it until <see cref="Close"/> and the last open that uses it. EPERM:
    /// this process has no CAP_SYS_ADMIN in the first user namespace; EINVAL: it is no regular file; ELOOP: it lies on a stacked file
    /// system; ENOTTY, EOPNOTSUPP: the kernel was built without it.</summary>
    Errno TryOpen(SafeFileHandle file, out int id);

    /// <summary>Gives an id back. Opens that use the file go on.</summary>
    void Close(int id);
}

/// <summary>The one implementation.</summary>
internal sealed unsafe class BackingFiles(FuseDevice device) : IBackingFiles
{
    public Errno TryOpen(SafeFileHandle file, out int id)
    {
        id = 0;
        bool isHeld = false;
        try
        {
            file.DangerousAddRef(ref isHeld);
            var map = new BackingMap { Descriptor = (int)file.DangerousGetHandle() };
            Errno errno = device.Control(BackingMap.OpenRequest, &map, out int given);
            id = errno == Errno.None ? given : 0;
            return errno;
        }
        finally
        {
            if (isHeld) file.DangerousRelease();
        }
    }

    public void Close(int id)
    {
        uint given = (uint)id;
        // Fails only for an id that is not ours, or on a connection that is over and has let go of all.
        _ = device.Control(BackingMap.CloseRequest, &given, out _);
    }
}
