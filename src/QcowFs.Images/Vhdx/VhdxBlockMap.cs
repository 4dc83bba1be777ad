// Where guest blocks live in a VHDX image: the block allocation table, sector bitmaps, and the answers that the engine asks for.
//
// M1. A lookup takes no lock when the pages are cached: it reads between two looks at a page's sequence and believes what it read only
//     where the page did not change meanwhile.
// M2. Changes happen under the gate with every page that they need pinned, so that a change is complete or has not begun.
// M3. A block becomes partially present only from not present, with its bits set anew, and never goes back to not present: so bits that
//     an earlier use of the bitmap left, or a commit of which only the first entry survived, are never read.
// M4. Bits are changed before the entry that makes them count.
// M5. What a change unmaps is freed after the commit that makes the removal durable (I3).
using System.Buffers.Binary;
using System.Numerics;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>The block map of one VHDX image.</summary>
internal sealed partial class VhdxBlockMap : IBlockMap
{
    private readonly VhdxState _state;
    private readonly VhdxCommit _commit;
    private readonly MetadataCache _cache;
    private readonly IStorage _file;
    private readonly BatGeometry _geometry;
    private readonly long _bat;
    private readonly int _blockBits;
    private readonly long _blockMask;
    private readonly int _sectorBits;
    private readonly bool _writable;

    public VhdxBlockMap(VhdxState state, VhdxCommit commit)
    {
        _state = state;
        _commit = commit;
        _cache = state.Cache;
        _file = state.File;
        _geometry = state.Layout.Geometry;
        _bat = state.Layout.Regions.Bat.Offset;
        _blockBits = _geometry.BlockBits;
        _blockMask = _geometry.BlockSize - 1L;
        _sectorBits = BitOperations.Log2((uint)_geometry.SectorSize);
        _writable = state.Space is not null;
        // Sectors can be the parent's one by one, but only a whole block can be made zero.
        Traits = new BlockMapTraits(_geometry.BlockSize, _geometry.BlockSize);
    }

    public BlockMapTraits Traits { get; }

    /// <summary>What it works on. For tests.</summary>
    internal VhdxState State => _state;

    public bool NeedsCommit => _cache.NeedsCommit || _state.HasManyRemovals || _cache.DirtyCount > _commit.PagesPerEntry;

    public bool IsDirty => _state.IsDirty;

    public IRecovery? Recovery => null;

    public Extent Lookup(long offset, long length)
    {
        long pageOffset = PageOf(EntryOffset(_geometry.PayloadIndex(offset >> _blockBits)));
        while (true)
        {
            MetadataPage page = _cache.Get(pageOffset);
            int sequence = page.Sequence;
            if ((sequence & 1) == 0 && page.Offset == pageOffset)
            {
                Scan scan = ScanBlocks(page, pageOffset, offset, length);
                Volatile.ReadBarrier();
                if (page.Sequence == sequence)
                {
                    if (scan.Problem is not null)
                        throw BadEntry(offset, scan.Problem);
                    return scan.IsPartial ? LookupSectors(offset, scan.Extent) : scan.Extent;
                }
            }

            Thread.SpinWait(8);
        }
    }

    public void ReadCompressed(long descriptor, int offset, Span<byte> destination) =>
        throw new InvalidOperationException("a VHDX image has no compressed blocks");

    public bool Commit(Func<bool> takeDataDirty) => _commit.Run(takeDataDirty);

    public void BeginUse() => _commit.BeginUse();

    public void EndUse() => _commit.EndUse();

    public void Dispose()
    {
        // Everything belongs to the image.
    }

    /// <summary>What a look at a page found. A problem is believed only where the page did not change meanwhile.</summary>
    private readonly record struct Scan(Extent Extent, bool IsPartial, string? Problem);

