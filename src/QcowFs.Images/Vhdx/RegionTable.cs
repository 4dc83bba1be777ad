// The region table (fact sheet, section 3): where the BAT and the metadata region are. There are two copies of it.
using System.Buffers.Binary;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>A region of the file.</summary>
internal readonly record struct Region(long Offset, long Length)
{
    public long End => Offset + Length;
}

/// <summary>The regions that every file has.</summary>
/// <param name="Bat">The block allocation table.</param>
/// <param name="Metadata">The metadata region.</param>
/// <param name="Others">Regions that are not known and not required.</param>
/// <param name="TableOffset">The copy that was read.</param>
/// <param name="OtherCopyIsValid">Whether the second copy is valid too, and the same.</param>
internal sealed record RegionTable(Region Bat, Region Metadata, IReadOnlyList<Region> Others, long TableOffset, bool OtherCopyIsValid)
{
    public const int Size = 65536;
    public const long FirstOffset = 192 << 10;
    public const long SecondOffset = 256 << 10;
    public const int ChecksumAt = 4;
    public const int CountAt = 8;
    public const int EntriesAt = 16;
    public const int EntrySize = 32;
    public const int OffsetAt = 16;
    public const int LengthAt = 24;
    public const int FlagsAt = 28;
    private const uint Signature = 0x69676572; // "regi"
    private const uint RequiredFlag = 1;
    private const string Structure = "region table";
    private const string Damaged = "restore the file from a copy";

    /// <summary>Reads the first copy that is valid. Faults: <see cref="ImageFormatException"/>.</summary>
    /// <param name="file">The file as it is after a replay of its log.</param>
    /// <param name="log">Where the log is; no region may touch it.</param>
    public static RegionTable Read(IStorage file, Region log)
    {
        byte[] first = new byte[Size];
        byte[] second = new byte[Size];
        file.Read(FirstOffset, first);
        file.Read(SecondOffset, second);
        bool firstValid = IsValid(first);
        bool secondValid = IsValid(second);
        if (!firstValid && !secondValid)
        {
            throw new ImageFormatException(file.Name, Structure, FirstOffset,
                $"neither it nor its copy at byte {SecondOffset} has its signature and a right checksum", Damaged);
        }

        bool same = firstValid && secondValid && first.AsSpan().SequenceEqual(second);
        return firstValid ? Parse(file, first, FirstOffset, same, log) : Parse(file, second, SecondOffset, same, log);
    }

