// How large the parts of an index are, from the two budgets that a person gives: file size and memory (D4, D5).
namespace QcowFs.Images.Dedup;

/// <summary>Sizes and places of the regions of an index file. Immutable.</summary>
/// <param name="LogPages">Pages of a log (L).</param>
/// <param name="Buckets">Bucket pages of a table (B).</param>
/// <param name="Tables">Table places in use, the one that is being built included.</param>
/// <param name="BuildBuffer">Bytes that freezing a log may use.</param>
internal sealed record IndexGeometry(long LogPages, long Buckets, int Tables, int BuildBuffer)
{
    public const int FirstBitsPage = 2;
    public const int BitsPages = 130;
    public const int BitsPerPage = IndexPage.ContentSize * 8;
    public const int BucketsPerTagPage = 14;
    public const int MostTables = 64;

    /// <summary>The least budgets that make sense; the command line refuses less.</summary>
    public const long LeastMemory = 4L << 20;
    public const long LeastIndexSize = 8L << 20;

    // Numbers of log entries fit 32 bits with room to spare.
    private const long MostLogPages = (1L << 30) / IndexEntry.PerLogPage;
    private const int FirstRegionPage = FirstBitsPage + BitsPages;
    private const int UsualTables = 13;
    private const int LeastTables = 3;
    private const int EntriesPerBucketAtBuild = 109; // 75 % of 145

    private const int TagBytesPerBucket = IndexEntry.PerBucket * 2;

    public long TagPages => (Buckets + BucketsPerTagPage - 1) / BucketsPerTagPage;

    public long TablePages => Buckets + TagPages;

    /// <summary>Entries that a log can hold.</summary>
    public long LogEntries => LogPages * IndexEntry.PerLogPage;

    /// <summary>Bytes of the whole file.</summary>
    public long FileSize => (FirstRegionPage + (2 * LogPages) + (Tables * TablePages)) * IndexPage.Size;

    /// <summary>The most bytes of memory that an index of this geometry takes.</summary>
    public long MostMemory =>
        (Tables * Buckets * TagBytesPerBucket) + (2 * (LogFilter.BytesFor(LogEntries) + IndexPage.Size)) + BuildBuffer;

    public long LogOffset(int log) => (FirstRegionPage + (log * LogPages)) * IndexPage.Size;

    public long TableOffset(int table) => (FirstRegionPage + (2 * LogPages) + (table * TablePages)) * IndexPage.Size;

    /// <summary>The geometry for new indexes under these budgets.</summary>
    public static IndexGeometry For(long indexSize, long memory)
    {
        long low = 1;
        long high = Math.Clamp(indexSize / IndexPage.Size, 1, MostLogPages);
        while (low < high)
        {
            long middle = (low + high + 1) / 2;
            if (Fits(Make(middle, UsualTables, memory), indexSize, memory))
                low = middle;
            else
                high = middle - 1;
        }

        return Make(low, UsualTables, memory);
    }

    /// <summary>The geometry for an index that has these regions already, as many tables as the budgets allow; null where they do
    /// not allow even a few, or where the numbers are impossible.</summary>
    public static IndexGeometry? ForExisting(long logPages, long buckets, long indexSize, long memory)
    {
        if (logPages <= 0 || logPages > Math.Min(MostLogPages, indexSize / IndexPage.Size) || buckets != BucketsFor(logPages))
            return null;
        for (int tables = MostTables; tables >= LeastTables; tables--)
        {
            IndexGeometry geometry = Make(logPages, tables, memory);
            if (Fits(geometry, indexSize, memory))
                return geometry;
        }

        return null;
    }

    private static bool Fits(IndexGeometry geometry, long indexSize, long memory) =>
        geometry.FileSize <= indexSize && geometry.MostMemory <= memory && geometry.Buckets * IndexEntry.PerBucket <= Array.MaxLength;

    private static IndexGeometry Make(long logPages, int tables, long memory) =>
        new(logPages, BucketsFor(logPages), tables, (int)Math.Clamp(memory / 16, 256 << 10, 64 << 20));

    private static long BucketsFor(long logPages) =>
        ((logPages * IndexEntry.PerLogPage) + EntriesPerBucketAtBuild - 1) / EntriesPerBucketAtBuild;
}
