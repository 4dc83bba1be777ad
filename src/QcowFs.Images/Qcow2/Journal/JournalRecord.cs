// One record of the journal. Big-endian; it begins at a block of the ring and may go round the ring's end:
//   0 u32 magic | 4 u32 bytes of the record | 8 u32 CRC-32C of all of it with this field 0 | 12 u8 kind | 13 u8 flags | 14 u16 zero
//   16 id | 32 u64 sequence | 40 u64 confirmed | 48 u32 revokes | 52 u32 bytes of redo | 56 u32 checks | 60 u32 redo ranges
//   64 revokes {u64 offset, u64 length} | redo {u64 offset, u32 length, bytes} | checks {u64 offset, u32 length, u32 CRC-32C}
// The id and the sequence are under the checksum, so that bytes which were not written as this record of this journal are none.
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2.Journal;

internal enum JournalRecordKind : byte
{
    /// <summary>Everything up to it is a state that a sync acknowledged, or was about to.</summary>
    Commit = 1,

    /// <summary>Changes that no sync asked for yet: they count after a kill (J11), or before a commit that counts.</summary>
    Intent = 2,
}

/// <summary>The fixed part of a record.</summary>
internal readonly record struct JournalRecordHeader(
    JournalRecordKind Kind, bool DataIsDurable, UInt128 Id, ulong Sequence, ulong Confirmed,
    int Length, int Revokes, int RedoBytes, int RedoCount, int Checks)
{
    public const int Size = 64;
    public const int RevokeSize = 16;
    public const int RedoHeadSize = 12;
    public const int CheckSize = 16;
    private const uint Magic = 0x51464A52; // QFJR
    private const int CrcAt = 8;

    /// <summary>Writes the head of a record whose other bytes are in place, and its checksum.</summary>
    public void Seal(Span<byte> record)
    {
        BinaryPrimitives.WriteUInt32BigEndian(record, Magic);
        BinaryPrimitives.WriteInt32BigEndian(record[4..], Length);
        BinaryPrimitives.WriteUInt32BigEndian(record[CrcAt..], 0);
        record[12] = (byte)Kind;
        record[13] = (byte)(DataIsDurable ? 1 : 0);
        BinaryPrimitives.WriteUInt16BigEndian(record[14..], 0);
        BinaryPrimitives.WriteUInt128BigEndian(record[16..], Id);
        BinaryPrimitives.WriteUInt64BigEndian(record[32..], Sequence);
        BinaryPrimitives.WriteUInt64BigEndian(record[40..], Confirmed);
        BinaryPrimitives.WriteInt32BigEndian(record[48..], Revokes);
        BinaryPrimitives.WriteInt32BigEndian(record[52..], RedoBytes);
        BinaryPrimitives.WriteInt32BigEndian(record[56..], Checks);
        BinaryPrimitives.WriteInt32BigEndian(record[60..], RedoCount);
        BinaryPrimitives.WriteUInt32BigEndian(record[CrcAt..], ChecksumOf(record[..Length]));
    }

    /// <summary>Reads the head of what may be a record of this journal with this sequence. False where it is not, or where its
    /// lengths do not fit each other or <paramref name="maxLength"/>.</summary>
    public static bool TryParse(ReadOnlySpan<byte> head, UInt128 id, ulong sequence, int maxLength, out JournalRecordHeader header)
    {
        header = new JournalRecordHeader(
            (JournalRecordKind)head[12], head[13] == 1, BinaryPrimitives.ReadUInt128BigEndian(head[16..]),
            BinaryPrimitives.ReadUInt64BigEndian(head[32..]), BinaryPrimitives.ReadUInt64BigEndian(head[40..]),
            BinaryPrimitives.ReadInt32BigEndian(head[4..]), BinaryPrimitives.ReadInt32BigEndian(head[48..]),
            BinaryPrimitives.ReadInt32BigEndian(head[52..]), BinaryPrimitives.ReadInt32BigEndian(head[60..]),
            BinaryPrimitives.ReadInt32BigEndian(head[56..]));
        bool isRecord = BinaryPrimitives.ReadUInt32BigEndian(head) == Magic && header.Id == id && header.Sequence == sequence
            && header.Kind is JournalRecordKind.Commit or JournalRecordKind.Intent && head[13] <= 1
            && BinaryPrimitives.ReadUInt16BigEndian(head[14..]) == 0;
        if (!isRecord || header.Length < Size || header.Length > maxLength
            || header.Revokes < 0 || header.RedoBytes < 0 || header.Checks < 0 || header.RedoCount < 0)
        {
            return false;
        }

        long expected = Size + ((long)header.Revokes * RevokeSize) + header.RedoBytes + ((long)header.Checks * CheckSize);
        return header.Length == expected && (long)header.RedoCount * RedoHeadSize <= header.RedoBytes && header.Confirmed < sequence;
    }

    /// <summary>The sequence that stands where a head has it.</summary>
    public static ulong SequenceOf(ReadOnlySpan<byte> head) => BinaryPrimitives.ReadUInt64BigEndian(head[32..]);

    /// <summary>Whether the checksum of a whole record is right.</summary>
    public static bool IsIntact(ReadOnlySpan<byte> record) =>
        BinaryPrimitives.ReadUInt32BigEndian(record[CrcAt..]) == ChecksumOf(record);

    private static uint ChecksumOf(ReadOnlySpan<byte> record)
    {
        uint running = Crc32C.Append(Crc32C.Start, record[..CrcAt]);
        running = Crc32C.Append(running, [0, 0, 0, 0]);
        return ~Crc32C.Append(running, record[(CrcAt + 4)..]);
    }
}