    /// <summary>Merges the blocks from an offset on that are alike, as far as one page of the table tells.</summary>
    private Scan ScanBlocks(MetadataPage page, long pageOffset, long offset, long length)
    {
        long fileLength = _file.Length;
        long block = offset >> _blockBits;
        long covered = -(offset & _blockMask);
        Extent extent = default;
        for (long first = block; covered < length; block++, covered += _blockMask + 1)
        {
            long at = EntryOffset(_geometry.PayloadIndex(block)) - pageOffset;
            if (at >= VhdxLimits.SectorSize || block >= _geometry.BlockCount)
                break;
            BatEntry entry = Entry(page, (int)at);
            string? problem = entry.PayloadProblem(_geometry, block, fileLength);
            if (problem is not null || entry.State == BlockState.PartiallyPresent)
            {
                // A neighbour is told about when it is asked for.
                if (block > first)
                    break;
                if (problem is not null)
                    return new Scan(default, false, problem);
                Extent sectors = new(ExtentKind.Data, Math.Min(length, covered + _blockMask + 1), entry.Offset);
                return new Scan(sectors, true, null);
            }

            ExtentKind kind = KindOf(entry.State);
            if (block == first)
                extent = new Extent(kind, 0, kind == ExtentKind.Data ? entry.Offset - covered : -1, kind == ExtentKind.Data && _writable);
            else if (kind != extent.Kind || (kind == ExtentKind.Data && entry.Offset != extent.Host + covered))
                break;
        }

        return new Scan(extent with { Length = Math.Min(length, covered) }, false, null);
    }

    private static ExtentKind KindOf(BlockState state) => state switch
    {
        BlockState.FullyPresent => ExtentKind.Data,
        BlockState.NotPresent => ExtentKind.Backing,
        _ => ExtentKind.Zero,
    };

    /// <summary>What of a partially present block a range is made of.</summary>
    /// <param name="offset">The range's start.</param>
    /// <param name="block">The range's length, and where the block begins in the file.</param>
    private Extent LookupSectors(long offset, Extent block)
    {
        long bitmap = BitmapBlock(offset >> _blockBits)
            ?? throw BadEntry(offset, "it is partially present, but its sector bitmap block is not there");
        long bit = BitOf(offset);
        long pageOffset = bitmap + PageOf(bit >> 3);
        while (true)
        {
            MetadataPage page = _cache.Get(pageOffset);
            int sequence = page.Sequence;
            if ((sequence & 1) == 0 && page.Offset == pageOffset)
            {
                int first = (int)(bit & (SectorBitmap.BitsPerPage - 1));
                long inSector = offset & (_geometry.SectorSize - 1);
                int wanted = (int)Math.Min(SectorBitmap.BitsPerPage - first, (block.Length + inSector + _geometry.SectorSize - 1) >> _sectorBits);
                bool present = SectorBitmap.Get(page.Bytes, first);
                long length = Math.Min(block.Length, ((long)SectorBitmap.RunLength(page.Bytes, first, wanted) << _sectorBits) - inSector);
                Volatile.ReadBarrier();
                if (page.Sequence == sequence)
                {
                    return present ? new Extent(ExtentKind.Data, length, block.Host + (offset & _blockMask), _writable)
                        : new Extent(ExtentKind.Backing, length);
                }
            }

            Thread.SpinWait(8);
        }
    }

    /// <summary>Where the sector bitmap block of a payload block's chunk is, or null where there is none.</summary>
    private long? BitmapBlock(long block)
    {
        BatEntry entry = ReadEntry(_geometry.BitmapIndex(block >> _geometry.RatioBits));
        if (entry.BitmapProblem(_file.Length) is { } problem)
            throw BadEntry(block << _blockBits, problem);
        return entry.State == BlockState.FullyPresent ? entry.Offset : null;
    }

    /// <summary>One entry of the table, as it is at some moment of the call.</summary>
    private BatEntry ReadEntry(long index)
    {
        long at = EntryOffset(index);
        long pageOffset = PageOf(at);
        while (true)
        {
            MetadataPage page = _cache.Get(pageOffset);
            int sequence = page.Sequence;
            if ((sequence & 1) == 0 && page.Offset == pageOffset)
            {
                BatEntry entry = Entry(page, (int)(at - pageOffset));
                Volatile.ReadBarrier();
                if (page.Sequence == sequence)
                    return entry;
            }

            Thread.SpinWait(8);
        }
    }

    private static BatEntry Entry(MetadataPage page, int at) => new(BinaryPrimitives.ReadUInt64LittleEndian(page.Bytes[at..]));

    private long EntryOffset(long index) => _bat + index * BatEntry.Size;

    private static long PageOf(long offset) => offset & -VhdxLimits.SectorSize;

    /// <summary>Which bit of its chunk's sector bitmap a guest offset has.</summary>
    private long BitOf(long offset) => (offset >> _sectorBits) & (VhdxLimits.SectorsPerChunk - 1);

    private ImageFormatException BadEntry(long offset, string problem)
    {
        long block = offset >> _blockBits;
        return new ImageFormatException(_file.Name, "BAT", EntryOffset(_geometry.PayloadIndex(block)), $"block {block}: {problem}",
            $"run qcowfs check {_file.Name}");
    }
}
