// What in the file something refers to, found by reading the block allocation table from its beginning to its end: for the allocator
// of an image that is opened for writing, and for the check.
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>A rule that is broken.</summary>
/// <param name="Structure">The structure.</param>
/// <param name="Offset">A byte offset in the file.</param>
/// <param name="Message">What is wrong.</param>
/// <param name="Shared">The block whose place another block has too, where that is all that is wrong; else null.</param>
internal readonly record struct SpaceProblem(string Structure, long Offset, string Message, SharedBlock? Shared = null);

/// <summary>A block of payload or of sector bitmaps in a place that an earlier entry names as well, in whole or in part.</summary>
/// <param name="Index">Its entry's number.</param>
/// <param name="Entry">Its entry.</param>
/// <param name="Length">Its bytes.</param>
internal readonly record struct SharedBlock(long Index, BatEntry Entry, int Length);

/// <summary>The used units of 1 MiB of one file.</summary>
internal sealed class UsedSpace
{
    private const int UnitBits = 20;

    private readonly ulong[] _bits;

    private UsedSpace(long units) => _bits = new ulong[(units + 63) / 64];

    /// <summary>One past the last used unit.</summary>
    public long EndUnit { get; private set; }

    /// <summary>Payload blocks that have host space.</summary>
    public long AllocatedBlocks { get; private set; }

    /// <summary>Reads the whole table.</summary>
    /// <param name="layout">The file's layout.</param>
    /// <param name="file">The file as it is after a replay.</param>
    /// <param name="report">Told of each entry that breaks a rule.</param>
    public static UsedSpace Scan(VhdxLayout layout, IStorage file, Action<SpaceProblem> report)
    {
        long length = Math.Min(file.Length, VhdxLimits.MaxFileSize);
        // The last block may end behind the end of the file.
        UsedSpace used = new(((length + VhdxLimits.Alignment - 1) >> UnitBits) + (layout.Geometry.BlockSize >> UnitBits));
        used.Add(0, VhdxLimits.Alignment);
        foreach (Region region in RegionsOf(layout))
            used.Add(region.Offset, region.Length);
        foreach ((long index, BatEntry entry) in BatReader.InUse(layout, file))
            used.Judge(layout, entry, index, length, report);
        return used;
    }

    /// <summary>The runs of unused units below an end, in order.</summary>
    public IEnumerable<(long Start, long Length)> FreeRuns(long end)
    {
        for (long unit = 0; unit < end;)
        {
            if (IsUsed(unit))
            {
                unit += (unit & 63) == 0 && Word(unit) == ulong.MaxValue ? 64 : 1;
                continue;
            }

            long start = unit;
            while (unit < end && !IsUsed(unit))
                unit = (unit & 63) == 0 && unit + 64 <= end && Word(unit) == 0 ? unit + 64 : unit + 1;
            yield return (start, unit - start);
        }
    }

    private ulong Word(long unit) => unit >> 6 < _bits.Length ? _bits[unit >> 6] : 0;

    private bool IsUsed(long unit) => (Word(unit) >> (int)(unit & 63) & 1) != 0;

    private void Judge(VhdxLayout layout, BatEntry entry, long index, long length, Action<SpaceProblem> report)
    {
        BatGeometry geometry = layout.Geometry;
        long at = layout.Regions.Bat.Offset + index * BatEntry.Size;
        bool isBitmap = geometry.IsBitmapIndex(index);
        // Slots for sector bitmaps exist in every file; without a parent nobody looks at them.
        if (isBitmap && !geometry.HasParent)
        {
            if (entry.State == BlockState.FullyPresent && entry.BitmapProblem(length) is null)
                Add(entry.Offset, VhdxLimits.BitmapBlockSize);
            return;
        }

        long block = geometry.BlockOf(index);
        if (!isBitmap && block >= geometry.BlockCount)
            return;
        string who = isBitmap ? $"sector bitmap {index / (geometry.ChunkRatio + 1)}" : $"block {block}";
        if ((isBitmap ? entry.BitmapProblem(length) : entry.PayloadProblem(geometry, block, length)) is { } problem)
        {
            report(new SpaceProblem("BAT", at, $"{who}: {problem}"));
            return;
        }

        bool hasSpace = isBitmap ? entry.State == BlockState.FullyPresent : entry.HasData;
        if (!hasSpace)
        {
            // A trimmed block may keep its place: whoever writes it again may go on using it, so it is nobody else's.
            if (!isBitmap && entry.KeepsPlace(geometry, length))
                Add(entry.Offset, geometry.BlockSize);
            return;
        }

        if (!isBitmap)
            AllocatedBlocks++;
        int size = isBitmap ? VhdxLimits.BitmapBlockSize : geometry.BlockSize;
        if (Add(entry.Offset, size))
            return;
        bool hitsRegion = Array.Exists(RegionsOf(layout), region => region.Offset < entry.Offset + size && entry.Offset < region.End);
        report(new SpaceProblem("BAT", at, $"{who}: its place at byte {entry.Offset} is in use by something else too",
            hitsRegion ? null : new SharedBlock(index, entry, size)));
    }

    private static Region[] RegionsOf(VhdxLayout layout) => [layout.LogRegion, layout.Regions.Bat, layout.Regions.Metadata, .. layout.Regions.Others];

    /// <summary>Marks a range as used. False where a part of it was already.</summary>
    private bool Add(long offset, long length)
    {
        bool isNew = true;
        long end = (offset + length) >> UnitBits;
        for (long unit = offset >> UnitBits; unit < end && unit >> 6 < _bits.Length; unit++)
        {
            ulong bit = 1UL << (int)(unit & 63);
            isNew &= (_bits[unit >> 6] & bit) == 0;
            _bits[unit >> 6] |= bit;
        }

        EndUnit = Math.Max(EndUnit, end);
        return isNew;
    }
}
