// What the index knows of one block: its hash, the guest block that holds it, and where that lies.
//   In a log, 32 bytes: u8 type | u8 size | u16 zero | u48 guest | u48 host | hash.  In a bucket, 28 bytes: hash | u48 guest | u48 host.
using System.Buffers.Binary;

namespace QcowFs.Images.Dedup;

/// <summary>Types of log entries.</summary>
internal enum LogEntryType : byte
{
    /// <summary>Nothing was written here.</summary>
    None = 0,

    /// <summary>The rest of the page is empty; the log goes on with the next page.</summary>
    End = 1,

    /// <summary>A block is indexed.</summary>
    Insert = 2,

    /// <summary>A block is indexed no more.</summary>
    Delete = 3,
}

/// <summary>One indexed block. Block numbers have 48 bits.</summary>
/// <param name="Hash">Hash of its bytes.</param>
/// <param name="Guest">Guest block that held them when it was indexed.</param>
/// <param name="Host">Host block that it was mapped to.</param>
internal readonly record struct IndexEntry(UInt128 Hash, long Guest, long Host)
{
    public const int LogSize = 32;
    public const int BucketSize = 28;
    public const int PerLogPage = IndexPage.ContentSize / LogSize;
    public const int PerBucket = IndexPage.ContentSize / BucketSize;

    /// <summary>The highest block number that fits.</summary>
    public const long LargestBlock = (1L << 48) - 1;

    private const int LogGuestAt = 4;
    private const int LogHostAt = 10;
    private const int LogHashAt = 16;
    private const int HashSize = 16;

    /// <summary>The tag that memory holds: never 0, which stands for none.</summary>
    public static ushort TagOf(UInt128 hash) => (ushort)Math.Max(1, (uint)((ulong)(hash >> 64) & ushort.MaxValue));

    /// <summary>A hash scaled to 0 .. <paramref name="count"/> - 1 by its low half.</summary>
    public static long Scale(UInt128 hash, long count) => (long)Math.BigMul((ulong)(hash & ulong.MaxValue), (ulong)count, out _);

    /// <summary>A hash scaled by bits that neither <see cref="Scale"/> nor the tag depend on much.</summary>
    public static int ScaleHigh(UInt128 hash, int count) =>
        (int)Math.BigMul(unchecked((ulong)(hash >> 64) * 0x9E3779B97F4A7C15UL), (ulong)count, out _);

    public void WriteToLog(Span<byte> destination, LogEntryType type)
    {
        destination[..LogGuestAt].Clear();
        destination[0] = (byte)type;
        destination[1] = LogSize;
        WriteBlock(destination[LogGuestAt..], Guest);
        WriteBlock(destination[LogHostAt..], Host);
        BinaryPrimitives.WriteUInt128LittleEndian(destination[LogHashAt..], Hash);
    }

    /// <summary>Writes the mark that ends a page early.</summary>
    public static void WriteEnd(Span<byte> destination)
    {
        destination[..LogSize].Clear();
        destination[0] = (byte)LogEntryType.End;
        destination[1] = LogSize;
    }

    /// <summary>Reads a log entry. Anything that is not an insert or a delete is none.</summary>
    public static LogEntryType ReadFromLog(ReadOnlySpan<byte> source, out IndexEntry entry)
    {
        entry = new IndexEntry(
            BinaryPrimitives.ReadUInt128LittleEndian(source[LogHashAt..]), ReadBlock(source[LogGuestAt..]), ReadBlock(source[LogHostAt..]));
        LogEntryType type = (LogEntryType)source[0];
        return source[1] == LogSize && type <= LogEntryType.Delete ? type : LogEntryType.None;
    }

    public void WriteToBucket(Span<byte> destination)
    {
        BinaryPrimitives.WriteUInt128LittleEndian(destination, Hash);
        WriteBlock(destination[HashSize..], Guest);
        WriteBlock(destination[(HashSize + 6)..], Host);
    }

    public static IndexEntry ReadFromBucket(ReadOnlySpan<byte> source) => new(
        BinaryPrimitives.ReadUInt128LittleEndian(source), ReadBlock(source[HashSize..]), ReadBlock(source[(HashSize + 6)..]));

    private static void WriteBlock(Span<byte> destination, long block)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(destination, (uint)(block & uint.MaxValue));
        BinaryPrimitives.WriteUInt16LittleEndian(destination[4..], (ushort)(block >> 32));
    }

    private static long ReadBlock(ReadOnlySpan<byte> source) =>
        BinaryPrimitives.ReadUInt32LittleEndian(source) | ((long)BinaryPrimitives.ReadUInt16LittleEndian(source[4..]) << 32);
}
