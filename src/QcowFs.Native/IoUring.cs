// One io_uring ring, used by the thread that makes it: 128-byte submissions on one file, completions taken by that thread only.
//
// U1 One thread makes, uses and disposes a ring. The kernel is told so (SINGLE_ISSUER), and does what has to be done in the context of
//    that thread only while it is inside Enter (DEFER_TASKRUN): nothing of the ring's memory changes at any other time.
// U2 The submission queue has room for every operation that can be in flight, and so has the completion queue: neither overflows.
// U3 What the kernel has read or will read of a queue is published by a store with release, and looked at by a load with acquire.
using System.Diagnostics;
using System.Runtime.InteropServices;

namespace QcowFs.Native;

/// <summary>What became of one operation of an <see cref="IoUring"/>.</summary>
/// <param name="Tag">What the submission was tagged with.</param>
/// <param name="Result">The operation's result, or a negated error number.</param>
public readonly record struct IoUringCompletion(ulong Tag, int Result);

/// <summary>
/// A ring of the calling thread (Linux 6.13). All submissions are commands (IORING_OP_URING_CMD) on one file. Not thread-safe (U1).
/// </summary>
public sealed unsafe class IoUring : IDisposable
{
    /// <summary>Bytes of a command's own data in a submission.</summary>
    public const int CommandBytes = 80;

    private const uint SetupFlags = 1 << 10 /* SQE128 */ | 1 << 12 /* SINGLE_ISSUER */ | 1 << 13 /* DEFER_TASKRUN */ | 1 << 16 /* NO_SQARRAY */;
    private const long SubmissionEntriesOffset = 0x10000000;
    private const uint GetEvents = 1, RegisteredRing = 16;
    private const uint RegisterFiles = 2, RegisterRing = 20, SendMessage = 31;
    private const byte MessageRing = 40, Command = 46, FixedFile = 1;

    private readonly int _descriptor;
    private readonly uint _entries;
    private byte* _rings;
    private nuint _ringsLength;
    private byte* _submissions;
    private IoUringParameters _parameters;
    private uint* _submissionTail;
    private uint* _completionHead;
    private uint* _completionTail;
    private Completion* _completions;
    private uint _submissionMask, _completionMask;
    private uint _tail, _head;
    private uint _unsubmitted;

    // A number of this thread's own for the ring, which the kernel looks up at less cost than a descriptor; else the descriptor.
    private uint _enterFlags;
    private int _enterDescriptor;

    private IoUring(int descriptor, in IoUringParameters parameters)
    {
        _descriptor = descriptor;
        _enterDescriptor = descriptor;
        _parameters = parameters;
        _entries = parameters.SubmissionEntries;
    }

    /// <summary>Makes a ring for the calling thread, with room for <paramref name="entries"/> operations on <paramref name="file"/>, and
    /// sees that it works. Null where <paramref name="errno"/> says why not: ENOSYS and EINVAL from a kernel without it, EPERM from the sysctl
    /// kernel.io_uring_disabled or a filter of system calls, ENOMEM from a limit on locked memory.</summary>
    public static IoUring? TryCreate(int entries, int file, out Errno errno)
    {
        IoUringParameters parameters = new() { Flags = SetupFlags };
        int descriptor = Libc.RingSetup((uint)entries, &parameters);
        errno = descriptor < 0 ? Libc.LastErrno : Errno.None;
        if (errno != Errno.None) return null;
        var ring = new IoUring(descriptor, in parameters);
        errno = ring.Map();
        if (errno == Errno.None) errno = ring.Register(file);
        if (errno == Errno.None) errno = ring.Try();
        if (errno == Errno.None) return ring;
        ring.Dispose();
        return null;
    }

    /// <summary>Whether a completion can be taken without waiting.</summary>
    public bool HasCompletion => _head != Volatile.Read(ref *_completionTail); // U3

    /// <summary>Adds a command to what the next <see cref="Enter"/> submits, and gives its own data, which is zero, to be filled before that.
    /// <paramref name="vectors"/> is memory that is named in the submission, and stays as it is until that is taken.</summary>
    public Span<byte> Prepare(uint command, ulong tag, Iovec* vectors, int vectorCount)
    {
        Debug.Assert(_unsubmitted < _entries, "U2");
        byte* start = _submissions + ((nuint)(_tail & _submissionMask) * Submission.Size);
        new Span<byte>(start, Submission.Size).Clear();
        var submission = (Submission*)start;
        submission->Operation = Command;
        submission->Flags = FixedFile;
        submission->CommandCode = command;
        submission->Address = (ulong)vectors;
        submission->Length = (uint)vectorCount;
        submission->Tag = tag;
        _tail = unchecked(_tail + 1);
        _unsubmitted++;
        return new Span<byte>(start + Submission.CommandOffset, CommandBytes);
    }

