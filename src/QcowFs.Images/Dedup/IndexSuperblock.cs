// The superblock of an index file: what it belongs to, how large its parts are, which regions are in use. Two copies in the first two
// pages, written in turn, so that a torn one leaves the other. Layout: DESIGN.md beside this file.
using System.Buffers.Binary;
using System.Numerics;

namespace QcowFs.Images.Dedup;

/// <summary>What ties an index to the state of an image file.</summary>
/// <param name="Device">Device of the image file.</param>
/// <param name="Inode">Its inode.</param>
/// <param name="Length">Its length in bytes.</param>
/// <param name="ModifiedSeconds">Its modification time.</param>
/// <param name="ModifiedNanoseconds">Nanoseconds of that second.</param>
internal readonly record struct ImageBinding(ulong Device, ulong Inode, long Length, long ModifiedSeconds, uint ModifiedNanoseconds)
{
    /// <summary>Whether both are of the same file, in whatever state.</summary>
    public bool IsSameFile(in ImageBinding other) => Device == other.Device && Inode == other.Inode;
}

/// <summary>What a region is used for.</summary>
internal enum RegionState : byte
{
    Free = 0,
    InUse = 1,
    Freezing = 2,
}

/// <summary>A log or a table as the superblock knows it.</summary>
/// <param name="State">What it is used for.</param>
/// <param name="Id">Seeds the checksums of its pages (D2).</param>
/// <param name="Order">Higher is newer.</param>
/// <param name="Entries">How many entries a table holds.</param>
internal readonly record struct Region(RegionState State, ulong Id, ulong Order, long Entries);

/// <summary>The superblock. Immutable.</summary>
internal sealed record IndexSuperblock
{
    public const int KeySize = 192;
    private const ulong Magic = 0x4944_7346_776F_6351; // "QcowFsDI"
    private const uint Version = 1;
    private const int ChecksumAt = 8;
    private const int KeyAt = 256;
    private const int LogsAt = 512;
    private const int TablesAt = 640;
    private const int RegionSize = 32;
    private const int Logs = 2;

    public required ulong Sequence { get; init; }

    public required int BlockSize { get; init; }

    public required DedupHash Hash { get; init; }

    public required long LogPages { get; init; }

    public required long Buckets { get; init; }

    public required byte[] Key { get; init; }

    public ImageBinding Binding { get; init; }

    /// <summary>How many table bits there are; 0: nothing is known of any table.</summary>
    public long TableBits { get; init; }

    public ulong TableBitsId { get; init; }

    /// <summary>The guest byte at which a scan goes on.</summary>
    public long ScanOffset { get; init; }

    public long Hashed { get; init; }

    public long Hits { get; init; }

    public long BytesShared { get; init; }

    public required IReadOnlyList<Region> LogRegions { get; init; }

    public required IReadOnlyList<Region> TableRegions { get; init; }

    /// <summary>Whether either copy begins like a superblock, sound or not.</summary>
    public static bool IsRecognised(ReadOnlySpan<byte> twoPages) =>
        BinaryPrimitives.ReadUInt64LittleEndian(twoPages) == Magic
        || BinaryPrimitives.ReadUInt64LittleEndian(twoPages[IndexPage.Size..]) == Magic;

    /// <summary>The newer valid copy, or null.</summary>
    public static IndexSuperblock? Choose(ReadOnlySpan<byte> twoPages)
    {
        IndexSuperblock? first = Parse(twoPages[..IndexPage.Size]);
        IndexSuperblock? second = Parse(twoPages[IndexPage.Size..]);
        return first is null || (second is not null && second.Sequence > first.Sequence) ? second : first;
    }

    /// <summary>The copy in one page, or null where it is none or is not sound.</summary>
    public static IndexSuperblock? Parse(ReadOnlySpan<byte> page)
    {
        if (BinaryPrimitives.ReadUInt64LittleEndian(page) != Magic
            || BinaryPrimitives.ReadUInt32LittleEndian(page[ChecksumAt..]) != Checksum(page)
            || BinaryPrimitives.ReadUInt32LittleEndian(page[12..]) != Version || page[28] > (byte)DedupHash.Sha256)
        {
            return null;
        }

        IndexSuperblock block = new()
        {
            Sequence = BinaryPrimitives.ReadUInt64LittleEndian(page[16..]),
            BlockSize = BinaryPrimitives.ReadInt32LittleEndian(page[24..]),
            Hash = (DedupHash)page[28],
            LogPages = BinaryPrimitives.ReadInt64LittleEndian(page[32..]),
            Buckets = BinaryPrimitives.ReadInt64LittleEndian(page[40..]),
            Binding = new ImageBinding(
                BinaryPrimitives.ReadUInt64LittleEndian(page[48..]),
                BinaryPrimitives.ReadUInt64LittleEndian(page[56..]),
                BinaryPrimitives.ReadInt64LittleEndian(page[64..]),
                BinaryPrimitives.ReadInt64LittleEndian(page[72..]),
                (uint)(BinaryPrimitives.ReadUInt64LittleEndian(page[80..]) & uint.MaxValue)),
            TableBits = BinaryPrimitives.ReadInt64LittleEndian(page[88..]),
            TableBitsId = BinaryPrimitives.ReadUInt64LittleEndian(page[96..]),
            ScanOffset = BinaryPrimitives.ReadInt64LittleEndian(page[104..]),
            Hashed = BinaryPrimitives.ReadInt64LittleEndian(page[112..]),
            Hits = BinaryPrimitives.ReadInt64LittleEndian(page[120..]),
            BytesShared = BinaryPrimitives.ReadInt64LittleEndian(page[128..]),
            Key = page.Slice(KeyAt, KeySize).ToArray(),
            LogRegions = ReadRegions(page[LogsAt..], Logs),
            TableRegions = ReadRegions(page[TablesAt..], IndexGeometry.MostTables),
        };
        bool isPossible = block is { TableBits: >= 0, ScanOffset: >= 0, Hashed: >= 0, Hits: >= 0, BytesShared: >= 0 }
            && block.TableBits <= (long)IndexGeometry.BitsPages * IndexGeometry.BitsPerPage;
        return isPossible ? block : null;
    }

