// MBR partition tables: four entries in the first sector, and a chain of further tables inside an extended partition, each with one
// logical partition and a link to the next.
using System.Buffers.Binary;

namespace QcowFs.FileSystem.Partitions;

/// <summary>The table in the first sector of a disk.</summary>
internal sealed class MasterBootRecord
{
    private const int Size = 512;
    private const int EntriesAt = 446;
    private const int EntrySize = 16;
    private const int EntryCount = 4;
    private const int FirstLogical = 5;

    // P2. A chain may lead in circles; Linux gives up after as many.
    private const int LongestChain = 100;

    private readonly Entry[] _entries;

    private MasterBootRecord(Entry[] entries) => _entries = entries;

    /// <summary>Whether an entry says that the disk is a GPT's.</summary>
    public bool Protects => Array.Exists(_entries, static e => e.Type == 0xEE);

    /// <summary>Whether no entry is in use.</summary>
    public bool IsEmpty => Array.TrueForAll(_entries, static e => !e.IsUsed);

    /// <summary>Reads the record; null where there is none. A file system's boot sector bears the same signature: where the bytes that
    /// would say "active" say something else, it is not a table.</summary>
    public static MasterBootRecord? Read(long length, ReadAt read)
    {
        if (length < Size) return null;
        byte[] sector = new byte[Size];
        read(0, sector);
        return ParseEntries(sector) is { } entries && Array.TrueForAll(entries, static e => e.Status is 0 or 0x80)
            ? new MasterBootRecord(entries)
            : null;
    }

    /// <summary>The unit of the addresses, which the table does not state: the first size for which something is where the table says
    /// it is (the chain of an extended partition, or what begins a file system); else the first.</summary>
    public int SectorSize(ReadOnlySpan<int> sizes, long length, ReadAt read)
    {
        foreach (int size in sizes)
        {
            foreach (Entry entry in _entries)
                if (entry.IsUsed && IsSomethingAt((long)entry.FirstSector * size, entry.IsExtended, length, read)) return size;
        }
        return sizes[0];
    }

    /// <summary>Adds the primary partitions and the chains of extended ones, which are not shown themselves.</summary>
    public void AddPartitions(PartitionListing listing, ReadAt read)
    {
        int logical = FirstLogical;
        for (int i = 0; i < EntryCount; i++)
            if (_entries[i] is { IsUsed: true, IsExtended: false } entry) listing.Add(i + 1, entry.FirstSector, entry.Sectors);
        foreach (Entry entry in _entries)
            if (entry is { IsUsed: true, IsExtended: true }) AddLogical(listing, entry, read, ref logical);
    }

    // Each table's partition is counted from the table itself, its link from the start of the extended partition.
    private static void AddLogical(PartitionListing listing, Entry extended, ReadAt read, ref int number)
    {
        ulong start = extended.FirstSector;
        ulong table = start;
        byte[] sector = new byte[Size];
        HashSet<ulong> seen = [];
        while (true)
        {
            if (seen.Count == LongestChain || !seen.Add(table))
            {
                listing.Warn("the chain of logical partitions leads in a circle or is too long; what was found so far is shown");
                return;
            }
            if (table >= listing.SectorCount || (long)table * listing.SectorSize > listing.DiskLength - Size)
            {
                listing.Warn("the chain of logical partitions leads past the end of the disk; what was found so far is shown");
                return;
            }
            read((long)table * listing.SectorSize, sector);
            if (ParseEntries(sector) is not { } entries)
            {
                listing.Warn("the chain of logical partitions is broken; what was found so far is shown");
                return;
            }
            if (entries[0] is { IsUsed: true, IsExtended: false } partition
                && !listing.Add(number++, table + partition.FirstSector, partition.Sectors)) return;
            Entry link = Array.Find(entries, static e => e is { IsUsed: true, IsExtended: true });
            if (!link.IsUsed) return;
            table = start + link.FirstSector;
        }
    }

    private static bool IsSomethingAt(long offset, bool isExtended, long length, ReadAt read)
    {
        const int enough = 2048; // ext's superblock is the last of what is looked for
        if (offset > length - enough) return false;
        byte[] start = new byte[enough];
        read(offset, start);
        bool isSigned = start[510] == 0x55 && start[511] == 0xAA; // a table of a chain, FAT, NTFS
        if (isExtended) return isSigned;
        ReadOnlySpan<byte> bytes = start;
        return isSigned || bytes.StartsWith("XFSB"u8) || bytes.StartsWith("LUKS"u8) || bytes[512..].StartsWith("LABELONE"u8)
            || BinaryPrimitives.ReadUInt16LittleEndian(bytes[1080..]) == 0xEF53; // ext2, ext3, ext4
    }

    private static Entry[]? ParseEntries(ReadOnlySpan<byte> sector)
    {
        if (sector[510] != 0x55 || sector[511] != 0xAA) return null;
        var entries = new Entry[EntryCount];
        for (int i = 0; i < EntryCount; i++)
        {
            ReadOnlySpan<byte> entry = sector.Slice(EntriesAt + (i * EntrySize), EntrySize);
            entries[i] = new Entry(
                entry[0], entry[4], BinaryPrimitives.ReadUInt32LittleEndian(entry[8..]), BinaryPrimitives.ReadUInt32LittleEndian(entry[12..]));
        }
        return entries;
    }

    private readonly record struct Entry(byte Status, byte Type, uint FirstSector, uint Sectors)
    {
        public bool IsUsed => Type != 0 && Sectors > 0;

        public bool IsExtended => Type is 0x05 or 0x0F or 0x85;
    }
}
