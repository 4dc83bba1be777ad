// The partitions of a disk, as its own tables state them.
//
// P1. Total: whatever bytes the disk holds, the answer is a list and a list of warnings. Only the reads themselves may fail.
// P2. Bounded: at most MostPartitions partitions, LongestChain links of a chain, LargestEntryArray bytes of entries.
// P3. No partition that is given reaches past the disk: what does is clamped, with a warning. Overlaps are given, with a warning.
namespace QcowFs.FileSystem.Partitions;

/// <summary>Reads bytes of the disk; called only for ranges inside it.</summary>
internal delegate void ReadAt(long offset, Span<byte> destination);

/// <summary>Which kind of table was found.</summary>
internal enum PartitionScheme
{
    None,
    Mbr,
    Gpt,
}

/// <summary>One partition.</summary>
/// <param name="Number">As Linux and fdisk count: GPT entry index + 1; MBR 1 to 4, logical from 5.</param>
/// <param name="Offset">First byte on the disk.</param>
/// <param name="Length">Bytes, inside the disk; 0 where nothing of it is.</param>
internal readonly record struct Partition(int Number, long Offset, long Length)
{
    public long End => Offset + Length;
}

/// <summary>What was found.</summary>
/// <param name="Scheme">The kind of table.</param>
/// <param name="SectorSize">Unit of its addresses in bytes.</param>
/// <param name="Partitions">In the order of their numbers.</param>
/// <param name="Warnings">One sentence each.</param>
internal sealed record PartitionTable(
    PartitionScheme Scheme, int SectorSize, IReadOnlyList<Partition> Partitions, IReadOnlyList<string> Warnings)
{
    /// <summary>The kernel shows no more of a disk either.</summary>
    public const int MostPartitions = 256;

    /// <summary>The sector sizes of disks, in the order in which they are tried.</summary>
    private static readonly int[] SectorSizes = [512, 4096];

    public static PartitionTable None { get; } = new(PartitionScheme.None, 0, [], []);

    /// <summary>Reads the table of a disk (P1). A GPT wins unless the MBR beside it is in use and does not protect it.</summary>
    public static PartitionTable Read(long length, ReadAt read)
    {
        MasterBootRecord? record = MasterBootRecord.Read(length, read);
        if (record is null || record.Protects || record.IsEmpty)
        {
            foreach (int sectorSize in SectorSizes)
            {
                PartitionListing listing = new(length, sectorSize);
                if (GuidTable.TryRead(listing, read)) return listing.Finish(PartitionScheme.Gpt);
            }
        }
        if (record is null) return None;
        if (record.Protects) return None with { Warnings = ["the MBR protects a GPT, of which neither copy is valid"] };
        PartitionListing found = new(length, record.SectorSize(SectorSizes, length, read));
        record.AddPartitions(found, read);
        return found.Finish(PartitionScheme.Mbr);
    }
}

/// <summary>Collects partitions while a table is read, within the bounds (P2, P3).</summary>
internal sealed class PartitionListing(long diskLength, int sectorSize)
{
    private const int MostWarnings = 20;

    private readonly List<Partition> _partitions = [];
    private readonly List<string> _warnings = [];

    public int SectorSize { get; } = sectorSize;

    public long DiskLength { get; } = diskLength;

    /// <summary>Whole sectors of the disk.</summary>
    public ulong SectorCount => (ulong)(DiskLength / SectorSize);

    public bool IsFull => _partitions.Count >= PartitionTable.MostPartitions;

    public void Warn(string sentence)
    {
        if (_warnings.Count < MostWarnings) _warnings.Add(sentence);
        else if (_warnings.Count == MostWarnings) _warnings.Add("there are more warnings");
    }

    /// <summary>Adds what an entry states, cut to the disk. False where no more are taken.</summary>
    public bool Add(int number, ulong firstSector, ulong sectors)
    {
        if (IsFull)
        {
            Warn($"only the first {PartitionTable.MostPartitions} partitions are shown");
            return false;
        }
        ulong start = Math.Min(firstSector, SectorCount);
        ulong count = Math.Min(sectors, SectorCount - start);
        // The disk's last sector may be a part of one; a table counts whole ones.
        if (count < sectors) Warn($"partition {number} ({sectors} sectors from {firstSector}) reaches past the end of the disk and is cut there");
        _partitions.Add(new Partition(number, (long)start * SectorSize, (long)count * SectorSize));
        return true;
    }

    public PartitionTable Finish(PartitionScheme scheme)
    {
        Partition[] byPlace = [.. _partitions.Where(p => p.Length > 0)];
        Array.Sort(byPlace, static (a, b) => a.Offset.CompareTo(b.Offset));
        Partition furthest = default;
        foreach (Partition partition in byPlace)
        {
            if (partition.Offset < furthest.End) Warn($"partition {partition.Number} overlaps partition {furthest.Number}");
            if (partition.End > furthest.End) furthest = partition;
        }
        return new PartitionTable(scheme, SectorSize, [.. _partitions.OrderBy(static p => p.Number)], _warnings);
    }
}
