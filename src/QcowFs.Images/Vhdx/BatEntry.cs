// An entry of the block allocation table (fact sheet, section 5).
//   bits 0-2 state | bits 3-19 reserved | bits 20-63 offset in MiB
namespace QcowFs.Images.Vhdx;

/// <summary>State of a payload block. Sector bitmap blocks know only <see cref="NotPresent"/> and <see cref="FullyPresent"/>.</summary>
internal enum BlockState
{
    /// <summary>Never written: the parent's bytes, or zeros.</summary>
    NotPresent = 0,
    /// <summary>Contents discarded; read as zeros, never as the parent's.</summary>
    Undefined = 1,
    /// <summary>Zeros.</summary>
    Zero = 2,
    /// <summary>Trimmed; read as zeros, never as the parent's.</summary>
    Unmapped = 3,
    /// <summary>What files from before the format's version 1.0 have for <see cref="Unmapped"/>.</summary>
    OldUnmapped = 5,
    /// <summary>In this file.</summary>
    FullyPresent = 6,
    /// <summary>The sector bitmap tells which sectors are in this file; the others are the parent's.</summary>
    PartiallyPresent = 7,
}

/// <summary>One entry.</summary>
internal readonly record struct BatEntry(ulong Raw)
{
    public const int Size = 8;
    public const ulong ReservedBits = 0xFFFF8;
    private const ulong StateBits = 7;
    private const ulong OffsetBits = ~0xFFFFFUL;

    public BatEntry(BlockState state, long offset)
        : this((ulong)offset | (ulong)state)
    {
    }

    public BlockState State => (BlockState)(Raw & StateBits);

    /// <summary>Byte offset in the file. Any value up to 2^64: compare it before it is used as a place.</summary>
    public ulong RawOffset => Raw & OffsetBits;

    /// <summary>Byte offset of an entry that was found sound.</summary>
    public long Offset => (long)RawOffset;

    /// <summary>Whether the block has bytes in this file.</summary>
    public bool HasData => State is BlockState.FullyPresent or BlockState.PartiallyPresent;

    /// <summary>Whether a block without data states a place in the file all the same.</summary>
    public bool KeepsPlace(BatGeometry geometry, long fileLength) =>
        State is BlockState.Undefined or BlockState.Unmapped or BlockState.OldUnmapped && PlaceProblem(geometry.BlockSize, fileLength) is null;

    /// <summary>Why a payload entry breaks the rules, or null.</summary>
    /// <param name="geometry">The disk.</param>
    /// <param name="block">The block that the entry is for.</param>
    /// <param name="fileLength">Length of the file in bytes.</param>
    public string? PayloadProblem(BatGeometry geometry, long block, long fileLength)
    {
        if (State == (BlockState)4)
            return "its state is 4, which does not exist";
        if (State == BlockState.PartiallyPresent && !geometry.HasParent)
            return "it is partially present, and the disk has no parent";
        if (!HasData)
            return null;
        // Files of old writers end inside the last block of a disk that ends inside it.
        long needed = Math.Min(geometry.BlockSize, geometry.VirtualSize - (block << geometry.BlockBits));
        return PlaceProblem(needed, fileLength);
    }

    /// <summary>Why a sector bitmap entry breaks the rules, or null.</summary>
    public string? BitmapProblem(long fileLength) => State switch
    {
        BlockState.NotPresent => null,
        BlockState.FullyPresent => PlaceProblem(VhdxLimits.BitmapBlockSize, fileLength),
        _ => $"the state of a sector bitmap block is {(int)State}, expected 0 or 6",
    };

    private string? PlaceProblem(long length, long fileLength)
    {
        if (RawOffset < VhdxLimits.Alignment)
            return "its block lies in the header area";
        return RawOffset > (ulong)fileLength || length > fileLength - (long)RawOffset
            ? $"its block at byte {RawOffset} reaches past the end of the file at byte {fileLength}" : null;
    }
}
