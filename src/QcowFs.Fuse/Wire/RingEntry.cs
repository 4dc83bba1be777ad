// FUSE over io_uring: what is laid into a submission, and the head of an entry, which the kernel and we fill in turns.
// The payload of requests and of replies lies apart from it, in memory that was named when the entry was registered.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>enum fuse_uring_cmd.</summary>
internal enum RingCommand : uint
{
    /// <summary>Names an entry's memory, and waits for its first request.</summary>
    Register = 1,
    /// <summary>Gives the reply, and waits for the next request.</summary>
    CommitAndFetch = 2,
}

/// <summary>struct fuse_uring_cmd_req.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct RingCommandRequest
{
    public const int Size = 24;

    public ulong Flags;
    public ulong CommitId;
    public ushort Queue;
    public ushort Padding0;
    public uint Padding1;
}

/// <summary>struct fuse_uring_req_header: the message's header, 128 bytes; the first structure of a request, 128 bytes; and
/// struct fuse_uring_ent_in_out, which is given field by field. All that follows in a request, and all of a reply, is payload.</summary>
[StructLayout(LayoutKind.Explicit, Size = Size)]
internal struct RingEntryHead
{
    public const int Size = 288;
    public const int OperationOffset = 128;
    public const int OperationSize = 128;

    /// <summary>Of a request.</summary>
    [FieldOffset(0)]
    public InHeader Request;
    /// <summary>Of a reply.</summary>
    [FieldOffset(0)]
    public OutHeader Reply;
    [FieldOffset(256)]
    public ulong Flags;
    /// <summary>Names the request when its reply is given.</summary>
    [FieldOffset(264)]
    public ulong CommitId;
    /// <summary>Bytes of payload, in either direction.</summary>
    [FieldOffset(272)]
    public uint PayloadSize;
}
