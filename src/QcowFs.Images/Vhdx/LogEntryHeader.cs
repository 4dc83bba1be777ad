// The head of a log entry, its descriptors and its data sectors (fact sheet, section 6), as bytes.
//   [header 64 bytes][descriptors 32 bytes each, filling whole sectors][data sectors, one for each data descriptor]
using System.Buffers.Binary;

namespace QcowFs.Images.Vhdx;

/// <summary>The head of an entry. <see cref="TryParse"/> bounds lengths and counts against the log, nothing else.</summary>
internal readonly record struct LogEntryHeader
{
    public const int Size = 64;
    public const int ChecksumAt = 4;
    private const uint Signature = 0x65676F6C; // "loge"

    public required uint Checksum { get; init; }

    /// <summary>Bytes of the whole entry.</summary>
    public required uint Length { get; init; }

    /// <summary>Ring offset of the oldest entry that a replay needs.</summary>
    public required uint Tail { get; init; }

    public required ulong Sequence { get; init; }

    public required uint DescriptorCount { get; init; }

    public required Guid LogGuid { get; init; }

    /// <summary>Length of the file that was durable when the entry was written.</summary>
    public required ulong FlushedFileOffset { get; init; }

    /// <summary>Length of the file that holds all that is allocated.</summary>
    public required ulong LastFileOffset { get; init; }

    /// <summary>Sectors that the head and so many descriptors fill.</summary>
    public static long DescriptorSectors(long descriptors) =>
        (Size + descriptors * LogDescriptor.Size + VhdxLimits.SectorSize - 1) / VhdxLimits.SectorSize;

    /// <summary>Whether a sector is the head of an entry that fits into a log of <paramref name="logLength"/> bytes.</summary>
    public static bool TryParse(ReadOnlySpan<byte> sector, long logLength, out LogEntryHeader header)
    {
        header = default;
        if (BinaryPrimitives.ReadUInt32LittleEndian(sector) != Signature)
            return false;
        header = new LogEntryHeader
        {
            Checksum = BinaryPrimitives.ReadUInt32LittleEndian(sector[ChecksumAt..]),
            Length = BinaryPrimitives.ReadUInt32LittleEndian(sector[8..]),
            Tail = BinaryPrimitives.ReadUInt32LittleEndian(sector[12..]),
            Sequence = BinaryPrimitives.ReadUInt64LittleEndian(sector[16..]),
            DescriptorCount = BinaryPrimitives.ReadUInt32LittleEndian(sector[24..]),
            LogGuid = new Guid(sector.Slice(32, VhdxGuids.Size)),
            FlushedFileOffset = BinaryPrimitives.ReadUInt64LittleEndian(sector[48..]),
            LastFileOffset = BinaryPrimitives.ReadUInt64LittleEndian(sector[56..]),
        };
        return header.Length % VhdxLimits.SectorSize == 0 && header.Length > 0 && header.Length <= logLength
            && header.Tail % VhdxLimits.SectorSize == 0 && header.Tail < logLength && header.Sequence != 0
            && DescriptorSectors(header.DescriptorCount) <= header.Length / VhdxLimits.SectorSize;
    }

    /// <summary>Writes the head without its checksum, which <see cref="Seal"/> adds.</summary>
    public void WriteTo(Span<byte> bytes)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, Signature);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes[8..], Length);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes[12..], Tail);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[16..], Sequence);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes[24..], DescriptorCount);
        LogGuid.TryWriteBytes(bytes[32..]);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[48..], FlushedFileOffset);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[56..], LastFileOffset);
    }

    /// <summary>Writes the checksum of a complete entry into it.</summary>
    public static void Seal(Span<byte> entry) =>
        BinaryPrimitives.WriteUInt32LittleEndian(entry[ChecksumAt..], Crc32C.OfStructure(entry, ChecksumAt));
}

