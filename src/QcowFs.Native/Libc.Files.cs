// Files and block devices: open, positional transfer, space, length, durability, facts, locks.
using System.Runtime.InteropServices;
using System.Runtime.InteropServices.Marshalling;

namespace QcowFs.Native;

public static unsafe partial class Libc
{
    /// <summary>Directory argument of the *at functions: relative names start at the working directory.</summary>
    public const int AT_FDCWD = -100;
    /// <summary>statx: the path is empty, the descriptor itself is meant.</summary>
    public const int AT_EMPTY_PATH = 0x1000;

    /// <summary>open: read only.</summary>
    public const int O_RDONLY = 0;
    /// <summary>open: write only.</summary>
    public const int O_WRONLY = 1;
    /// <summary>open: read and write.</summary>
    public const int O_RDWR = 2;
    /// <summary>open: make the file where it does not exist.</summary>
    public const int O_CREAT = 0x40;
    /// <summary>open: with O_CREAT, fail with EEXIST where the name exists, a symbolic link included.</summary>
    public const int O_EXCL = 0x80;
    /// <summary>open: a terminal does not become the controlling one.</summary>
    public const int O_NOCTTY = 0x100;
    /// <summary>open: do not wait for the other side of a FIFO; no effect on regular files.</summary>
    public const int O_NONBLOCK = 0x800;
    /// <summary>open: the descriptor does not outlive execve.</summary>
    public const int O_CLOEXEC = 0x80000;
    /// <summary>open: a name only, no access to the content.</summary>
    public const int O_PATH = 0x200000;
    /// <summary>open: transfers bypass the page cache. The value depends on the architecture.</summary>
    public static int O_DIRECT { get; } = IsArm64 ? 0x10000 : 0x4000;
    /// <summary>open: fail with ENOTDIR unless the name is a directory. The value depends on the architecture.</summary>
    public static int O_DIRECTORY { get; } = IsArm64 ? 0x4000 : 0x10000;
    /// <summary>open: fail with ELOOP where the last component is a symbolic link. The value depends on the architecture.</summary>
    public static int O_NOFOLLOW { get; } = IsArm64 ? 0x8000 : 0x20000;

    /// <summary>open: a file without a name in the directory that is given. The value depends on the architecture.</summary>
    public static int O_TMPFILE { get; } = 0x400000 | (IsArm64 ? 0x4000 : 0x10000);

    /// <summary>openat2: no component may leave the tree below the directory, not by "..", an absolute link or an absolute path.</summary>
    public const ulong RESOLVE_BENEATH = 0x08;
    /// <summary>openat2: no symbolic link in any component.</summary>
    public const ulong RESOLVE_NO_SYMLINKS = 0x04;
    /// <summary>openat2: no link of the kind that /proc/PID/fd holds.</summary>
    public const ulong RESOLVE_NO_MAGICLINKS = 0x02;

    /// <summary>lseek: from the start.</summary>
    public const int SEEK_SET = 0;
    /// <summary>lseek: from the end; on a block device the only portable way to its size.</summary>
    public const int SEEK_END = 2;
    /// <summary>lseek: the next byte that holds data; ENXIO where none follows.</summary>
    public const int SEEK_DATA = 3;
    /// <summary>lseek: the next hole; the end of the file counts as one.</summary>
    public const int SEEK_HOLE = 4;

    /// <summary>fallocate: do not change the length.</summary>
    public const int FALLOC_FL_KEEP_SIZE = 0x01;
    /// <summary>fallocate: give the range's space back; needs KEEP_SIZE.</summary>
    public const int FALLOC_FL_PUNCH_HOLE = 0x02;
    /// <summary>fallocate: make the range zero and keep its space.</summary>
    public const int FALLOC_FL_ZERO_RANGE = 0x10;

    /// <summary>statx mask: everything that stat(2) tells.</summary>
    public const uint STATX_BASIC_STATS = 0x7ff;
    /// <summary>statx mask: the alignment that direct I/O needs (Linux 6.1).</summary>
    public const uint STATX_DIOALIGN = 0x2000;

