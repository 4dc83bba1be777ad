// The second half of an extended L2 entry: 32 subclusters.
//   bit i (0-31): subcluster i is in the host cluster | bit 32 + i: subcluster i reads as zeros | both: corrupt
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2;

/// <summary>The big-endian 64-bit subcluster bitmap of an extended L2 entry. A compressed cluster's is all zero.</summary>
internal readonly record struct SubclusterBitmap(ulong Raw)
{
    public const int Size = 8;
    public const int Count = 32;

    public static SubclusterBitmap Unallocated => default;

    public static SubclusterBitmap AllData => new(0x0000_0000_FFFF_FFFF);

    public static SubclusterBitmap AllZero => new(0xFFFF_FFFF_0000_0000);

    /// <summary>Bit i: subcluster i holds data in the host cluster.</summary>
    public uint Allocated => unchecked((uint)Raw);

    /// <summary>Bit i: subcluster i reads as zeros.</summary>
    public uint ReadsZero => (uint)(Raw >> 32);

    /// <summary>No subcluster is allocated and zero at once.</summary>
    public bool IsWellFormed => (Allocated & ReadsZero) == 0;

    public static SubclusterBitmap Of(uint allocated, uint readsZero) => new(((ulong)readsZero << 32) | allocated);

    public static SubclusterBitmap Read(ReadOnlySpan<byte> source) => new(BinaryPrimitives.ReadUInt64BigEndian(source));

    public void WriteTo(Span<byte> destination) => BinaryPrimitives.WriteUInt64BigEndian(destination, Raw);
}
