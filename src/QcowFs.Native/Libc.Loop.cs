// Loop devices: <linux/loop.h>.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

public static unsafe partial class Libc
{
    /// <summary>ioctl on /dev/loop-control: the number of a device that is free.</summary>
    public const nuint LOOP_CTL_GET_FREE = 0x4C82;
    // Attaches a file with all its settings in one step (Linux 5.8).
    private const nuint LOOP_CONFIGURE = 0x4C0A;
    /// <summary>ioctl: detaches, when the last one closes the device.</summary>
    public const nuint LOOP_CLR_FD = 0x4C01;

    /// <summary>Loop flag: not to be written.</summary>
    public const uint LO_FLAGS_READ_ONLY = 1;
    /// <summary>Loop flag: the kernel looks for partitions.</summary>
    public const uint LO_FLAGS_PARTSCAN = 8;
    /// <summary>Loop flag: the file is read and written past the page cache.</summary>
    public const uint LO_FLAGS_DIRECT_IO = 16;

    /// <summary>ioctl(2) with an integer argument.</summary>
    [LibraryImport(LibraryName, EntryPoint = "ioctl", SetLastError = true)]
    public static partial int IoctlWithInteger(int fd, nuint request, nint argument);

    /// <summary>LOOP_CONFIGURE.</summary>
    public static Errno ConfigureLoop(int device, LoopConfiguration configuration) =>
        Ioctl(device, LOOP_CONFIGURE, &configuration) == 0 ? Errno.None : LastErrno;
}

/// <summary>struct loop_config, with the fields of struct loop_info64 that are used.</summary>
[StructLayout(LayoutKind.Explicit, Size = 304)]
public unsafe struct LoopConfiguration
{
    // The 0 at the end included.
    private const int FileNameSize = 64;

    /// <summary>Descriptor of the file.</summary>
    [FieldOffset(0)]
    public uint Descriptor;
    /// <summary>Logical sector size in bytes.</summary>
    [FieldOffset(4)]
    public uint SectorSize;
    /// <summary>LO_FLAGS_*.</summary>
    [FieldOffset(60)]
    public uint Flags;
    [FieldOffset(64)]
    private fixed byte _fileName[FileNameSize];

    /// <summary>States what LOOP_GET_STATUS shows as the file; cut where it is too long.</summary>
    public void SetFileName(ReadOnlySpan<byte> name)
    {
        fixed (byte* start = _fileName)
            name[..Math.Min(name.Length, FileNameSize - 1)].CopyTo(new Span<byte>(start, FileNameSize));
    }
}