    /// <summary>Writes the copy that goes into one page.</summary>
    public void WriteTo(Span<byte> page)
    {
        page[..IndexPage.Size].Clear();
        BinaryPrimitives.WriteUInt64LittleEndian(page, Magic);
        BinaryPrimitives.WriteUInt32LittleEndian(page[12..], Version);
        BinaryPrimitives.WriteUInt64LittleEndian(page[16..], Sequence);
        BinaryPrimitives.WriteInt32LittleEndian(page[24..], BlockSize);
        page[28] = (byte)Hash;
        BinaryPrimitives.WriteInt64LittleEndian(page[32..], LogPages);
        BinaryPrimitives.WriteInt64LittleEndian(page[40..], Buckets);
        BinaryPrimitives.WriteUInt64LittleEndian(page[48..], Binding.Device);
        BinaryPrimitives.WriteUInt64LittleEndian(page[56..], Binding.Inode);
        BinaryPrimitives.WriteInt64LittleEndian(page[64..], Binding.Length);
        BinaryPrimitives.WriteInt64LittleEndian(page[72..], Binding.ModifiedSeconds);
        BinaryPrimitives.WriteUInt64LittleEndian(page[80..], Binding.ModifiedNanoseconds);
        BinaryPrimitives.WriteInt64LittleEndian(page[88..], TableBits);
        BinaryPrimitives.WriteUInt64LittleEndian(page[96..], TableBitsId);
        BinaryPrimitives.WriteInt64LittleEndian(page[104..], ScanOffset);
        BinaryPrimitives.WriteInt64LittleEndian(page[112..], Hashed);
        BinaryPrimitives.WriteInt64LittleEndian(page[120..], Hits);
        BinaryPrimitives.WriteInt64LittleEndian(page[128..], BytesShared);
        Key.CopyTo(page[KeyAt..]);
        WriteRegions(page[LogsAt..], LogRegions);
        WriteRegions(page[TablesAt..], TableRegions);
        BinaryPrimitives.WriteUInt32LittleEndian(page[ChecksumAt..], Checksum(page));
    }

    private static Region[] ReadRegions(ReadOnlySpan<byte> source, int count)
    {
        Region[] regions = new Region[count];
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> at = source.Slice(i * RegionSize, RegionSize);
            RegionState state = at[0] <= (byte)RegionState.Freezing ? (RegionState)at[0] : RegionState.Free;
            regions[i] = new Region(
                state,
                BinaryPrimitives.ReadUInt64LittleEndian(at[8..]),
                BinaryPrimitives.ReadUInt64LittleEndian(at[16..]),
                Math.Max(0, BinaryPrimitives.ReadInt64LittleEndian(at[24..])));
        }

        return regions;
    }

    private static void WriteRegions(Span<byte> destination, IReadOnlyList<Region> regions)
    {
        for (int i = 0; i < regions.Count; i++)
        {
            Span<byte> at = destination.Slice(i * RegionSize, RegionSize);
            at[0] = (byte)regions[i].State;
            BinaryPrimitives.WriteUInt64LittleEndian(at[8..], regions[i].Id);
            BinaryPrimitives.WriteUInt64LittleEndian(at[16..], regions[i].Order);
            BinaryPrimitives.WriteInt64LittleEndian(at[24..], regions[i].Entries);
        }
    }

    private static uint Checksum(ReadOnlySpan<byte> page)
    {
        uint crc = uint.MaxValue;
        for (int i = 0; i < IndexPage.Size; i += sizeof(ulong))
        {
            ulong word = BinaryPrimitives.ReadUInt64LittleEndian(page[i..]);
            crc = BitOperations.Crc32C(crc, i == ChecksumAt ? word & ~(ulong)uint.MaxValue : word);
        }

        return ~crc;
    }
}
