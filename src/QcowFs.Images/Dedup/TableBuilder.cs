// Freezes a log: sorts its entries into the buckets of a table, in as many passes over the log as the build buffer makes necessary.
using QcowFs.Storage;

namespace QcowFs.Images.Dedup;

/// <summary>Builds one table from one full log. Used by one thread; the log does not change meanwhile.</summary>
internal sealed class TableBuilder(IStorage file, IndexGeometry geometry, HashLog log, FrozenTable table)
{
    private readonly byte[] _logPage = new byte[IndexPage.Size];

    /// <summary>Writes buckets and tags. <paramref name="stop"/> ends it early: false.</summary>
    public bool Run(Func<bool> stop)
    {
        long perPass = Math.Max(1, geometry.BuildBuffer / IndexPage.Size);
        byte[] buffer = GC.AllocateUninitializedArray<byte>((int)Math.Min(perPass, geometry.Buckets) * IndexPage.Size);
        long entries = 0;
        for (long first = 0; first < geometry.Buckets; first += perPass)
        {
            long count = Math.Min(perPass, geometry.Buckets - first);
            if (!TryFill(buffer, first, count, stop))
                return false;
            entries += Write(buffer, first, count);
        }

        table.SaveTags(buffer, all: true);
        table.Complete(entries);
        return true;
    }

    /// <summary>One pass: puts the log's entries for a range of buckets into them. Deletes take out what came before them.</summary>
    private bool TryFill(byte[] buffer, long first, long buckets, Func<bool> stop)
    {
        for (long page = 0; page < log.Pages; page++)
        {
            if (stop())
                return false;
            if (!log.TryReadPage(log.Region.Id, page, _logPage, out int count))
                continue;
            for (int i = 0; i < count; i++)
            {
                LogEntryType type = HashLog.ReadEntry(_logPage, i, out IndexEntry entry);
                if (type is LogEntryType.None or LogEntryType.End)
                    break;
                long bucket = table.BucketOf(entry.Hash);
                if (bucket < first || bucket >= first + buckets)
                    continue;
                Span<byte> content = IndexPage.Content(buffer.AsSpan((int)((bucket - first) * IndexPage.Size), IndexPage.Size));
                Place(content, table.TagsOf(bucket), entry, type);
            }
        }

        return true;
    }

    private static void Place(Span<byte> content, Span<ushort> tags, in IndexEntry entry, LogEntryType type)
    {
        ushort tag = IndexEntry.TagOf(entry.Hash);
        int free = tags.IndexOf((ushort)0);
        for (int i = 0; i < tags.Length; i++)
        {
            if (tags[i] != tag || IndexEntry.ReadFromBucket(content[(i * IndexEntry.BucketSize)..]) is var present && present.Hash != entry.Hash)
                continue;
            if (type == LogEntryType.Insert)
                entry.WriteToBucket(content[(i * IndexEntry.BucketSize)..]);
            else if (present.Host == entry.Host)
                tags[i] = 0;
            return;
        }

        if (type != LogEntryType.Insert || free < 0)
            return; // a full bucket drops what comes
        entry.WriteToBucket(content[(free * IndexEntry.BucketSize)..]);
        tags[free] = tag;
    }

    private long Write(byte[] buffer, long first, long buckets)
    {
        long entries = 0;
        for (long bucket = first; bucket < first + buckets; bucket++)
        {
            Span<byte> page = buffer.AsSpan((int)((bucket - first) * IndexPage.Size), IndexPage.Size);
            Span<ushort> tags = table.TagsOf(bucket);

            // Places that a delete emptied count too: the tag says that they hold nothing.
            int used = tags.LastIndexOfAnyExcept((ushort)0) + 1;
            IndexPage.Content(page)[(used * IndexEntry.BucketSize)..].Clear();
            IndexPage.Seal(page, PageKind.Bucket, table.Id, bucket, used);
            entries += tags.Length - tags.Count((ushort)0);
        }

        file.Write(geometry.TableOffset(table.Place) + (first * IndexPage.Size), buffer.AsSpan(0, (int)buckets * IndexPage.Size));
        return entries;
    }
}
