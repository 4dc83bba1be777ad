// What a compressed L2 entry says, in its bits 0-61. With x = 70 - cluster_bits:
//   bits 0 to x-1 host byte offset, any alignment, those above 55 zero | x to 61 additional 512-byte sectors
// The stream may end anywhere in the last sector; what follows there is junk or the next cluster's stream.
namespace QcowFs.Images.Qcow2;

/// <summary>Place of one compressed cluster in the image file.</summary>
/// <param name="Offset">Byte offset of the stream.</param>
/// <param name="Length">Bytes from there to the end of the last sector, an upper bound of the stream's length; at least 1, at most
/// two clusters by the width of the field.</param>
internal readonly record struct CompressedDescriptor(long Offset, int Length)
{
    private const int SectorSize = 512;
    private const ulong PayloadMask = L2Entry.CompressedBit - 1;

    /// <summary>Bytes from the start of the first sector to the end of the last.</summary>
    public long End => Offset + Length;

    /// <summary>Whether an offset has none of the bits that the format wants zero.</summary>
    public bool IsWellFormed => Offset < Qcow2Limits.MaxHostOffset;

    public static CompressedDescriptor Of(L2Entry entry, int clusterBits)
    {
        int offsetBits = OffsetBits(clusterBits);
        ulong payload = entry.Raw & PayloadMask;
        long offset = (long)(payload & ((1UL << offsetBits) - 1));
        int additionalSectors = (int)(payload >> offsetBits);
        return new CompressedDescriptor(offset, (additionalSectors + 1) * SectorSize - (int)(offset % SectorSize));
    }

    /// <summary>The entry for a stream of <paramref name="streamLength"/> bytes at <paramref name="offset"/>.</summary>
    public static L2Entry Entry(long offset, int streamLength, int clusterBits)
    {
        int offsetBits = OffsetBits(clusterBits);
        long additionalSectors = (offset + streamLength - 1) / SectorSize - offset / SectorSize;
        return new L2Entry(L2Entry.CompressedBit | ((ulong)additionalSectors << offsetBits) | (ulong)offset);
    }

    /// <summary>The highest offset, exclusive, that an entry can hold: below 2^56 for clusters over 16 KiB.</summary>
    public static long OffsetLimit(int clusterBits) => Math.Min(1L << OffsetBits(clusterBits), Qcow2Limits.MaxHostOffset);

    private static int OffsetBits(int clusterBits) => 70 - clusterBits;
}
