// An entry of the refcount table: where a refcount block lives.
//   bits 0-8 reserved | 9-63 offset of the block, 0 = all of its counts are zero
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2;

/// <summary>One big-endian 64-bit entry of the refcount table.</summary>
internal readonly record struct RefcountTableEntry(ulong Raw)
{
    public const int Size = 8;
    public const ulong OffsetMask = 0xFFFF_FFFF_FFFF_FE00;
    public const ulong ReservedMask = ~OffsetMask;

    public static RefcountTableEntry Unallocated => default;

    /// <summary>Byte offset of the refcount block; 0 where there is none; negative where bit 63 is set, which no file reaches.</summary>
    public long BlockOffset => unchecked((long)(Raw & OffsetMask));

    public bool IsAllocated => (Raw & OffsetMask) != 0;

    /// <summary>Bits that the format wants zero.</summary>
    public ulong Reserved => Raw & ReservedMask;

    public static RefcountTableEntry Block(long blockOffset) => new((ulong)blockOffset & OffsetMask);

    public static RefcountTableEntry Read(ReadOnlySpan<byte> source) => new(BinaryPrimitives.ReadUInt64BigEndian(source));

    public void WriteTo(Span<byte> destination) => BinaryPrimitives.WriteUInt64BigEndian(destination, Raw);
}
