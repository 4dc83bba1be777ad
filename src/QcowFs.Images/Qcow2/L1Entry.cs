// An entry of an L1 table: where an L2 table lives in the image file.
//   bits 0-8 reserved | 9-55 offset of the L2 table, 0 = unallocated | 56-62 reserved | 63 COPIED
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2;

/// <summary>One big-endian 64-bit entry of an L1 table, the active one or a snapshot's.</summary>
internal readonly record struct L1Entry(ulong Raw)
{
    public const int Size = 8;
    public const ulong CopiedBit = 1UL << 63;
    public const ulong OffsetMask = 0x00FF_FFFF_FFFF_FE00;
    public const ulong ReservedMask = ~(CopiedBit | OffsetMask);

    public static L1Entry Unallocated => default;

    /// <summary>Byte offset of the L2 table in the image file; 0 where there is none.</summary>
    public long TableOffset => (long)(Raw & OffsetMask);

    public bool IsAllocated => (Raw & OffsetMask) != 0;

    /// <summary>The L2 table's reference count is exactly one. Meaningful in the active L1 only.</summary>
    public bool Copied => (Raw & CopiedBit) != 0;

    /// <summary>Bits that the format wants zero.</summary>
    public ulong Reserved => Raw & ReservedMask;

    public static L1Entry Table(long tableOffset, bool copied) =>
        new(((ulong)tableOffset & OffsetMask) | (copied ? CopiedBit : 0));

    public L1Entry WithCopied(bool copied) => new(copied ? Raw | CopiedBit : Raw & ~CopiedBit);

    public static L1Entry Read(ReadOnlySpan<byte> source) => new(BinaryPrimitives.ReadUInt64BigEndian(source));

    public void WriteTo(Span<byte> destination) => BinaryPrimitives.WriteUInt64BigEndian(destination, Raw);
}
