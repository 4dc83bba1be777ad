// One descriptor of a connection: receiving requests, sending replies, and the one place that knows what the device's errors mean.
using System.Diagnostics;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>A descriptor of a FUSE connection. Several threads may use one; the kernel hands each request to one reader.</summary>
internal sealed unsafe class FuseDevice : IDisposable
{
    public const string Path = "/dev/fuse";

    private const nuint CloneRequest = 0x8004E500; // FUSE_DEV_IOC_CLONE = _IOR(229, 0, uint32_t)

    private readonly SafeFileHandle _handle;
    private readonly int _descriptor;

    /// <summary>Takes the handle over. The number is kept beside it because counting references of the handle around every call would
    /// be the dearest part of a small request; the session closes a device only when no thread uses it any more.</summary>
    public FuseDevice(SafeFileHandle handle)
    {
        _handle = handle;
        _descriptor = (int)handle.DangerousGetHandle();
    }

    /// <summary>The descriptor's number; good until the device is disposed.</summary>
    public int Descriptor => _descriptor;

    /// <summary>Whether this is the real device, and not something else that speaks its protocol.</summary>
    public bool IsCharacterDevice
        => Libc.Statx(_descriptor, Libc.STATX_BASIC_STATS, out StatxData facts) == 0 && (facts.Mode & Libc.S_IFMT) == Libc.S_IFCHR;

    /// <summary>Opens /dev/fuse; the handle is invalid where the error number says why not.</summary>
    public static SafeFileHandle OpenNew(out Errno errno)
    {
        int descriptor = Libc.Open(Path, Libc.O_RDWR | Libc.O_CLOEXEC, 0);
        errno = descriptor < 0 ? Libc.LastErrno : Errno.None;
        return new SafeFileHandle(descriptor, ownsHandle: true);
    }

    /// <summary>A further descriptor of the same connection, with a queue of its own for replies; null where /dev/fuse cannot be
    /// opened here, or this is no FUSE device, and the descriptor is to be shared.</summary>
    public FuseDevice? TryClone()
    {
        SafeFileHandle clone = OpenNew(out Errno errno);
        uint source = (uint)_descriptor;
        if (errno == Errno.None && Libc.Ioctl((int)clone.DangerousGetHandle(), CloneRequest, &source) == 0) return new FuseDevice(clone);
        clone.Dispose();
        return null;
    }

    /// <summary>ioctl(2) on the device.</summary>
    public Errno Control(nuint request, void* argument, out int result)
    {
        result = Libc.Ioctl(_descriptor, request, argument);
        return result < 0 ? Libc.LastErrno : Errno.None;
    }

    /// <summary>Waits for a request. Gives its length, or 0 at the end of the connection, which <paramref name="end"/> then tells:
    /// ENODEV is an unmount, ECONNABORTED an abort, None the other end of a socket.</summary>
    public int Receive(byte* buffer, int capacity, out Errno end)
    {
        end = Errno.None;
        bool isOver = false;
        while (true)
        {
            nint length = Libc.Read(_descriptor, buffer, (nuint)capacity);
            if (length >= 0) return (int)length;
            end = Libc.LastErrno;
            switch (end)
            {
                // Interrupted, or the request was withdrawn between its announcement and the read.
                case Errno.EINTR:
                case Errno.ENOENT:
                    continue;
                case Errno.EAGAIN:
                    AwaitReadable();
                    continue;
                // Also said of a request that was taken at the very moment of an unmount. What is read when the connection is over is true.
                case Errno.ECONNABORTED when !isOver:
                    AwaitEnd();
                    isOver = true;
                    continue;
                default:
                    return 0;
            }
        }
    }

    /// <summary>Sends one reply or notification. ENOENT means that nobody waits for it any more.</summary>
    public Errno Send(byte* message, int length)
    {
        while (true)
        {
            nint sent = Libc.Write(_descriptor, message, (nuint)length);
            if (sent == length) return Errno.None;
            if (sent >= 0) return Errno.EIO;
            Errno errno = Libc.LastErrno;
            if (errno is not (Errno.EINTR or Errno.EAGAIN)) return errno;
            if (errno == Errno.EAGAIN) AwaitWritable();
        }
    }

    /// <summary>Whether an error of <see cref="Receive"/> or <see cref="Send"/> says that the connection is over.</summary>
    public static bool IsEnd(Errno errno) => errno is Errno.ENODEV or Errno.ECONNABORTED or Errno.ENOTCONN or Errno.EPIPE;

    public void Dispose() => _handle.Dispose();

    /// <summary>A handed-in descriptor may be non-blocking; the threads here are not.</summary>
    private void AwaitReadable() => Await(Libc.POLLIN);

    private void AwaitWritable() => Await(Libc.POLLOUT);

    /// <summary>The kernel says POLLERR, which is always asked for, when no reader waits any more; that is some instructions away.</summary>
    private void AwaitEnd() => Await(0, timeout: 1000);

    private void Await(short events, int timeout = Timeout.Infinite)
    {
        var descriptor = new PollDescriptor { Descriptor = _descriptor, Events = events };
        int ready = Libc.Poll(&descriptor, 1, timeout);
        Debug.Assert(ready >= 0 || Libc.LastErrno == Errno.EINTR, "poll of a device fails only when interrupted");
    }
}
