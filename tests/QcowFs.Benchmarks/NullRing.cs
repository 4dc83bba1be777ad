// The null server over io_uring: a ring for each processor, on whose thread every request is answered at once, and nothing else. It shares
// no code with QcowFs.Fuse, so that it can judge it. Layouts are those of the kernel's include/uapi/linux/fuse.h and io_uring.h.
using System.Runtime.InteropServices;

namespace QcowFs.Benchmarks;

/// <summary>Answers one request: a header, its first structure, and where its payload is and that of the reply goes; gives the length of the
/// reply's payload.</summary>
internal unsafe delegate int AnswerRequest(byte* header, byte* structure, byte* payload, out int error);

internal sealed unsafe class NullRing
{
    private const int Depth = 32;
    private const int HeadStride = 512, StructureOffset = 128, CommitIdOffset = 264, PayloadSizeOffset = 272, HeadSize = 288;
    private const int SubmissionSize = 128, CompletionSize = 16;
    private const uint Register = 1, CommitAndFetch = 2;

    // SQE128, SINGLE_ISSUER, DEFER_TASKRUN, NO_SQARRAY
    private const uint SetupFlags = 1 << 10 | 1 << 12 | 1 << 13 | 1 << 16;
    private const nint Setup = 425, Enter = 426, RegisterFiles = 427;

    private readonly AnswerRequest _answer;
    private readonly int _processor;
    private readonly int _ring;
    private readonly byte* _heads;
    private readonly byte*[] _payloads = new byte*[Depth];
    private readonly byte* _queues;
    private readonly byte* _submissions;
    private readonly uint* _parameters;
    private uint _tail;
    private int _singles;
    private bool _bound;

    private NullRing(int connection, int processor, int payloadSize, AnswerRequest answer)
    {
        _answer = answer;
        _processor = processor;
        _heads = Allocate(Depth * HeadStride);
        _parameters = (uint*)Allocate(120);
        _parameters[2] = SetupFlags;
        _ring = (int)LibC.Checked(LibC.SystemCall(Setup, Depth, (nint)_parameters, 0, 0, 0, 0), "io_uring_setup");
        _ = LibC.Checked(LibC.SystemCall(RegisterFiles, _ring, 2, (nint)(&connection), 1, 0, 0), "io_uring_register");
        _queues = LibC.MapShared(_ring, 0, CompletionsOffset + (_parameters[1] * CompletionSize));
        _submissions = LibC.MapShared(_ring, 0x10000000, Depth * SubmissionSize);
        for (int i = 0; i < Depth; i++)
        {
            _payloads[i] = Allocate(payloadSize);
            var vectors = (nint*)(_heads + (i * HeadStride) + HeadSize);
            (vectors[0], vectors[1], vectors[2], vectors[3]) = ((nint)(_heads + (i * HeadStride)), HeadSize, (nint)_payloads[i], payloadSize);
            Prepare(Register, i);
        }
    }

    private uint CompletionsOffset => _parameters[25]; // cq_off.cqes

    /// <summary>Serves the requests of one processor until unmounted. INIT has been answered.</summary>
    public static void Serve(int connection, int processor, int payloadSize, AnswerRequest answer) => new NullRing(connection, processor, payloadSize, answer).Serve();

    private void Serve()
    {
        uint* head = (uint*)(_queues + _parameters[20]), tail = (uint*)(_queues + _parameters[21]);
        uint completionMask = *(uint*)(_queues + _parameters[22]);
        uint unsubmitted = Depth;
        while (true)
        {
            Volatile.Write(ref *(uint*)(_queues + _parameters[11]), _tail); // sq_off.tail
            nint taken = LibC.SystemCall(Enter, _ring, (nint)unsubmitted, 1, 1, 0, 0);
            if (taken < 0 && Marshal.GetLastSystemError() != LibC.EINTR) throw new IOException($"io_uring_enter: error {Marshal.GetLastSystemError()}");
            unsubmitted -= (uint)Math.Max(taken, 0);
            uint first = *head, last = Volatile.Read(ref *tail);
            for (uint next = first; next != last; next++)
            {
                byte* completion = _queues + CompletionsOffset + ((next & completionMask) * CompletionSize);
                if (*(int*)(completion + 8) < 0) return; // ENOTCONN: unmounted
                AnswerOne((int)*(ulong*)completion);
                unsubmitted++;
            }
            Volatile.Write(ref *head, last);
            Place(last - first);
        }
    }

    private void AnswerOne(int entry)
    {
        byte* header = _heads + (entry * HeadStride);
        int payload = Math.Max(_answer(header, header + StructureOffset, _payloads[entry], out int error), 0);
        *(uint*)header = (uint)(16 + payload);
        *(int*)(header + 4) = -error; // the request's number stays where it is
        *(uint*)(header + PayloadSizeOffset) = (uint)payload;
        Prepare(CommitAndFetch, entry);
    }

    private void Prepare(uint command, int entry)
    {
        const byte uringCommand = 46, fixedFile = 1;
        byte* header = _heads + (entry * HeadStride);
        byte* submission = _submissions + ((_tail++ & (Depth - 1)) * SubmissionSize);
        new Span<byte>(submission, SubmissionSize).Clear();
        submission[0] = uringCommand;
        submission[1] = fixedFile;
        *(uint*)(submission + 8) = command;
        *(nint*)(submission + 16) = (nint)(header + HeadSize);
        *(uint*)(submission + 24) = 2;
        *(ulong*)(submission + 32) = (ulong)entry;
        *(ulong*)(submission + 56) = *(ulong*)(header + CommitIdOffset);
        *(ushort*)(submission + 64) = (ushort)_processor;
    }

    // Requests that come one by one are answered soonest where they were sent; of several, the sender goes on meanwhile.
    private void Place(uint requests)
    {
        const int enough = 64;
        _singles = requests == 1 ? Math.Min(_singles + 1, enough) : Math.Max(_singles - (int)requests, -enough);
        if (_singles != (_bound ? -enough : enough)) return;
        (_bound, _singles) = (!_bound, 0);
        LibC.BindThread(_bound ? _processor : null);
    }

    private static byte* Allocate(int length)
    {
        var memory = (byte*)NativeMemory.AlignedAlloc((nuint)length, 4096);
        new Span<byte>(memory, length).Clear();
        return memory;
    }
}
