// io_uring's three system calls, which libc does not wrap, the mappings that a ring needs, and where a thread runs. IoUring is what is
// made of them.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

public static unsafe partial class Libc
{
    // The same on every architecture.
    private const nint SYS_io_uring_setup = 425;
    private const nint SYS_io_uring_enter = 426;
    private const nint SYS_io_uring_register = 427;

    internal const int PROT_READ = 1;
    internal const int PROT_WRITE = 2;
    internal const int MAP_SHARED = 1;
    internal const int MAP_POPULATE = 0x8000;

    /// <summary>io_uring_setup(2): a descriptor of a new ring.</summary>
    internal static int RingSetup(uint entries, IoUringParameters* parameters) =>
        (int)Syscall(SYS_io_uring_setup, (nint)entries, (nint)parameters, 0, 0, 0, 0);

    /// <summary>io_uring_enter(2): the number of submissions that were taken.</summary>
    internal static int RingEnter(int ring, uint submissions, uint completions, uint flags) =>
        (int)Syscall(SYS_io_uring_enter, ring, (nint)submissions, (nint)completions, (nint)flags, 0, 0);

    /// <summary>io_uring_register(2).</summary>
    internal static int RingRegister(int ring, uint operation, void* argument, uint count) =>
        (int)Syscall(SYS_io_uring_register, ring, (nint)operation, (nint)argument, (nint)count, 0, 0);

    /// <summary>mmap(2); -1 in place of an address where it fails.</summary>
    [LibraryImport(LibraryName, EntryPoint = "mmap", SetLastError = true)]
    internal static partial nint Map(nint address, nuint length, int protection, int flags, int fd, long offset);

    /// <summary>munmap(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "munmap", SetLastError = true)]
    internal static partial int Unmap(nint address, nuint length);

    /// <summary>sched_getaffinity(2): the processors that a thread (0: this one) may run on, one bit for each.</summary>
    [LibraryImport(LibraryName, EntryPoint = "sched_getaffinity", SetLastError = true)]
    public static partial int GetAffinity(int thread, nuint length, ulong* processors);

    /// <summary>sched_setaffinity(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "sched_setaffinity", SetLastError = true)]
    public static partial int SetAffinity(int thread, nuint length, ulong* processors);

    [LibraryImport(LibraryName, EntryPoint = "syscall", SetLastError = true)]
    private static partial nint Syscall(nint number, nint first, nint second, nint third, nint fourth, nint fifth, nint sixth);
}

/// <summary>struct io_uring_params: what is asked of a new ring, and where its parts lie.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct IoUringParameters
{
    public uint SubmissionEntries;
    public uint CompletionEntries;
    public uint Flags;
    public uint PollThreadProcessor;
    public uint PollThreadIdle;
    public uint Features;
    public uint WorkQueue;
    public uint Reserved0;
    public uint Reserved1;
    public uint Reserved2;
    public SubmissionOffsets Submissions;
    public CompletionOffsets Completions;

    /// <summary>struct io_sqring_offsets.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct SubmissionOffsets
    {
        public uint Head;
        public uint Tail;
        public uint RingMask;
        public uint RingEntries;
        public uint Flags;
        public uint Dropped;
        public uint Array;
        public uint Reserved;
        public ulong UserAddress;
    }

    /// <summary>struct io_cqring_offsets.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct CompletionOffsets
    {
        public uint Head;
        public uint Tail;
        public uint RingMask;
        public uint RingEntries;
        public uint Overflow;
        public uint Entries;
        public uint Flags;
        public uint Reserved;
        public ulong UserAddress;
    }
}
