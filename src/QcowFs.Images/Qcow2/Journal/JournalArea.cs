// The header extension that says where the journal is: u64 offset, u64 length of the clusters that belong to it. It has a meaning only
// while the incompatible feature bit 60 is set.
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>The host space of a journal: whole clusters, each counted once.</summary>
/// <param name="Offset">Host byte offset of the first cluster.</param>
/// <param name="Length">Bytes.</param>
internal readonly record struct JournalArea(long Offset, long Length)
{
    /// <summary>Bytes of the extension's data.</summary>
    public const int Size = 16;

    /// <summary>Where the first superblock is: small clusters need not begin at a block.</summary>
    public long Start => (Offset + JournalLayout.BlockSize - 1) & -JournalLayout.BlockSize;

    /// <summary>Host byte offset of the ring's first block.</summary>
    public long RingOffset => Start + JournalLayout.RingStart;

    /// <summary>Bytes of the ring.</summary>
    public long RingBytes => (Offset + Length - RingOffset) & -JournalLayout.BlockSize;

    /// <summary>Clusters for a ring of at least so many bytes, wherever they begin.</summary>
    public static long ClustersFor(long ringBytes, int clusterBits)
    {
        long clusterSize = 1L << clusterBits;
        long slack = Math.Max(0, JournalLayout.BlockSize - clusterSize);
        return (ringBytes + JournalLayout.RingStart + slack + clusterSize - 1) >> clusterBits;
    }

    /// <summary>Whether a range touches the area.</summary>
    public bool Overlaps(long offset, long length) => offset < Offset + Length && offset + length > Offset;

    public void WriteTo(Span<byte> data)
    {
        BinaryPrimitives.WriteInt64BigEndian(data, Offset);
        BinaryPrimitives.WriteInt64BigEndian(data[8..], Length);
    }

    /// <summary>Reads and bounds the extension's data. False with the problem in words.</summary>
    public static bool TryParse(ReadOnlySpan<byte> data, int clusterSize, out JournalArea area, out string problem)
    {
        area = default;
        if (data.Length != Size)
        {
            problem = $"the journal extension is {data.Length} bytes long, expected {Size}";
            return false;
        }

        ulong offset = BinaryPrimitives.ReadUInt64BigEndian(data);
        ulong length = BinaryPrimitives.ReadUInt64BigEndian(data[8..]);
        const ulong maxLength = JournalLayout.MaxRingBytes + (4UL << 20);
        if (offset < (ulong)clusterSize || offset % (ulong)clusterSize != 0 || offset >= (ulong)Qcow2Limits.MaxHostOffset)
        {
            problem = $"the journal's offset is {offset}, expected a multiple of the cluster size {clusterSize} behind the header";
            return false;
        }

        problem = $"the journal is {length} bytes long, expected whole clusters with a ring of {JournalLayout.MinRingBytes} to "
            + $"{JournalLayout.MaxRingBytes} bytes";
        if (length == 0 || length % (ulong)clusterSize != 0 || length > maxLength)
            return false;
        area = new JournalArea((long)offset, (long)length);
        return area.RingBytes is >= JournalLayout.MinRingBytes and <= JournalLayout.MaxRingBytes + (4L << 20);
    }
}
