// An entry of an L2 table: where a guest cluster lives.
//   standard:   bit 0 reads as zero (version 3, never with extended L2) | 1-8 reserved | 9-55 host offset | 56-61 reserved
//               | 62 = 0 | 63 COPIED
//   compressed: bit 62 = 1 | 63 = 0 | the rest is a CompressedDescriptor
// With an external data file, host offset 0 together with COPIED means the cluster at offset 0.
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2;

/// <summary>The big-endian 64-bit entry of an L2 table (the first half of an extended one).</summary>
internal readonly record struct L2Entry(ulong Raw)
{
    public const int Size = 8;
    public const int ExtendedSize = 16;
    public const ulong CopiedBit = 1UL << 63;
    public const ulong CompressedBit = 1UL << 62;
    public const ulong ZeroBit = 1UL << 0;
    public const ulong OffsetMask = 0x00FF_FFFF_FFFF_FE00;

    /// <summary>Bits that must be zero in a standard entry of a version 3 image with standard L2 tables.</summary>
    public const ulong ReservedMask = ~(CopiedBit | CompressedBit | ZeroBit | OffsetMask);

    /// <summary>Not in this image: the backing supplies the cluster.</summary>
    public static L2Entry Unallocated => default;

    /// <summary>Reads as zeros and holds no cluster.</summary>
    public static L2Entry Zero => new(ZeroBit);

    public bool IsCompressed => (Raw & CompressedBit) != 0;

    /// <summary>Bit 0 of a standard entry: reads as zeros whatever the offset says.</summary>
    public bool IsZeroFlag => !IsCompressed && (Raw & ZeroBit) != 0;

    /// <summary>Whether a host cluster belongs to the entry, data or preallocated zeros. An external data file's cluster 0 is told
    /// by COPIED alone.</summary>
    public bool HasHostCluster => !IsCompressed && (Raw & (OffsetMask | CopiedBit)) != 0;

    /// <summary>The host cluster's reference count is exactly one. Meaningful in tables of the active L1 only.</summary>
    public bool Copied => (Raw & CopiedBit) != 0;

    /// <summary>Host byte offset, bits 9-55, of a standard entry.</summary>
    public HostOffset HostOffset => new((long)(Raw & OffsetMask));

    /// <summary>Bits of a standard entry that the format wants zero.</summary>
    public ulong Reserved => Raw & ReservedMask;

    public static L2Entry Data(HostOffset host, bool copied) =>
        new(((ulong)host.Value & OffsetMask) | (copied ? CopiedBit : 0));

    /// <summary>Reads as zeros and keeps a host cluster.</summary>
    public static L2Entry ZeroAllocated(HostOffset host, bool copied) => new(Data(host, copied).Raw | ZeroBit);

    public L2Entry WithCopied(bool copied) => new(copied ? Raw | CopiedBit : Raw & ~CopiedBit);

    /// <summary>The host cluster of a standard entry as it is stored.</summary>
    public static long ClusterOf(ulong stored, int clusterBits) =>
        (long)((BitConverter.IsLittleEndian ? BinaryPrimitives.ReverseEndianness(stored) : stored) & OffsetMask) >> clusterBits;

    public static L2Entry Read(ReadOnlySpan<byte> source) => new(BinaryPrimitives.ReadUInt64BigEndian(source));

    public void WriteTo(Span<byte> destination) => BinaryPrimitives.WriteUInt64BigEndian(destination, Raw);
}
