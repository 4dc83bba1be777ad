// The header of a VHDX file (fact sheet, section 2): which log entries count, and where the log is. Two of them take turns.
using System.Buffers.Binary;

namespace QcowFs.Images.Vhdx;

/// <summary>One header. <see cref="TryParse"/> says whether bytes are one, not whether its values make sense.</summary>
internal readonly record struct VhdxHeader
{
    /// <summary>Checksummed bytes of a header; the rest of its 64 KiB is reserved.</summary>
    public const int Size = 4096;

    public const int ChecksumAt = 4;
    public const int SequenceAt = 8;
    public const int LogGuidAt = 48;
    public const int LogVersionAt = 64;
    public const int VersionAt = 66;
    public const int LogLengthAt = 68;
    public const int LogOffsetAt = 72;

    private const int FileWriteGuidAt = 16;
    private const int DataWriteGuidAt = 32;
    private const uint Signature = 0x64616568; // "head"

    /// <summary>The only version of the format there is.</summary>
    public const int KnownVersion = 1;

    /// <summary>The higher one of two valid headers is current.</summary>
    public required ulong Sequence { get; init; }

    /// <summary>Changes with the first change of any kind after an open.</summary>
    public required Guid FileWriteGuid { get; init; }

    /// <summary>Changes with the first change that the guest can see after an open: what a child remembers of its parent.</summary>
    public required Guid DataWriteGuid { get; init; }

    /// <summary>Zero: the log is empty. Else entries count that carry it.</summary>
    public required Guid LogGuid { get; init; }

    public int LogVersion { get; init; }

    public int Version { get; init; }

    public required uint LogLength { get; init; }

    public required ulong LogOffset { get; init; }

    /// <summary>Whether the bytes are a header: signature and checksum are right.</summary>
    public static bool TryParse(ReadOnlySpan<byte> bytes, out VhdxHeader header)
    {
        header = default;
        if (bytes.Length < Size || BinaryPrimitives.ReadUInt32LittleEndian(bytes) != Signature
            || BinaryPrimitives.ReadUInt32LittleEndian(bytes[ChecksumAt..]) != Crc32C.OfStructure(bytes[..Size], ChecksumAt))
        {
            return false;
        }

        header = new VhdxHeader
        {
            Sequence = BinaryPrimitives.ReadUInt64LittleEndian(bytes[SequenceAt..]),
            FileWriteGuid = new Guid(bytes.Slice(FileWriteGuidAt, VhdxGuids.Size)),
            DataWriteGuid = new Guid(bytes.Slice(DataWriteGuidAt, VhdxGuids.Size)),
            LogGuid = new Guid(bytes.Slice(LogGuidAt, VhdxGuids.Size)),
            LogVersion = BinaryPrimitives.ReadUInt16LittleEndian(bytes[LogVersionAt..]),
            Version = BinaryPrimitives.ReadUInt16LittleEndian(bytes[VersionAt..]),
            LogLength = BinaryPrimitives.ReadUInt32LittleEndian(bytes[LogLengthAt..]),
            LogOffset = BinaryPrimitives.ReadUInt64LittleEndian(bytes[LogOffsetAt..]),
        };
        return true;
    }

    /// <summary>Changes the fields in the bytes of a header, and its checksum; what is reserved stays as it is.</summary>
    public void WriteTo(Span<byte> bytes)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, Signature);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[SequenceAt..], Sequence);
        FileWriteGuid.TryWriteBytes(bytes[FileWriteGuidAt..]);
        DataWriteGuid.TryWriteBytes(bytes[DataWriteGuidAt..]);
        LogGuid.TryWriteBytes(bytes[LogGuidAt..]);
        BinaryPrimitives.WriteUInt16LittleEndian(bytes[LogVersionAt..], (ushort)LogVersion);
        BinaryPrimitives.WriteUInt16LittleEndian(bytes[VersionAt..], (ushort)Version);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes[LogLengthAt..], LogLength);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[LogOffsetAt..], LogOffset);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes[ChecksumAt..], Crc32C.OfStructure(bytes[..Size], ChecksumAt));
    }
}