    /// <summary>Mode bits that hold the file type.</summary>
    public const int S_IFMT = 0xf000;
    /// <summary>Regular file.</summary>
    public const int S_IFREG = 0x8000;
    /// <summary>Block device.</summary>
    public const int S_IFBLK = 0x6000;
    /// <summary>Character device.</summary>
    public const int S_IFCHR = 0x2000;
    /// <summary>Directory.</summary>
    public const int S_IFDIR = 0x4000;

    /// <summary>fcntl: ask who would conflict with a lock of an open file description.</summary>
    public const int F_OFD_GETLK = 36;
    /// <summary>fcntl: take or drop a lock of the open file description, without waiting.</summary>
    public const int F_OFD_SETLK = 37;
    /// <summary>Shared lock.</summary>
    public const short F_RDLCK = 0;
    /// <summary>Exclusive lock.</summary>
    public const short F_WRLCK = 1;
    /// <summary>No lock.</summary>
    public const short F_UNLCK = 2;

    /// <summary>ioctl: logical sector size of a block device, an int.</summary>
    public const nuint BLKSSZGET = 0x1268;

    private const nuint FICLONERANGE = 0x4020940D;

    private const int OpenAt2Number = 437;

    /// <summary>open(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "open", SetLastError = true)]
    public static partial int Open([MarshalUsing(typeof(HostPathMarshaller))] string path, int flags, uint mode);

    /// <summary>openat(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "openat", SetLastError = true)]
    public static partial int OpenAt(int directory, [MarshalUsing(typeof(HostPathMarshaller))] string path, int flags, uint mode);

    /// <summary>openat2(2), Linux 5.6: opens under rules for how the path may be resolved.</summary>
    public static int OpenAt2(int directory, string path, int flags, uint mode, ulong resolve)
    {
        var how = new OpenHow { Flags = (uint)flags, Mode = mode, Resolve = resolve };
        return (int)SyscallOpenAt2(OpenAt2Number, directory, path, &how, (nuint)sizeof(OpenHow));
    }

    /// <summary>getdents64(2): the next entries of a directory (struct linux_dirent64), 0 at its end.</summary>
    [LibraryImport(LibraryName, EntryPoint = "getdents64", SetLastError = true)]
    public static partial nint GetDirectoryEntries(int directory, byte* buffer, nuint length);

    /// <summary>close(2). Never repeated: after EINTR the descriptor is gone all the same.</summary>
    [LibraryImport(LibraryName, EntryPoint = "close", SetLastError = true)]
    public static partial int Close(int fd);

    /// <summary>pread(2). May transfer less than asked; 0 at the end of the file.</summary>
    [LibraryImport(LibraryName, EntryPoint = "pread", SetLastError = true)]
    public static partial nint Pread(int fd, byte* buffer, nuint count, long offset);

    /// <summary>pwrite(2). May transfer less than asked.</summary>
    [LibraryImport(LibraryName, EntryPoint = "pwrite", SetLastError = true)]
    public static partial nint Pwrite(int fd, byte* buffer, nuint count, long offset);

    /// <summary>preadv(2). May transfer less than asked.</summary>
    [LibraryImport(LibraryName, EntryPoint = "preadv", SetLastError = true)]
    public static partial nint Preadv(int fd, Iovec* vectors, int count, long offset);

    /// <summary>pwritev(2). May transfer less than asked.</summary>
    [LibraryImport(LibraryName, EntryPoint = "pwritev", SetLastError = true)]
    public static partial nint Pwritev(int fd, Iovec* vectors, int count, long offset);

    /// <summary>fdatasync(2): content and what is needed to read it back are durable. Never repeated after a failure.</summary>
    [LibraryImport(LibraryName, EntryPoint = "fdatasync", SetLastError = true)]
    public static partial int Fdatasync(int fd);

    /// <summary>fsync(2); of a directory: its names are durable.</summary>
    [LibraryImport(LibraryName, EntryPoint = "fsync", SetLastError = true)]
    public static partial int Fsync(int fd);

    /// <summary>fallocate(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "fallocate", SetLastError = true)]
    public static partial int Fallocate(int fd, int mode, long offset, long length);

