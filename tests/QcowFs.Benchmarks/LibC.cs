// The few C library calls of the null server, through function pointers: no marshalling between the loop and the kernel.
using System.Runtime.InteropServices;
using System.Text;

namespace QcowFs.Benchmarks;

internal static unsafe class LibC
{
    public const int ReadWrite = 2;
    public const int CloseOnExec = 0x80000;
    public const int EINTR = 4, ENOENT = 2, EIO = 5, EAGAIN = 11, ENODEV = 19, ENOSYS = 38;

    private static readonly nint Library = NativeLibrary.Load("libc.so.6");

    public static readonly delegate* unmanaged<int, void*, nuint, nint> Read = (delegate* unmanaged<int, void*, nuint, nint>)Export("read");
    public static readonly delegate* unmanaged<int, void*, nuint, nint> Write = (delegate* unmanaged<int, void*, nuint, nint>)Export("write");
    public static readonly delegate* unmanaged<int, void*, nuint, long, nint> PRead = (delegate* unmanaged<int, void*, nuint, long, nint>)Export("pread64");
    public static readonly delegate* unmanaged<int, void*, nuint, long, nint> PWrite = (delegate* unmanaged<int, void*, nuint, long, nint>)Export("pwrite64");
    public static readonly delegate* unmanaged<int, int> DataSync = (delegate* unmanaged<int, int>)Export("fdatasync");
    public static readonly delegate* unmanaged<nint, nint, nint, nint, nint, nint, nint, nint> SystemCall =
        (delegate* unmanaged<nint, nint, nint, nint, nint, nint, nint, nint>)Export("syscall");

    private static readonly delegate* unmanaged<void*, nuint, int, int, int, long, nint> MapCall =
        (delegate* unmanaged<void*, nuint, int, int, int, long, nint>)Export("mmap64");
    private static readonly delegate* unmanaged<int, nuint, ulong*, int> AffinityCall = (delegate* unmanaged<int, nuint, ulong*, int>)Export("sched_setaffinity");
    private static readonly delegate* unmanaged<byte*, int, int, int> OpenCall = (delegate* unmanaged<byte*, int, int, int>)Export("open64");
    private static readonly delegate* unmanaged<int, nuint, void*, int> IoctlCall = (delegate* unmanaged<int, nuint, void*, int>)Export("ioctl");
    private static readonly delegate* unmanaged<int, void*, int> UsageCall = (delegate* unmanaged<int, void*, int>)Export("getrusage");
    private static readonly delegate* unmanaged<byte*, byte*, byte*, nuint, byte*, int> MountCall =
        (delegate* unmanaged<byte*, byte*, byte*, nuint, byte*, int>)Export("mount");

    /// <summary>Processor time of all children that have ended and been waited for, in seconds.</summary>
    public static double ChildrenSeconds()
    {
        const int Children = -1;
        long* usage = stackalloc long[18]; // struct rusage begins with two timevals: in user mode, in the kernel
        _ = Checked(UsageCall(Children, usage), "getrusage");
        return usage[0] + usage[2] + ((usage[1] + usage[3]) / 1e6);
    }

    public static int Open(string path, bool direct = false)
    {
        const int bypassCache = 0x4000; // O_DIRECT of x86; elsewhere the open fails and says so
        fixed (byte* bytes = Text(path))
        {
            return Checked(OpenCall(bytes, ReadWrite | CloseOnExec | (direct ? bypassCache : 0), 0), $"open {path}");
        }
    }

    /// <summary>FUSE_DEV_IOC_CLONE: a second descriptor of a connection, with a queue of its own.</summary>
    public static int CloneConnection(int connection)
    {
        int clone = Open("/dev/fuse");
        uint source = (uint)connection;
        _ = Checked(IoctlCall(clone, 0x8004e500, &source), "FUSE_DEV_IOC_CLONE");
        return clone;
    }

    /// <summary>FUSE_DEV_IOC_BACKING_OPEN: lets the kernel serve files of the connection out of a host file; gives its id.</summary>
    public static int OpenBacking(int connection, int file)
    {
        int* map = stackalloc int[4] { file, 0, 0, 0 };
        return Checked(IoctlCall(connection, 0x4010e501, map), "FUSE_DEV_IOC_BACKING_OPEN");
    }

    public static void Mount(string source, string target, string type, string options)
    {
        const nuint NoSetUid = 2, NoDevices = 4;
        fixed (byte* s = Text(source), t = Text(target), y = Text(type), o = Text(options))
        {
            _ = Checked(MountCall(s, t, y, NoSetUid | NoDevices, o), $"mount {target}");
        }
    }

    /// <summary>Memory that is shared with the kernel by a descriptor.</summary>
    public static byte* MapShared(int descriptor, long offset, uint length)
    {
        const int readWrite = 3, shared = 1;
        return (byte*)Checked(MapCall(null, length, readWrite, shared, descriptor, offset), "mmap");
    }

    /// <summary>The calling thread runs on one processor, or on any.</summary>
    public static void BindThread(int? processor)
    {
        const int words = 16;
        ulong* mask = stackalloc ulong[words];
        new Span<ulong>(mask, words).Fill(processor is null ? ulong.MaxValue : 0);
        if (processor is { } number) mask[number / 64] = 1UL << (number % 64);
        _ = AffinityCall(0, words * sizeof(ulong), mask);
    }

    private static int Checked(int result, string what) => (int)Checked((nint)result, what);

    public static nint Checked(nint result, string what) => result is >= 0 or < -1
        ? result
        : throw new IOException($"{what}: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastSystemError())}");

    private static byte[] Text(string text) => Encoding.UTF8.GetBytes(text + "\0");

    private static void* Export(string name) => (void*)NativeLibrary.GetExport(Library, name);
}