/// <summary>A range of the file.</summary>
internal readonly record struct JournalRange(long Offset, long Length);

/// <summary>A range of the file with the checksum that it must have for the record to count (J4).</summary>
internal readonly record struct JournalCheck(long Offset, int Length, uint Checksum);

/// <summary>A whole record that is intact. Its bytes belong to the reader that gave it and change with the next one.</summary>
internal readonly ref struct JournalRecord(JournalRecordHeader header, ReadOnlySpan<byte> bytes)
{
    private readonly ReadOnlySpan<byte> _bytes = bytes;

    public JournalRecordHeader Header { get; } = header;

    private int RedoAt => JournalRecordHeader.Size + (Header.Revokes * JournalRecordHeader.RevokeSize);

    public JournalRange Revoke(int index)
    {
        ReadOnlySpan<byte> at = _bytes[(JournalRecordHeader.Size + (index * JournalRecordHeader.RevokeSize))..];
        return new JournalRange(BinaryPrimitives.ReadInt64BigEndian(at), BinaryPrimitives.ReadInt64BigEndian(at[8..]));
    }

    public JournalCheck Check(int index)
    {
        ReadOnlySpan<byte> at = _bytes[(RedoAt + Header.RedoBytes + (index * JournalRecordHeader.CheckSize))..];
        return new JournalCheck(
            BinaryPrimitives.ReadInt64BigEndian(at), BinaryPrimitives.ReadInt32BigEndian(at[8..]), BinaryPrimitives.ReadUInt32BigEndian(at[12..]));
    }

    /// <summary>The redo range at <paramref name="cursor"/>, which starts at 0 and is moved on. False after the last one, and where the
    /// bytes do not make a range: then the cursor is not at the end of the redo.</summary>
    public bool TryNextRedo(ref int cursor, out long offset, out ReadOnlySpan<byte> bytes)
    {
        ReadOnlySpan<byte> rest = _bytes.Slice(RedoAt, Header.RedoBytes)[cursor..];
        offset = 0;
        bytes = default;
        if (rest.Length < JournalRecordHeader.RedoHeadSize)
            return false;
        offset = BinaryPrimitives.ReadInt64BigEndian(rest);
        int length = BinaryPrimitives.ReadInt32BigEndian(rest[8..]);
        if (length <= 0 || length > rest.Length - JournalRecordHeader.RedoHeadSize)
            return false;
        bytes = rest.Slice(JournalRecordHeader.RedoHeadSize, length);
        cursor += JournalRecordHeader.RedoHeadSize + length;
        return true;
    }
}