    /// <summary>Makes the bytes of a table with the two known regions.</summary>
    public static byte[] Make(Region bat, Region metadata)
    {
        byte[] bytes = new byte[Size];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, Signature);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(CountAt), 2);
        WriteEntry(bytes.AsSpan(EntriesAt), VhdxGuids.BatRegion, bat);
        WriteEntry(bytes.AsSpan(EntriesAt + EntrySize), VhdxGuids.MetadataRegion, metadata);
        WriteChecksum(bytes);
        return bytes;
    }

    /// <summary>Changes the BAT's place in the bytes of a table.</summary>
    public static void MoveBat(Span<byte> table, Region bat)
    {
        int count = BinaryPrimitives.ReadInt32LittleEndian(table[CountAt..]);
        for (int i = 0; i < count; i++)
        {
            Span<byte> entry = table.Slice(EntriesAt + i * EntrySize, EntrySize);
            if (new Guid(entry[..VhdxGuids.Size]) != VhdxGuids.BatRegion)
                continue;
            BinaryPrimitives.WriteInt64LittleEndian(entry[OffsetAt..], bat.Offset);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[LengthAt..], (uint)bat.Length);
        }

        WriteChecksum(table);
    }

    private static bool IsValid(ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadUInt32LittleEndian(bytes) == Signature
        && BinaryPrimitives.ReadUInt32LittleEndian(bytes[ChecksumAt..]) == Crc32C.OfStructure(bytes, ChecksumAt)
        && BinaryPrimitives.ReadUInt32LittleEndian(bytes[CountAt..]) <= VhdxLimits.MaxRegions;

    private static RegionTable Parse(IStorage file, ReadOnlySpan<byte> bytes, long tableOffset, bool same, Region log)
    {
        int count = (int)BinaryPrimitives.ReadUInt32LittleEndian(bytes[CountAt..]);
        HashSet<Guid> seen = [];
        Region? bat = null;
        Region? metadata = null;
        List<(Region Region, long At)> all = [];
        List<Region> others = [];
        for (int i = 0; i < count; i++)
        {
            int at = EntriesAt + i * EntrySize;
            ReadOnlySpan<byte> entry = bytes.Slice(at, EntrySize);
            Guid id = new(entry[..VhdxGuids.Size]);
            if (!seen.Add(id))
                throw Bad(file, tableOffset + at, $"region {id} is there twice", Damaged);
            Region region = ParseRegion(file, entry, tableOffset + at, id);
            all.Add((region, tableOffset + at));
            bool required = (BinaryPrimitives.ReadUInt32LittleEndian(entry[FlagsAt..]) & RequiredFlag) != 0;
            if (id == VhdxGuids.BatRegion)
                bat = region;
            else if (id == VhdxGuids.MetadataRegion)
                metadata = region;
            else if (required)
                throw Bad(file, tableOffset + at, $"region {id} is required and not known", "use software that knows it");
            else
                others.Add(region);
        }

        RequireApart(file, all, log);
        return new RegionTable(
            bat ?? throw Bad(file, tableOffset, "there is no BAT region", Damaged),
            metadata ?? throw Bad(file, tableOffset, "there is no metadata region", Damaged), others, tableOffset, same);
    }

    private static Region ParseRegion(IStorage file, ReadOnlySpan<byte> entry, long at, Guid id)
    {
        ulong offset = BinaryPrimitives.ReadUInt64LittleEndian(entry[OffsetAt..]);
        uint length = BinaryPrimitives.ReadUInt32LittleEndian(entry[LengthAt..]);
        if (offset % VhdxLimits.Alignment != 0 || offset < VhdxLimits.Alignment || length % VhdxLimits.Alignment != 0 || length == 0)
            throw Bad(file, at, $"region {id} has offset {offset} and length {length}, expected multiples of 1 MiB past the first", Damaged);
        if (offset > (ulong)file.Length || length > (ulong)file.Length - offset)
        {
            throw Bad(file, at, $"region {id} of {length} bytes at byte {offset} reaches past the end of the file at byte {file.Length}",
                "the file is cut short; restore it from a copy");
        }

        return new Region((long)offset, length);
    }

    private static void RequireApart(IStorage file, List<(Region Region, long At)> all, Region log)
    {
        List<(Region Region, long At)> sorted = [.. all.OrderBy(entry => entry.Region.Offset)];
        for (int i = 0; i < sorted.Count; i++)
        {
            (Region region, long at) = sorted[i];
            if (i > 0 && region.Offset < sorted[i - 1].Region.End)
                throw Bad(file, at, $"the region at byte {region.Offset} overlaps the one at byte {sorted[i - 1].Region.Offset}", Damaged);
            if (log.Length > 0 && region.Offset < log.End && log.Offset < region.End)
                throw Bad(file, at, $"the region at byte {region.Offset} overlaps the log at byte {log.Offset}", Damaged);
        }
    }

    private static void WriteEntry(Span<byte> entry, Guid id, Region region)
    {
        id.TryWriteBytes(entry);
        BinaryPrimitives.WriteInt64LittleEndian(entry[OffsetAt..], region.Offset);
        BinaryPrimitives.WriteUInt32LittleEndian(entry[LengthAt..], (uint)region.Length);
        BinaryPrimitives.WriteUInt32LittleEndian(entry[FlagsAt..], RequiredFlag);
    }

    private static void WriteChecksum(Span<byte> table) =>
        BinaryPrimitives.WriteUInt32LittleEndian(table[ChecksumAt..], Crc32C.OfStructure(table, ChecksumAt));

    private static ImageFormatException Bad(IStorage file, long offset, string problem, string advice) =>
        new(file.Name, Structure, offset, problem, advice);
}