    /// <summary>ftruncate(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "ftruncate", SetLastError = true)]
    public static partial int Ftruncate(int fd, long length);

    /// <summary>f_type of tmpfs (statfs(2)).</summary>
    public const long TMPFS_MAGIC = 0x01021994;

    /// <summary>fstatfs(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "fstatfs", SetLastError = true)]
    public static partial int Fstatfs(int fd, out StatFsData facts);

    /// <summary>lseek(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "lseek", SetLastError = true)]
    public static partial long Lseek(int fd, long offset, int whence);

    /// <summary>statx(2), Linux 4.11.</summary>
    [LibraryImport(LibraryName, EntryPoint = "statx", SetLastError = true)]
    public static partial int Statx(
        int directory, [MarshalUsing(typeof(HostPathMarshaller))] string path, int flags, uint mask, StatxData* result);

    /// <summary>fcntl(2) with a lock structure.</summary>
    [LibraryImport(LibraryName, EntryPoint = "fcntl", SetLastError = true)]
    public static partial int FcntlLock(int fd, int command, Flock* fileLock);

    /// <summary>ioctl(2) with a pointer argument.</summary>
    [LibraryImport(LibraryName, EntryPoint = "ioctl", SetLastError = true)]
    public static partial int Ioctl(int fd, nuint request, void* argument);

    /// <summary>ioctl(2) FICLONERANGE: makes a range of a file share the blocks of a range of another.</summary>
    public static int Clone(int target, CloneRange range) => Ioctl(target, FICLONERANGE, &range);

    /// <summary>getrandom(2). May give less than asked, above 256 bytes.</summary>
    [LibraryImport(LibraryName, EntryPoint = "getrandom", SetLastError = true)]
    public static partial nint GetRandom(byte* buffer, nuint length, uint flags);

    [LibraryImport(LibraryName, EntryPoint = "syscall", SetLastError = true)]
    private static partial nint SyscallOpenAt2(
        nint number, nint directory, [MarshalUsing(typeof(HostPathMarshaller))] string path, OpenHow* how, nuint size);

    /// <summary>One pread(2) into a span.</summary>
    public static nint Pread(int fd, Span<byte> buffer, long offset)
    {
        fixed (byte* pointer = buffer)
            return Pread(fd, pointer, (nuint)buffer.Length, offset);
    }

    /// <summary>One pwrite(2) from a span.</summary>
    public static nint Pwrite(int fd, ReadOnlySpan<byte> buffer, long offset)
    {
        fixed (byte* pointer = buffer)
            return Pwrite(fd, pointer, (nuint)buffer.Length, offset);
    }

    /// <summary>statx(2) of an open file.</summary>
    public static int Statx(int fd, uint mask, out StatxData result)
    {
        fixed (StatxData* pointer = &result)
            return Statx(fd, "", AT_EMPTY_PATH, mask, pointer);
    }

    /// <summary>statx(2) of what a path leads to.</summary>
    public static int Statx(string path, uint mask, out StatxData result)
    {
        fixed (StatxData* pointer = &result)
            return Statx(AT_FDCWD, path, 0, mask, pointer);
    }

    /// <summary>statx(2) of a name in a directory.</summary>
    public static int Statx(int directory, string name, int flags, out StatxData result)
    {
        fixed (StatxData* pointer = &result)
            return Statx(directory, name, flags, STATX_BASIC_STATS, pointer);
    }

    /// <summary>getdents64(2) into a span.</summary>
    public static nint GetDirectoryEntries(int directory, Span<byte> buffer)
    {
        fixed (byte* pointer = buffer)
            return GetDirectoryEntries(directory, pointer, (nuint)buffer.Length);
    }

    /// <summary>fcntl(2) with a lock structure.</summary>
    public static int FcntlLock(int fd, int command, ref Flock fileLock)
    {
        fixed (Flock* pointer = &fileLock)
            return FcntlLock(fd, command, pointer);
    }

