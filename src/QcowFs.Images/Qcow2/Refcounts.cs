// The reference counts of one qcow2 file: a resident refcount table, and refcount blocks through the metadata cache.
//
// R1. Counts change only under the cache's gate, with the page pinned.
// R2. A count is raised in the change that publishes the mapping (for compressed clusters before it, CompressedSpace K2) and written one
//     stage before it; it is lowered only after the commit that made the mapping's removal durable (I2, I3).
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Qcow2;

/// <summary>Reads and changes counts. Thread-safe as R1 says.</summary>
internal sealed class Refcounts : IFreeClusterSource
{
    private readonly MetadataCache _cache;
    private readonly Qcow2Header _header;
    private readonly int _order;
    private readonly int _blockBits;
    private readonly MetadataMap? _metadata;
    private ResidentTable _table;

    public Refcounts(Qcow2Header header, MetadataCache cache, ResidentTable table, MetadataMap? metadata)
    {
        _metadata = metadata;
        _header = header;
        _cache = cache;
        _table = table;
        _order = header.RefcountOrder;
        _blockBits = header.ClusterBits + 3 - header.RefcountOrder;
    }

    /// <summary>The refcount table; replaced when it grows. Set under the gate.</summary>
    public ResidentTable Table
    {
        get => Volatile.Read(ref _table);
        set => Volatile.Write(ref _table, value);
    }

    /// <summary>Where changed clusters are noted while leaks are looked for, else null. Guarded by the gate.</summary>
    public TouchedClusters? Touched { get; set; }

    /// <summary>The highest count that fits the image's width.</summary>
    public ulong Max => _header.MaxRefcount;

    /// <summary>The index of the refcount block that counts a cluster.</summary>
    public int BlockIndex(long cluster) => checked((int)(cluster >> _blockBits));

    /// <summary>Whether the refcount block for a cluster exists.</summary>
    public bool HasBlock(long cluster)
    {
        ResidentTable table = Table;
        long index = cluster >> _blockBits;
        return index < table.Length && new RefcountTableEntry(table[(int)index]).IsAllocated;
    }

    /// <summary>Host byte offset of the page that holds a cluster's count. Its block exists.</summary>
    public long PageOffset(long cluster)
    {
        long index = cluster >> _blockBits;
        RefcountTableEntry entry = index < Table.Length ? new(Table[(int)index]) : RefcountTableEntry.Unallocated;
        if (!entry.IsAllocated || entry.Reserved != 0 || (entry.BlockOffset & (_header.ClusterSize - 1)) != 0 || entry.BlockOffset < 0)
        {
            throw new ImageFormatException(
                _cache.FileName,
                "refcount table",
                Table.Offset + (index * 8L),
                $"entry {index}, {entry.Raw:x16}, does not point at a refcount block of a cluster in use",
                "unmount and run `qcowfs check`");
        }

        return PageOffsetIn(entry.BlockOffset, cluster);
    }

    /// <summary>Throws where no block counts a cluster of the range, so that it could never be given up. Asked before a change that
    /// gives it up, since a commit cannot do without it any more.</summary>
    public void RequireCounted(long offset, long length)
    {
        long end = (offset + length + _header.ClusterSize - 1) >> _header.ClusterBits;
        for (long cluster = offset >> _header.ClusterBits; cluster < end; cluster = PageEnd(cluster))
            PageOffset(cluster);
    }

    /// <summary>As <see cref="PageOffset"/>, for a block that is not linked yet.</summary>
    public long PageOffsetIn(long block, long cluster)
    {
        long byteInBlock = IndexInBlock(cluster) << _order >> 3;
        return block + (byteInBlock & -_cache.PageSize);
    }

    /// <summary>The first cluster after <paramref name="cluster"/> whose count is on another page.</summary>
    public long PageEnd(long cluster)
    {
        long perPage = ((long)_cache.PageSize << 3) >> _order;
        return ((cluster / perPage) + 1) * perPage;
    }

