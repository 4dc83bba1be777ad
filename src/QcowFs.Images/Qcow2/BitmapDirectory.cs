// The directory of persistent dirty bitmaps; what the bits mean is BitmapTracking's.
//   0 u64 table offset | 8 u32 table entries | 12 u32 flags | 16 u8 type | 17 u8 granularity bits | 18 u16 name length
//   20 u32 extra length | extra | name | padding to 8
//   table entry: bits 9-55 data cluster, if 0: bit 0 selects all ones; the rest reserved
using System.Buffers.Binary;
using System.Text;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

[Flags]
internal enum BitmapFlags : uint
{
    None = 0,
    InUse = 1,
    Auto = 2,
    ExtraDataCompatible = 4,
}

/// <summary>One entry of the bitmap directory.</summary>
internal sealed record Qcow2Bitmap(long Offset, long TableOffset, long TableEntries, BitmapFlags Flags, int GranularityBits, byte[] Name)
{
    public const int FixedSize = 24;
    public const int TableEntriesAt = 8;
    public const int FlagsAt = 12;
    public const ulong EntryAllOnes = 1;
    public const ulong EntryOffsetMask = 0x00FF_FFFF_FFFF_FE00;
    public const ulong EntryReservedMask = ~(EntryOffsetMask | 1);

    public string NameText => Encoding.UTF8.GetString(Name);
}

internal static class BitmapDirectory
{
    public const string Structure = "bitmap directory";

    private const int Alignment = 8;
    private const byte DirtyTrackingType = 1;

    /// <summary>Reads the directory that the header's extension names. Faults: <see cref="ImageFormatException"/>,
    /// <see cref="StorageException"/>.</summary>
    public static IReadOnlyList<Qcow2Bitmap> Read(Qcow2Header header, IStorage file)
    {
        if (header.Bitmaps is not { } place)
            return [];

        if (place.DirectoryLength > file.Length - place.DirectoryOffset)
        {
            throw Bad(file, place.DirectoryOffset,
                $"its {place.DirectoryLength} bytes reach past the end of the file at byte {file.Length}");
        }

        WindowReader reader = new(file);
        List<Qcow2Bitmap> bitmaps = [];
        long end = place.DirectoryOffset + place.DirectoryLength;
        for (long at = place.DirectoryOffset; at < end;)
        {
            if (bitmaps.Count == place.Count)
                throw Bad(file, at, $"it holds more entries than the {place.Count} that the header states");

            Qcow2Bitmap bitmap = ReadEntry(header, file, reader, at, end, out int size);
            bitmaps.Add(bitmap);
            at += (size + Alignment - 1) & -Alignment;
        }

        return bitmaps.Count == place.Count ? bitmaps
            : throw Bad(file, end, $"it holds {bitmaps.Count} entries, expected the {place.Count} that the header states");
    }

    private static Qcow2Bitmap ReadEntry(
        Qcow2Header header, IStorage file, WindowReader reader, long at, long end, out int size)
    {
        if (end - at < Qcow2Bitmap.FixedSize)
            throw Bad(file, at, $"{end - at} bytes are left, too few for an entry");

        ReadOnlySpan<byte> entry = reader.Get(at, Qcow2Bitmap.FixedSize);
        long tableOffset = BinaryPrimitives.ReadInt64BigEndian(entry);
        uint tableEntries = BinaryPrimitives.ReadUInt32BigEndian(entry[8..]);
        BitmapFlags flags = (BitmapFlags)BinaryPrimitives.ReadUInt32BigEndian(entry[12..]);
        byte type = entry[16];
        int granularity = entry[17];
        int nameLength = BinaryPrimitives.ReadUInt16BigEndian(entry[18..]);
        uint extraLength = BinaryPrimitives.ReadUInt32BigEndian(entry[20..]);
        bool valid = tableOffset > 0 && tableOffset < Qcow2Limits.MaxHostOffset && tableOffset % header.ClusterSize == 0
            && tableEntries is > 0 and <= Qcow2Limits.MaxBitmapTableEntries
            && (long)tableEntries << header.ClusterBits <= Qcow2Limits.MaxBitmapBytes && type == DirtyTrackingType
            && granularity is >= Qcow2Limits.MinBitmapGranularityBits and <= Qcow2Limits.MaxBitmapGranularityBits
            && nameLength is > 0 and <= Qcow2Limits.MaxBitmapNameBytes && extraLength == 0
            && (flags & ~(BitmapFlags.InUse | BitmapFlags.Auto)) == BitmapFlags.None
            && (flags.HasFlag(BitmapFlags.InUse) || Covers(header, tableEntries, granularity));
        if (!valid)
        {
            throw Bad(file, at, $"an entry is malformed (table of {tableEntries} entries at byte {tableOffset}, type {type}, "
                + $"flags {(uint)flags}, granularity bits {granularity}, name of {nameLength} bytes, {extraLength} bytes of extra data)");
        }

        size = Qcow2Bitmap.FixedSize + nameLength;
        if (end - at < size)
            throw Bad(file, at, $"an entry of {size} bytes reaches past the directory's end at byte {end}");

        byte[] name = reader.Get(at, size)[Qcow2Bitmap.FixedSize..].ToArray();
        return new Qcow2Bitmap(at, tableOffset, tableEntries, flags, granularity, name);
    }

    // A consistent bitmap has a bit for every byte of the disk, rounded to the granularity.
    private static bool Covers(Qcow2Header header, long tableEntries, int granularity) =>
        (tableEntries << header.ClusterBits << 3) >= (header.VirtualSize >> granularity);

    private static ImageFormatException Bad(IStorage file, long offset, string problem) =>
        new(file.Name, Structure, offset, problem, Qcow2HeaderReader.DamagedAdvice);
}
