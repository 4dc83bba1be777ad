// A sealed page of the index file: 4096 bytes that prove which region they belong to, and that they are whole.
//   0 u32 kind | 4 u32 CRC-32C seeded with the region's id, this field zero | 8 u64 region id | 16 u64 page number in the region
//   | 24 u16 entries | 26 zero | 32 content
// D2. A page from the space's former life has another id, so its checksum is wrong here.
using System.Buffers.Binary;
using System.Numerics;
using System.Runtime.InteropServices;

namespace QcowFs.Images.Dedup;

/// <summary>What a sealed page holds.</summary>
internal enum PageKind : uint
{
    Log = 0x50474F4C,
    Bucket = 0x4B435542,
    Tags = 0x53474154,
    Bits = 0x53544942,
}

/// <summary>Seals and recognises pages. Pure.</summary>
internal static class IndexPage
{
    public const int Size = 4096;
    public const int HeaderSize = 32;
    public const int ContentSize = Size - HeaderSize;

    private const int ChecksumAt = 4;
    private const int IdAt = 8;
    private const int NumberAt = 16;
    private const int CountAt = 24;

    /// <summary>The content of a page.</summary>
    public static Span<byte> Content(Span<byte> page) => page[HeaderSize..Size];

    /// <summary>Fills in the header of a page whose content is complete.</summary>
    public static void Seal(Span<byte> page, PageKind kind, ulong id, long number, int count)
    {
        page[..HeaderSize].Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(page, (uint)kind);
        BinaryPrimitives.WriteUInt64LittleEndian(page[IdAt..], id);
        BinaryPrimitives.WriteInt64LittleEndian(page[NumberAt..], number);
        BinaryPrimitives.WriteUInt16LittleEndian(page[CountAt..], checked((ushort)count));
        BinaryPrimitives.WriteUInt32LittleEndian(page[ChecksumAt..], Checksum(page, id));
    }

    /// <summary>Whether this is that page. Its count is then at most <paramref name="mostEntries"/>.</summary>
    public static bool TryOpen(ReadOnlySpan<byte> page, PageKind kind, ulong id, long number, int mostEntries, out int count)
    {
        count = BinaryPrimitives.ReadUInt16LittleEndian(page[CountAt..]);
        return BinaryPrimitives.ReadUInt32LittleEndian(page) == (uint)kind
            && BinaryPrimitives.ReadUInt64LittleEndian(page[IdAt..]) == id
            && BinaryPrimitives.ReadInt64LittleEndian(page[NumberAt..]) == number
            && count <= mostEntries
            && BinaryPrimitives.ReadUInt32LittleEndian(page[ChecksumAt..]) == Checksum(page, id);
    }

    /// <summary>CRC-32C of a page, the four bytes at 4 taken as zero.</summary>
    private static uint Checksum(ReadOnlySpan<byte> page, ulong seed)
    {
        ReadOnlySpan<ulong> words = MemoryMarshal.Cast<byte, ulong>(page[..Size]);
        uint crc = BitOperations.Crc32C(uint.MaxValue, seed);
        crc = BitOperations.Crc32C(crc, Word(words[0]) & uint.MaxValue);
        for (int i = 1; i < words.Length; i++)
            crc = BitOperations.Crc32C(crc, Word(words[i]));
        return ~crc;
    }

    private static ulong Word(ulong word) => BitConverter.IsLittleEndian ? word : BinaryPrimitives.ReverseEndianness(word);
}