    /// <summary>The first cluster that another refcount block counts.</summary>
    public long BlockEnd(long cluster) => ((cluster >> _blockBits) + 1) << _blockBits;

    /// <summary>Reads a count from its page.</summary>
    public ulong Get(MetadataPage page, long cluster) => RefcountEncoding.Get(page.Bytes, IndexOnPage(cluster), _order);

    /// <summary>Writes a count to its page. Call under the gate between BeginChange and EndChange.</summary>
    public void Set(MetadataPage page, long cluster, ulong count)
    {
        Invariant.Require(count <= Max, "a count stays within the image's width");
        Touched?.Touch(cluster, cluster + 1);
        RefcountEncoding.Set(page.Bytes, IndexOnPage(cluster), _order, count);
    }

    /// <summary>Sets the counts of free clusters to one. Call under the gate with the page pinned; all lie on it.</summary>
    public void RaiseFree(MetadataPage page, long first, long count)
    {
        _cache.BeginChange(page, CommitStage.Counts);
        try
        {
            for (long cluster = first; cluster < first + count; cluster++)
            {
                Invariant.Require(Get(page, cluster) == 0, "a cluster that is handed out has no references");
                Set(page, cluster, 1);
                Touched?.HandOut(cluster);
            }
        }
        finally
        {
            page.EndChange();
        }
    }

    /// <summary>Adds a reference to a cluster. Call under the gate with the page pinned.</summary>
    public void Raise(MetadataPage page, long cluster)
    {
        ulong count = Get(page, cluster);
        if (count == 0)
        {
            RaiseFree(page, cluster, 1);
            return;
        }

        _cache.BeginChange(page, CommitStage.Counts);
        Set(page, cluster, count + 1);
        page.EndChange();
    }

    /// <inheritdoc/>
    public void FindFree(long first, long limit, Action<IReadOnlyList<ClusterRun>, long> accept)
    {
        if (!HasBlock(first))
        {
            long end = Math.Min(limit, BlockEnd(first));
            lock (_cache.Gate)
            {
                if (HasBlock(first))
                    accept([], first);
                else
                    Accept([new ClusterRun(first, end - first, ReadsAsZero: false)], end);
            }

            return;
        }

        MetadataPage page = _cache.Pin(PageOffset(first));
        try
        {
            long end = Math.Min(limit, PageEnd(first));
            List<ClusterRun> runs = [];
            lock (_cache.Gate)
            {
                for (long cluster = first; cluster < end; cluster++)
                {
                    if (Get(page, cluster) != 0)
                        continue;
                    if (runs.Count > 0 && runs[^1].End == cluster)
                        runs[^1] = runs[^1] with { Count = runs[^1].Count + 1 };
                    else
                        runs.Add(new ClusterRun(cluster, 1, ReadsAsZero: false));
                }

                Accept(runs, end);
            }
        }
        finally
        {
            _cache.Unpin(page);
        }

        void Accept(List<ClusterRun> runs, long next)
        {
            foreach (ClusterRun run in runs)
                _metadata?.RequireFree(run.First, run.Count);
            accept(runs, next);
        }
    }

    /// <inheritdoc/>
    public long EndOfReferences(long first)
    {
        long end = first;
        long limit = (long)Table.Length << _blockBits;
        for (long cluster = first; cluster < limit;)
        {
            if (!HasBlock(cluster))
            {
                cluster = BlockEnd(cluster);
                continue;
            }

            using PinnedPages pins = new(_cache);
            MetadataPage page = pins.Add(PageOffset(cluster));
            long pageEnd = Math.Min(limit, PageEnd(cluster));
            lock (_cache.Gate)
            {
                for (; cluster < pageEnd; cluster++)
                {
                    if (Get(page, cluster) != 0)
                        end = cluster + 1;
                }
            }
        }

        return end;
    }

    private int IndexOnPage(long cluster) => (int)(cluster & ((((long)_cache.PageSize << 3) >> _order) - 1));

    private long IndexInBlock(long cluster) => cluster & ((1L << _blockBits) - 1);
}