    /// <summary>The logical sector size of a block device.</summary>
    public static int BlockDeviceSectorSize(int fd, out int size)
    {
        fixed (int* pointer = &size)
            return Ioctl(fd, BLKSSZGET, pointer);
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct OpenHow
    {
        public ulong Flags;
        public ulong Mode;
        public ulong Resolve;
    }
}

/// <summary>struct iovec: one piece of memory of a vectored transfer.</summary>
[StructLayout(LayoutKind.Sequential)]
public unsafe struct Iovec
{
    /// <summary>First byte.</summary>
    public byte* Base;
    /// <summary>Bytes.</summary>
    public nuint Length;
}

/// <summary>struct flock of 64-bit Linux.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct Flock
{
    /// <summary>F_RDLCK, F_WRLCK or F_UNLCK.</summary>
    public short Type;
    /// <summary>SEEK_SET.</summary>
    public short Whence;
    /// <summary>First byte of the range.</summary>
    public long Start;
    /// <summary>Bytes; 0 means to the end of the file and beyond.</summary>
    public long Length;
    /// <summary>Owner as F_OFD_GETLK tells it: -1 for a lock of an open file description. Must be 0 when asking.</summary>
    public int Pid;
}

/// <summary>struct statfs as all 64-bit architectures lay it out.</summary>
[StructLayout(LayoutKind.Explicit, Size = 120)]
public struct StatFsData
{
    /// <summary>f_type: which file system.</summary>
    [FieldOffset(0)]
    public long Type;

    /// <summary>f_bsize: the unit of the counts, in bytes.</summary>
    [FieldOffset(8)]
    public long BlockSize;

    /// <summary>f_bavail: blocks that an ordinary user may still take.</summary>
    [FieldOffset(32)]
    public long AvailableBlocks;
}

/// <summary>struct statx: the one stat structure whose layout is the same on every architecture.</summary>
[StructLayout(LayoutKind.Explicit, Size = 256)]
public struct StatxData
{
    /// <summary>Which fields the file system filled.</summary>
    [FieldOffset(0)] public uint Mask;
    /// <summary>Preferred I/O size in bytes.</summary>
    [FieldOffset(4)] public uint BlockSize;
    /// <summary>Hard links.</summary>
    [FieldOffset(16)] public uint LinkCount;
    /// <summary>Owner.</summary>
    [FieldOffset(20)] public uint UserId;
    /// <summary>Group.</summary>
    [FieldOffset(24)] public uint GroupId;
    /// <summary>Type and permission bits.</summary>
    [FieldOffset(28)] public ushort Mode;
    /// <summary>Inode number.</summary>
    [FieldOffset(32)] public ulong Inode;
    /// <summary>Length in bytes.</summary>
    [FieldOffset(40)] public ulong Size;
    /// <summary>Allocated space in units of 512 bytes.</summary>
    [FieldOffset(48)] public ulong Blocks;
    /// <summary>Last change of the content: seconds since 1970.</summary>
    [FieldOffset(112)] public long ModifiedSeconds;
    /// <summary>Last change of the content: nanoseconds of the second.</summary>
    [FieldOffset(120)] public uint ModifiedNanoseconds;
    /// <summary>Of a device node: major number.</summary>
    [FieldOffset(128)] public uint DeviceNodeMajor;
    /// <summary>Of a device node: minor number.</summary>
    [FieldOffset(132)] public uint DeviceNodeMinor;
    /// <summary>File system's device: major number.</summary>
    [FieldOffset(136)] public uint DeviceMajor;
    /// <summary>File system's device: minor number.</summary>
    [FieldOffset(140)] public uint DeviceMinor;
    /// <summary>Alignment of memory for direct I/O; 0 where the file cannot do it.</summary>
    [FieldOffset(152)] public uint DirectMemoryAlignment;
    /// <summary>Alignment of offset and length for direct I/O; 0 where the file cannot do it.</summary>
    [FieldOffset(156)] public uint DirectOffsetAlignment;
}

/// <summary>struct file_clone_range.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct CloneRange
{
    /// <summary>Descriptor of the file that has the blocks.</summary>
    public long Source;
    /// <summary>Where in it.</summary>
    public ulong SourceOffset;
    /// <summary>How many bytes; 0: to its end.</summary>
    public ulong SourceLength;
    /// <summary>Where they are to appear.</summary>
    public ulong TargetOffset;
}
