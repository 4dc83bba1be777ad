// Which entry of the block allocation table is for which block (fact sheet, section 5). Behind the entries of each chunk of payload
// blocks comes one for the chunk's sector bitmap block, in every file, though only differencing disks use it. All in 64 bits.
using System.Numerics;

namespace QcowFs.Images.Vhdx;

/// <summary>Sizes and indices of one disk. Built from values that were bounded before.</summary>
internal readonly record struct BatGeometry
{
    public BatGeometry(long virtualSize, int blockSize, int logicalSectorSize, bool hasParent)
    {
        VirtualSize = virtualSize;
        BlockSize = blockSize;
        SectorSize = logicalSectorSize;
        HasParent = hasParent;
        BlockBits = BitOperations.Log2((uint)blockSize);
        RatioBits = BitOperations.Log2((ulong)(VhdxLimits.SectorsPerChunk * logicalSectorSize / blockSize));
        BlockCount = (virtualSize + blockSize - 1) >> BlockBits;
        ChunkCount = (BlockCount + ChunkRatio - 1) >> RatioBits;
        EntryCount = BlockCount == 0 ? 0 : hasParent ? ChunkCount * (ChunkRatio + 1) : BlockCount + ((BlockCount - 1) >> RatioBits);
    }

    public long VirtualSize { get; }

    public int BlockSize { get; }

    /// <summary>Logical sector size in bytes.</summary>
    public int SectorSize { get; }

    public bool HasParent { get; }

    public int BlockBits { get; }

    /// <summary>Log2 of the payload blocks of a chunk.</summary>
    public int RatioBits { get; }

    /// <summary>Payload blocks of a chunk.</summary>
    public long ChunkRatio => 1L << RatioBits;

    /// <summary>Payload blocks of the disk.</summary>
    public long BlockCount { get; }

    public long ChunkCount { get; }

    /// <summary>Entries that the table must have.</summary>
    public long EntryCount { get; }

    /// <summary>Bytes of those entries.</summary>
    public long TableLength => EntryCount * BatEntry.Size;

    /// <summary>Bytes of the region that holds the table.</summary>
    public long RegionLength => Math.Max(VhdxLimits.Alignment, (TableLength + VhdxLimits.Alignment - 1) & -VhdxLimits.Alignment);

    /// <summary>The entry of a payload block.</summary>
    public long PayloadIndex(long block) => block + (block >> RatioBits);

    /// <summary>The entry of a chunk's sector bitmap block.</summary>
    public long BitmapIndex(long chunk) => (chunk << RatioBits) + chunk + ChunkRatio;

    /// <summary>Whether an entry is for a sector bitmap block.</summary>
    public bool IsBitmapIndex(long index) => index % (ChunkRatio + 1) == ChunkRatio;

    /// <summary>The block of a payload entry.</summary>
    public long BlockOf(long index) => index - index / (ChunkRatio + 1);
}