/// <summary>A descriptor: what becomes of a range of the file.</summary>
/// <param name="IsData">A data sector replaces 4096 bytes; else <paramref name="ZeroLength"/> bytes become zeros.</param>
/// <param name="FileOffset">The first byte.</param>
/// <param name="ZeroLength">Bytes that become zeros.</param>
/// <param name="Leading">Bytes 0 to 7 of the page, where the data sector has its own signature.</param>
/// <param name="Trailing">Bytes 4092 to 4095, likewise.</param>
internal readonly record struct LogDescriptor(bool IsData, ulong FileOffset, ulong ZeroLength, ulong Leading, uint Trailing)
{
    public const int Size = 32;
    private const uint ZeroSignature = 0x6F72657A; // "zero"
    private const uint DataSignature = 0x63736564; // "desc"

    /// <summary>Whether the bytes are a descriptor of the entry with that sequence number.</summary>
    public static bool TryParse(ReadOnlySpan<byte> bytes, ulong sequence, out LogDescriptor descriptor)
    {
        uint signature = BinaryPrimitives.ReadUInt32LittleEndian(bytes);
        uint trailing = BinaryPrimitives.ReadUInt32LittleEndian(bytes[4..]);
        ulong second = BinaryPrimitives.ReadUInt64LittleEndian(bytes[8..]);
        ulong offset = BinaryPrimitives.ReadUInt64LittleEndian(bytes[16..]);
        bool isData = signature == DataSignature;
        descriptor = isData ? new LogDescriptor(true, offset, 0, second, trailing) : new LogDescriptor(false, offset, second, 0, 0);
        return (isData || signature == ZeroSignature) && offset % VhdxLimits.SectorSize == 0
            && (isData || second % VhdxLimits.SectorSize == 0)
            && BinaryPrimitives.ReadUInt64LittleEndian(bytes[24..]) == sequence;
    }

    /// <summary>Writes the descriptor of a data sector.</summary>
    public static void WriteData(Span<byte> bytes, long fileOffset, ReadOnlySpan<byte> page, ulong sequence)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, DataSignature);
        page[LogDataSector.TrailingAt..].CopyTo(bytes[4..]);
        page[..LogDataSector.LeadingSize].CopyTo(bytes[8..]);
        BinaryPrimitives.WriteInt64LittleEndian(bytes[16..], fileOffset);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[24..], sequence);
    }
}

/// <summary>A data sector: a page whose ends are replaced by a signature and the sequence number in two halves.</summary>
internal static class LogDataSector
{
    public const int LeadingSize = 8;
    public const int TrailingAt = VhdxLimits.SectorSize - sizeof(uint);
    private const uint Signature = 0x61746164; // "data"

    /// <summary>Whether a sector is a data sector of the entry with that sequence number.</summary>
    public static bool IsValid(ReadOnlySpan<byte> sector, ulong sequence) =>
        BinaryPrimitives.ReadUInt32LittleEndian(sector) == Signature
        && BinaryPrimitives.ReadUInt32LittleEndian(sector[4..]) == (uint)(sequence >> 32)
        && BinaryPrimitives.ReadUInt32LittleEndian(sector[TrailingAt..]) == (uint)(sequence & uint.MaxValue);

    /// <summary>Makes a data sector of a page.</summary>
    public static void Write(Span<byte> sector, ReadOnlySpan<byte> page, ulong sequence)
    {
        page.CopyTo(sector);
        BinaryPrimitives.WriteUInt32LittleEndian(sector, Signature);
        BinaryPrimitives.WriteUInt32LittleEndian(sector[4..], (uint)(sequence >> 32));
        BinaryPrimitives.WriteUInt32LittleEndian(sector[TrailingAt..], (uint)(sequence & uint.MaxValue));
    }

    /// <summary>Makes the page of a data sector in place.</summary>
    public static void Restore(Span<byte> sector, ulong leading, uint trailing)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(sector, leading);
        BinaryPrimitives.WriteUInt32LittleEndian(sector[TrailingAt..], trailing);
    }
}
