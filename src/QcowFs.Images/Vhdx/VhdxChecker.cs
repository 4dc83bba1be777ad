// The consistency check of a VHDX image: both headers, both region tables, the metadata, the block allocation table with bounds and
// overlaps, sector bitmaps. Where the log is in use, all but the headers is checked as it is after a replay, which is done in memory: a
// log in use is what a crash leaves, and no defect. Space that nothing refers to is free, since the format keeps no other record of it;
// so there are no leaks. Whether the parent is the right one is asked beside it (VhdxFormat).
using System.Buffers.Binary;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>An entry of the table that can be mended without guessing: what stands there, and what should.</summary>
internal readonly record struct EntryMend(long Index, BatEntry Wanted);

/// <summary>One run of the check. Used by one thread.</summary>
internal sealed class VhdxChecker
{
    private const string NoRepair = "none";

    private readonly IStorage _file;
    private readonly VhdxLayout _layout;
    private readonly Action<EntryMend>? _mend;
    private readonly Action<SharedBlock>? _share;
    private readonly CheckFindings _findings = new();

    private VhdxChecker(IStorage file, Action<EntryMend>? mend, Action<SharedBlock>? share)
    {
        _share = share;
        _file = file;
        _layout = VhdxLayout.Read(file);
        _mend = mend;
    }

    /// <summary>Checks an image. Faults: <see cref="ImageFormatException"/> where a root structure cannot be understood, so that nothing
    /// can be said; <see cref="StorageException"/>.</summary>
    /// <param name="file">The image file.</param>
    /// <param name="mend">Told of the entries that a repair can mend; may be null.</param>
    /// <param name="share">Told of the blocks that a repair can give a place of their own; may be null.</param>
    public static CheckReport Check(IStorage file, Action<EntryMend>? mend = null, Action<SharedBlock>? share = null) =>
        new VhdxChecker(file, mend, share).Run();

    private CheckReport Run()
    {
        CheckHeaders();
        CheckRegions();
        UsedSpace used = UsedSpace.Scan(_layout, _layout.View, problem =>
        {
            if (problem.Shared is { } shared)
                _share?.Invoke(shared);
            _findings.Corruption(problem.Shared is null ? "block" : "overlap", problem.Structure, problem.Offset, problem.Message,
                problem.Shared is null ? NoRepair : "give the block a place of its own, with a copy of what it reads as");
        });
        CheckEntries();
        return new CheckReport
        {
            Format = VhdxFormat.FormatName,
            CheckErrors = _findings.CheckErrors,
            Corruptions = _findings.Corruptions,
            HarmlessCorruptions = _findings.HarmlessCount,
            Leaks = _findings.Leaks,
            ImageEndOffset = used.EndUnit * VhdxLimits.Alignment,
            TotalClusters = _layout.Geometry.BlockCount,
            AllocatedClusters = used.AllocatedBlocks,
            Findings = _findings.Listed,
            FindingsNotListed = _findings.NotListed,
        };
    }

    private void CheckHeaders()
    {
        VhdxHeaders headers = _layout.Headers;
        if (!headers.OtherIsValid)
        {
            _findings.Harmless("header", "header", VhdxHeaders.FirstOffset + VhdxHeaders.SecondOffset - headers.CurrentOffset,
                "this copy of the header has no right signature and checksum", "write it anew from the other copy");
        }

        if (headers.Current.LogVersion != 0)
        {
            _findings.Harmless("log-version", "header", headers.CurrentOffset + VhdxHeader.LogVersionAt,
                $"the version of the log, which is empty, is {headers.Current.LogVersion}, expected 0; QEMU refuses the file for it", "set it to 0");
        }

        if (_layout.LogRegion.Length == 0)
        {
            _findings.Harmless("no-log", "header", headers.CurrentOffset + VhdxHeader.LogLengthAt,
                "the file has no log, so it can only be read", "make one");
        }
    }

    private void CheckRegions()
    {
        if (_layout.Regions.OtherCopyIsValid)
            return;
        _findings.Harmless("region-table", "region table", RegionTable.FirstOffset + RegionTable.SecondOffset - _layout.Regions.TableOffset,
            "this copy of the region table is damaged or differs from the other one", "write it anew from the other copy");
    }

    // What the scan of used space has no use for.
    private void CheckEntries()
    {
        foreach ((long index, BatEntry entry) in BatReader.InUse(_layout, _layout.View))
            CheckEntry(entry, index);
    }

    private void CheckEntry(BatEntry entry, long index)
    {
        BatGeometry geometry = _layout.Geometry;
        long at = _layout.Regions.Bat.Offset + index * BatEntry.Size;
        bool isBitmap = geometry.IsBitmapIndex(index);
        if (isBitmap || geometry.BlockOf(index) >= geometry.BlockCount)
            return;
        long block = geometry.BlockOf(index);
        if ((entry.Raw & BatEntry.ReservedBits) != 0)
        {
            _findings.Harmless("reserved-bits", "BAT", at, $"block {block}: reserved bits of its entry {entry.Raw:x} are set", "clear them");
            _mend?.Invoke(new EntryMend(index, new BatEntry(entry.Raw & ~BatEntry.ReservedBits)));
        }

        if (entry.State is BlockState.Zero && entry.RawOffset != 0)
        {
            _findings.Harmless("zero-with-place", "BAT", at,
                $"block {block}: it reads as zeros but states a place at byte {entry.RawOffset}, for which Hyper-V refuses the file", "clear the place");
            _mend?.Invoke(new EntryMend(index, new BatEntry(BlockState.Zero, 0)));
        }

        if (entry.State == BlockState.PartiallyPresent && geometry.HasParent)
            CheckBitmap(block, at);
    }

    private void CheckBitmap(long block, long at)
    {
        BatGeometry geometry = _layout.Geometry;
        Span<byte> bytes = stackalloc byte[BatEntry.Size];
        _layout.View.Read(_layout.Regions.Bat.Offset + geometry.BitmapIndex(block >> geometry.RatioBits) * BatEntry.Size, bytes);
        BatEntry bitmap = new(BinaryPrimitives.ReadUInt64LittleEndian(bytes));
        if (bitmap.State != BlockState.FullyPresent)
            _findings.Corruption("bitmap", "BAT", at, $"block {block}: it is partially present, but its sector bitmap block is not there", NoRepair);
    }
}
