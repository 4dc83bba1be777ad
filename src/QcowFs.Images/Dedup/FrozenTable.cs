// A frozen log: a hash table on disk that is written once, with a tag of 16 bits for each place in memory.
using System.Buffers.Binary;
using QcowFs.Storage;

namespace QcowFs.Images.Dedup;

/// <summary>One table ("incarnation"). Members that touch tags: under the index's lock. Reading pages: anywhere.</summary>
/// <param name="file">The index file.</param>
/// <param name="geometry">Sizes.</param>
/// <param name="place">Which table place of the file.</param>
/// <param name="region">Id, order, entries.</param>
internal sealed class FrozenTable(IStorage file, IndexGeometry geometry, int place, Region region)
{
    private const int TagsPerPage = IndexGeometry.BucketsPerTagPage * IndexEntry.PerBucket;

    private readonly ushort[] _tags = new ushort[geometry.Buckets * IndexEntry.PerBucket];
    private readonly HashSet<int> _dirtyTagPages = [];

    public int Place => place;

    public Region Region { get; private set; } = region;

    public long Memory => _tags.Length * (long)sizeof(ushort);

    public ulong Id => Region.Id;

    /// <summary>The tags, for the builder.</summary>
    public Span<ushort> Tags => _tags;

    /// <summary>Names what was built.</summary>
    public void Complete(long entries) => Region = Region with { Entries = entries };

    public long BucketOf(UInt128 hash) => IndexEntry.Scale(hash, geometry.Buckets);

    /// <summary>Whether the table may hold the hash.</summary>
    public bool MayContain(UInt128 hash) => TagsOf(BucketOf(hash)).Contains(IndexEntry.TagOf(hash));

    /// <summary>Forgets an entry, whose bucket is read to find it. Its tag goes; the bucket stays as it is.</summary>
    public bool Remove(in IndexEntry entry, Span<byte> page)
    {
        if (!MayContain(entry.Hash))
            return false;
        long bucket = BucketOf(entry.Hash);
        if (!TryReadBucket(bucket, page, out int count))
            return false;
        Span<ushort> tags = TagsOf(bucket);
        bool found = false;
        for (int i = 0; i < count; i++)
        {
            if (tags[i] == 0 || EntryAt(page, i) is var present && (present.Hash != entry.Hash || present.Host != entry.Host))
                continue;
            tags[i] = 0;
            found = true;
            _dirtyTagPages.Add((int)(bucket / IndexGeometry.BucketsPerTagPage));
        }

        return found;
    }

    /// <summary>Reads and validates a bucket.</summary>
    public bool TryReadBucket(long bucket, Span<byte> page, out int count)
    {
        file.Read(geometry.TableOffset(place) + (bucket * IndexPage.Size), page[..IndexPage.Size]);
        return IndexPage.TryOpen(page, PageKind.Bucket, Id, bucket, IndexEntry.PerBucket, out count);
    }

    /// <summary>An entry of a bucket page.</summary>
    public static IndexEntry EntryAt(ReadOnlySpan<byte> page, int index) =>
        IndexEntry.ReadFromBucket(page[(IndexPage.HeaderSize + (index * IndexEntry.BucketSize))..]);

    /// <summary>The tags of one bucket, in the order of its entries.</summary>
    public Span<ushort> TagsOf(long bucket) => _tags.AsSpan((int)(bucket * IndexEntry.PerBucket), IndexEntry.PerBucket);

    /// <summary>Loads the tags; those of a page that does not validate are made from their buckets.</summary>
    public void LoadTags(Span<byte> page)
    {
        for (int number = 0; number < geometry.TagPages; number++)
        {
            Span<ushort> tags = TagsOfPage(number);
            file.Read(TagPageOffset(number), page[..IndexPage.Size]);
            if (!IndexPage.TryOpen(page, PageKind.Tags, Id, number, TagsPerPage, out int count) || count != tags.Length)
            {
                RebuildTags(number, page);
                continue;
            }

            Span<byte> content = IndexPage.Content(page);
            for (int i = 0; i < tags.Length; i++)
                tags[i] = BinaryPrimitives.ReadUInt16LittleEndian(content[(i * sizeof(ushort))..]);
        }
    }

    /// <summary>Writes the tag pages that changed, or all of them.</summary>
    public void SaveTags(Span<byte> page, bool all)
    {
        for (int number = 0; number < geometry.TagPages; number++)
        {
            if (!all && !_dirtyTagPages.Contains(number))
                continue;
            Span<ushort> tags = TagsOfPage(number);
            Span<byte> content = IndexPage.Content(page);
            content.Clear();
            for (int i = 0; i < tags.Length; i++)
                BinaryPrimitives.WriteUInt16LittleEndian(content[(i * sizeof(ushort))..], tags[i]);
            IndexPage.Seal(page, PageKind.Tags, Id, number, tags.Length);
            file.Write(TagPageOffset(number), page[..IndexPage.Size]);
        }

        _dirtyTagPages.Clear();
    }

    private void RebuildTags(int number, Span<byte> page)
    {
        long first = (long)number * IndexGeometry.BucketsPerTagPage;
        for (long bucket = first; bucket < Math.Min(first + IndexGeometry.BucketsPerTagPage, geometry.Buckets); bucket++)
        {
            Span<ushort> tags = TagsOf(bucket);
            tags.Clear();
            if (!TryReadBucket(bucket, page, out int count))
                continue;
            for (int i = 0; i < count; i++)
                tags[i] = IndexEntry.TagOf(EntryAt(page, i).Hash);
        }
    }

    private Span<ushort> TagsOfPage(int number)
    {
        int first = number * TagsPerPage;
        return _tags.AsSpan(first, Math.Min(TagsPerPage, _tags.Length - first));
    }

    private long TagPageOffset(int number) => geometry.TableOffset(place) + ((geometry.Buckets + number) * IndexPage.Size);
}
