// The image as it would be if all that memory holds were on disk now: the file, with the header's pointers, the resident tables and
// the cached pages laid over it.
using System.Buffers.Binary;
using QcowFs.Images.Metadata;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;

namespace QcowFs.Simulation.Tests.Invariants;

internal sealed class MemoryView(WatchedFile file) : IImageBytes
{
    private readonly List<(long Offset, byte[] Bytes, int Length)> _patches = [];
    private readonly byte[] _pointer = new byte[12];
    private byte[] _l1 = [];
    private byte[] _counts = [];

    public long Length => file.Length;

    /// <summary>Takes what memory holds now.</summary>
    public void Take(Qcow2State state)
    {
        _patches.Clear();
        ResidentTable counts = state.Refcounts.Table;
        BinaryPrimitives.WriteInt64BigEndian(_pointer, counts.Offset);
        BinaryPrimitives.WriteInt32BigEndian(_pointer.AsSpan(8), counts.Length * 8 >> state.Header.ClusterBits);
        _patches.Add((48, _pointer, 12));
        Add(state.L1, ref _l1);
        Add(counts, ref _counts);
        foreach (MetadataPage page in state.Cache.Pages)
        {
            if (page.Unwritten != Unwritten.Nothing)
                _patches.Add((page.Offset, page.Bytes.ToArray(), page.Bytes.Length));
        }
    }

    /// <summary>A number that differs, for all that matters, when what memory holds has changed.</summary>
    public static ulong Fingerprint(Qcow2State state, long fileLength)
    {
        ulong print = unchecked((ulong)fileLength * 31);
        Mix(ref print, state.L1);
        Mix(ref print, state.Refcounts.Table);
        foreach (MetadataPage page in state.Cache.Pages)
            print = unchecked(Pattern.Mix(print + (ulong)page.Offset) + ((ulong)page.Sequence << 2) + (ulong)page.Unwritten);
        return print;
    }

    public void Read(long offset, Span<byte> destination)
    {
        file.Read(offset, destination);
        foreach ((long at, byte[] bytes, int length) in _patches)
        {
            long from = Math.Max(at, offset);
            long to = Math.Min(at + length, offset + destination.Length);
            if (from < to)
                bytes.AsSpan((int)(from - at), (int)(to - from)).CopyTo(destination[(int)(from - offset)..]);
        }
    }

    private static void Mix(ref ulong print, ResidentTable table)
    {
        print = unchecked(print + (ulong)table.Offset);
        for (int i = 0; i < table.Length; i++)
            print = unchecked((print ^ table[i]) * 0x9E3779B97F4A7C15UL);
    }

    private void Add(ResidentTable table, ref byte[] bytes)
    {
        if (bytes.Length < table.Length * 8)
            bytes = new byte[table.Length * 8];
        for (int i = 0; i < table.Length; i++)
            BinaryPrimitives.WriteUInt64BigEndian(bytes.AsSpan(i * 8), table[i]);
        _patches.Add((table.Offset, bytes, table.Length * 8));
    }
}
