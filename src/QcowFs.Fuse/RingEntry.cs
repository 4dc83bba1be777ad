// One request's place in a ring, and the memory of all places of one ring.
//
//   heads:  [head 288][two iovecs] every 512 bytes, close together, so that what the kernel writes for small requests is close together
//   each place:       page boundary
//              ... [in_header 40][first structure]|payload ...            a request, put together as the device would have given it
//                                 ... [out_header 16]|payload ...         the reply, over it
//
// So payloads begin on a page in both directions, and a dispatcher sees the same bytes as on a device. Request and reply share the
// payload's memory: the kernel has it so. A handler has read what it needs of a request before its reply is laid down.
using System.Runtime.InteropServices;
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>A place. It belongs to the kernel, to its ring's thread, or to a worker, in turns; only who has it touches it.</summary>
internal sealed unsafe class RingEntry(ushort queue, ulong tag, RingEntryHead* head, Iovec* vectors, byte* payload, int maxPayload)
{
    private const int OpenForDataSync = 0x1000;

    private readonly RingEntryHead* _head = head;
    private readonly byte* _payload = payload;
    private readonly int _maxPayload = maxPayload;
    private InHeader _header;
    private int _requestLength;

    /// <summary>The kernel's queue, which is the number of a processor.</summary>
    public ushort Queue { get; } = queue;

    /// <summary>Tells the entry from others of its ring.</summary>
    public ulong Tag { get; } = tag;

    /// <summary>Head and payload, as a registration names them.</summary>
    public Iovec* Vectors { get; } = vectors;

    /// <summary>Whether the kernel has taken the entry, so that what comes back are requests.</summary>
    public bool IsRegistered { get; set; }

    /// <summary>Whether the request in hand was held up, when a worker gives the entry back.</summary>
    public bool WasHeldUp { get; set; }

    /// <summary>The next one of those that workers gave back.</summary>
    public RingEntry? Next { get; set; }

    /// <summary>The header of the request in hand.</summary>
    public ref readonly InHeader Header => ref _header;

    /// <summary>What the reply is committed to.</summary>
    public ulong CommitId => _head->CommitId;

    /// <summary>Bytes that the request in hand moves.</summary>
    public long TransferSize => _header.Opcode switch
    {
        FuseOpcode.Read => ((ReadIn*)Operation)->Length,
        FuseOpcode.Write => _head->PayloadSize,
        _ => 0,
    };

    /// <summary>Whether the request in hand needs no disk, as far as one can see: it reads or writes a page cache, or asks for attributes.
    /// A write to a file that was opened with O_DSYNC is an fsync too.</summary>
    public bool MayBeQuick => _header.Opcode switch
    {
        FuseOpcode.Read or FuseOpcode.GetAttr => true,
        FuseOpcode.Write => (((WriteIn*)Operation)->Flags & OpenForDataSync) == 0,
        _ => false,
    };

    /// <summary>The request in hand, as long as it says that it is where that can be true.</summary>
    public ReadOnlySpan<byte> Request => new(_payload - (_requestLength - PayloadLength), _requestLength);

    /// <summary>Where its reply is put together.</summary>
    public Span<byte> Reply => new(_payload - OutHeader.Size, OutHeader.Size + _maxPayload);

    private byte* Operation => (byte*)_head + RingEntryHead.OperationOffset;

    private int PayloadLength { get; set; }

    /// <summary>A request has come: puts it together. What does not fit into an entry at all is left out, and the dispatcher meets a
    /// request that is shorter than it says.</summary>
    public void Begin()
    {
        _header = _head->Request;
        uint rest = _head->PayloadSize;
        long operation = (long)_header.Length - InHeader.Size - rest;
        bool fits = rest <= (uint)_maxPayload && operation is >= 0 and <= RingEntryHead.OperationSize;
        PayloadLength = fits ? (int)rest : 0;
        int operationLength = fits ? (int)operation : 0;
        _requestLength = InHeader.Size + operationLength + PayloadLength;
        byte* structure = _payload - operationLength;
        *(InHeader*)(structure - InHeader.Size) = _header;
        Buffer.MemoryCopy(Operation, structure, operationLength, operationLength);
    }

    /// <summary>A reply of <paramref name="length"/> bytes has been put together; 0: none is due, and the kernel is told that it is done.</summary>
    public void Finish(int length)
    {
        _head->Reply = length == 0 ? new OutHeader { Length = OutHeader.Size, Unique = _header.Unique } : *(OutHeader*)(_payload - OutHeader.Size);
        _head->PayloadSize = (uint)Math.Max(length - OutHeader.Size, 0);
    }

    /// <summary>What <see cref="Finish"/> took.</summary>
    public ReadOnlySpan<byte> FinishedReply => new(_payload - OutHeader.Size, OutHeader.Size + (int)_head->PayloadSize);
}

/// <summary>The memory of a ring's entries. Pages that no request was large enough to touch cost nothing, unless they are to be resident
/// from the start. Disposed when neither kernel nor worker may use it any more.</summary>
internal sealed unsafe class RingEntries : IDisposable
{
    private const int HeadStride = 512;

    // FUSE_MIN_READ_BUFFER: the kernel takes no smaller payload.
    private const int LeastPayload = 8192;

    private byte* _memory;

    /// <summary>One entry for each of <paramref name="queues"/>, which may name a queue several times.</summary>
    public RingEntries(IReadOnlyList<ushort> queues, int maxPayload, bool resident)
    {
        int page = Environment.SystemPageSize;
        int count = queues.Count;
        int payload = Math.Max((maxPayload + page - 1) / page * page, LeastPayload);
        nuint heads = (nuint)(((count * HeadStride) + page - 1) / page * page);
        nuint total = heads + ((nuint)count * (nuint)(page + payload));
        _memory = (byte*)NativeMemory.AlignedAlloc(total, (nuint)page);
        if (resident) NativeMemory.Clear(_memory, total);
        All = new RingEntry[count];
        for (int i = 0; i < count; i++)
        {
            byte* head = _memory + (i * HeadStride);
            byte* data = _memory + heads + ((nuint)i * (nuint)(page + payload)) + page;
            var vectors = (Iovec*)(head + RingEntryHead.Size);
            vectors[0] = new Iovec { Base = head, Length = RingEntryHead.Size };
            vectors[1] = new Iovec { Base = data, Length = (nuint)payload };
            All[i] = new RingEntry(queues[i], (ulong)i, (RingEntryHead*)head, vectors, data, payload);
        }
    }

    /// <summary>The entries; the tag is the index.</summary>
    public RingEntry[] All { get; }

    public void Dispose()
    {
        NativeMemory.AlignedFree(_memory);
        _memory = null;
    }
}
