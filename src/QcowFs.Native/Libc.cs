// The C library, as thin as it can be: one declaration per function, raw descriptors and pointers, errno left to the caller.
// Who loops on EINTR and short transfers is FileStorage (files) and the FUSE channels (devices), each in one place.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

/// <summary>
/// Functions of libc, declared blittable. A negative result means failure; <see cref="LastErrno"/> then says why, until the
/// thread's next native call. Structures and constants are right on x86-64 and arm64. Descriptors are plain numbers: the caller
/// keeps the owning handle alive across the call.
/// </summary>
public static partial class Libc
{
    private const string LibraryName = "libc";

    /// <summary>The error number of this thread's last failed call.</summary>
    public static Errno LastErrno => (Errno)Marshal.GetLastPInvokeError();

    private static bool IsArm64 { get; } = RuntimeInformation.ProcessArchitecture == Architecture.Arm64;
}
