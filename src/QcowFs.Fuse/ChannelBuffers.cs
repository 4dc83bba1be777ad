// A channel's memory: one request and one reply, each as large as the connection allows, outside the garbage collector's heap.
//
//            page boundary                         page boundary
//   ... [in_header 40][write_in 40]|payload ...  ... [out_header 16]|payload ...
//
// So the payload of a WRITE and that of a READ begin on a page, and can go to and come from a file opened with O_DIRECT as they are;
// and a reply is contiguous, one write(2).
using System.Runtime.InteropServices;
using QcowFs.Fuse.Wire;

namespace QcowFs.Fuse;

/// <summary>The two buffers of one channel. Pages that no request was large enough to touch cost no memory, unless they are to be
/// resident from the start.</summary>
internal sealed unsafe class ChannelBuffers : IDisposable
{
    private const int RequestHead = InHeader.Size + WriteIn.Size;

    private void* _memory;

    /// <summary>Room for payloads of <paramref name="maxPayload"/> bytes.</summary>
    public ChannelBuffers(int maxPayload, bool resident = false)
    {
        // Three pages over: the heads stand in the first page of each buffer, and a request other than a WRITE may carry a name.
        int page = Environment.SystemPageSize;
        int rounded = (maxPayload + page - 1) / page * page;
        nuint each = (nuint)(rounded + (2 * page));
        _memory = NativeMemory.AlignedAlloc(each * 2, (nuint)page);
        if (resident) NativeMemory.Clear(_memory, each * 2);
        byte* start = (byte*)_memory;
        Request = start + page - RequestHead;
        RequestCapacity = rounded + page + RequestHead;
        Reply = start + each + page - OutHeader.Size;
        ReplyCapacity = OutHeader.Size + rounded;
    }

    /// <summary>Where a request is read to.</summary>
    public byte* Request { get; }

    /// <summary>Longest request in bytes.</summary>
    public int RequestCapacity { get; }

    /// <summary>Where a reply is put together.</summary>
    public byte* Reply { get; }

    /// <summary>Longest reply in bytes.</summary>
    public int ReplyCapacity { get; }

    public void Dispose()
    {
        NativeMemory.AlignedFree(_memory);
        _memory = null;
    }
}