    /// <summary>Submits what was prepared and, where <paramref name="wait"/> asks for it, waits for a completion: one system call. Returns early
    /// when a signal comes, so a completion need not be there.</summary>
    public Errno Enter(bool wait)
    {
        Volatile.Write(ref *_submissionTail, _tail); // U3
        int taken = Libc.RingEnter(_enterDescriptor, _unsubmitted, wait ? 1u : 0, _enterFlags | (wait ? GetEvents : 0));
        if (taken < 0) return Libc.LastErrno is var errno and not (Errno.EINTR or Errno.EAGAIN or Errno.EBUSY) ? errno : Errno.None;
        _unsubmitted -= (uint)taken;
        return Errno.None;
    }

    /// <summary>Takes the next completion.</summary>
    public bool TryTake(out IoUringCompletion completion)
    {
        completion = default;
        if (!HasCompletion) return false;
        Completion* next = _completions + (_head & _completionMask);
        completion = new IoUringCompletion(next->Tag, next->Result);
        _head = unchecked(_head + 1);
        Volatile.Write(ref *_completionHead, _head); // U3
        return true;
    }

    /// <summary>Makes a waiting <see cref="Enter"/> return, with a completion of that tag. Callable from any thread.</summary>
    public Errno Wake(ulong tag)
    {
        Submission message = new() { Operation = MessageRing, File = _descriptor, Offset = tag };
        Errno errno;
        while ((errno = Send(&message)) is Errno.ENOMEM or Errno.EINTR or Errno.EAGAIN) Thread.Yield(); // who sleeps must be woken
        return errno;
    }

    private static Errno Send(Submission* message) => Libc.RingRegister(-1, SendMessage, message, 1) < 0 ? Libc.LastErrno : Errno.None;

    /// <summary>Closes the ring. Operations in flight are cancelled by the kernel, and touch no memory any more (U1).</summary>
    public void Dispose()
    {
        if (_submissions is not null) _ = Libc.Unmap((nint)_submissions, SubmissionsLength);
        if (_rings is not null) _ = Libc.Unmap((nint)_rings, _ringsLength);
        _submissions = _rings = null;
        _ = Libc.Close(_descriptor);
    }

    private nuint SubmissionsLength => (nuint)_entries * Submission.Size;

    private Errno Map()
    {
        const int protection = Libc.PROT_READ | Libc.PROT_WRITE, flags = Libc.MAP_SHARED | Libc.MAP_POPULATE;
        _ringsLength = (nuint)(_parameters.Completions.Entries + (_parameters.CompletionEntries * (uint)sizeof(Completion)));
        nint rings = Libc.Map(0, _ringsLength, protection, flags, _descriptor, 0);
        if (rings == -1) return Libc.LastErrno;
        _rings = (byte*)rings;
        nint submissions = Libc.Map(0, SubmissionsLength, protection, flags, _descriptor, SubmissionEntriesOffset);
        if (submissions == -1) return Libc.LastErrno;
        _submissions = (byte*)submissions;
        _submissionTail = (uint*)(_rings + _parameters.Submissions.Tail);
        _submissionMask = *(uint*)(_rings + _parameters.Submissions.RingMask);
        _completionHead = (uint*)(_rings + _parameters.Completions.Head);
        _completionTail = (uint*)(_rings + _parameters.Completions.Tail);
        _completionMask = *(uint*)(_rings + _parameters.Completions.RingMask);
        _completions = (Completion*)(_rings + _parameters.Completions.Entries);
        _tail = *_submissionTail;
        _head = *_completionHead;
        return Errno.None;
    }

    /// <summary>The file and the ring itself are looked up once, here, and not with every operation.</summary>
    private Errno Register(int file)
    {
        if (Libc.RingRegister(_descriptor, RegisterFiles, &file, 1) < 0) return Libc.LastErrno;
        var update = new RingUpdate { Offset = uint.MaxValue, Data = (ulong)_descriptor };
        if (Libc.RingRegister(_descriptor, RegisterRing, &update, 1) != 1) return Errno.None; // then the descriptor does
        _enterDescriptor = (int)update.Offset;
        _enterFlags = RegisteredRing;
        return Errno.None;
    }

    /// <summary>A message goes there and back: whoever forbids entering a ring, or a kernel without messages, is met here, not later.</summary>
    private Errno Try()
    {
        Errno errno = Wake(0);
        while (errno == Errno.None && !TryTake(out _)) errno = Enter(wait: true);
        return errno;
    }

    /// <summary>struct io_uring_sqe as a command has it.</summary>
    [StructLayout(LayoutKind.Explicit, Size = Size)]
    private struct Submission
    {
        public const int Size = 128;
        public const int CommandOffset = 48;

        [FieldOffset(0)]
        public byte Operation;
        [FieldOffset(1)]
        public byte Flags;
        [FieldOffset(4)]
        public int File;
        [FieldOffset(8)]
        public uint CommandCode;
        [FieldOffset(8)]
        public ulong Offset;
        [FieldOffset(16)]
        public ulong Address;
        [FieldOffset(24)]
        public uint Length;
        [FieldOffset(32)]
        public ulong Tag;
    }

    /// <summary>struct io_uring_cqe.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Completion
    {
        public ulong Tag;
        public int Result;
        public uint Flags;
    }

    /// <summary>struct io_uring_rsrc_update.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct RingUpdate
    {
        public uint Offset;
        public uint Reserved;
        public ulong Data;
    }
}
