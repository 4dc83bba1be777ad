// The reference counts of an image that nobody else has open, for edits that change many at once.
//
// O1. Counts change in memory; the file changes only in WriteRaised and WriteLowered. So an edit that is refused while it is being
//     planned has changed nothing.
// O2. Between two writes counts only rise, or only fall. Raised ones may reach the file at any moment before what needs them does,
//     lowered ones at any moment after the references are durably gone (I2, I3).
// O3. Clusters are taken only from what was free when the edit began, so nothing is overwritten that the file still refers to.
// O4. New refcount blocks are durable before the table names them, a new table before the header does (I1).
// O5. A cluster that becomes free is punched while its stored count still protects it (I3).
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Reads, changes and extends the counts of one image. Used by one thread. Memory: the blocks that change.</summary>
/// <param name="header">The image's header.</param>
/// <param name="file">The image file; its refcount structures were checked.</param>
internal sealed class OfflineRefcounts(Qcow2Header header, IStorage file)
{
    private readonly SortedDictionary<long, byte[]> _changed = [];
    private readonly List<long> _unlinked = [];
    private readonly List<(long First, long Count)> _freed = [];
    private readonly byte[] _loaded = new byte[header.ClusterSize];
    private RefcountTableEntry[] _table = new RefcountTable(header, file).Entries;
    private long _tableOffset = header.RefcountTableOffset;
    private (long Offset, long Clusters)? _oldTable;
    private long _loadedIndex = -1;
    private long _end = -1;
    private bool _lowers;

    /// <summary>The count of a cluster.</summary>
    public ulong this[long cluster]
    {
        get => !HasBlock(IndexOf(cluster)) ? 0 : RefcountEncoding.Get(Block(IndexOf(cluster)), PlaceOf(cluster), header.RefcountOrder);
        private set => RefcountEncoding.Set(BlockToChange(IndexOf(cluster)), PlaceOf(cluster), header.RefcountOrder, value);
    }

    /// <summary>Adds a reference. Faults: <see cref="ImageFormatException"/> where the count is at the image's ceiling.</summary>
    public void Raise(long cluster)
    {
        Invariant.Require(!_lowers, "O2: counts rise before others fall");
        ulong count = this[cluster];
        if (count == header.MaxRefcount)
        {
            throw new ImageFormatException(file.Name, "reference count", -1,
                $"the cluster at byte {cluster << header.ClusterBits} has {count} references, as many as {header.RefcountBits} bits can count",
                "delete a snapshot, or convert the image to one with wider counts (refcount_bits)");
        }

        this[cluster] = count + 1;
    }

    /// <summary>Takes a reference away.</summary>
    public void Lower(long cluster)
    {
        _lowers = true;
        ulong count = this[cluster];
        Invariant.Require(count > 0, "a cluster that is referred to has a count");
        this[cluster] = count - 1;
        if (count > 1)
            return;
        if (_freed.Count > 0 && _freed[^1].First + _freed[^1].Count == cluster)
            _freed[^1] = (_freed[^1].First, _freed[^1].Count + 1);
        else
            _freed.Add((cluster, 1));
    }

    /// <summary>Takes a reference to each cluster of a region away.</summary>
    public void LowerRegion(long offset, long length)
    {
        for (long cluster = offset >> header.ClusterBits; cluster < ClustersFor(offset + length); cluster++)
            Lower(cluster);
    }

    /// <summary>Hands out consecutive free clusters for so many bytes, counted once. Returns their byte offset.</summary>
    public long Take(long length)
    {
        Invariant.Require(!_lowers, "O3: nothing is taken after something was given up");
        long count = ClustersFor(length);
        if (_end < 0)
            _end = FindEnd();
        long first = FindFree(count);
        if (first < 0)
        {
            first = _end;
            _end += count;
            Cover(first);
        }

        for (long cluster = first; cluster < first + count; cluster++)
            this[cluster] = 1;
        return first << header.ClusterBits;
    }

    /// <summary>Makes everything that was written to the file so far and the raised counts durable, and what extends the refcount
    /// structures.</summary>
    public void WriteRaised()
    {
        WriteChanged();
        if (_oldTable is not null)
        {
            byte[] table = new byte[_table.Length * RefcountTableEntry.Size];
            for (int i = 0; i < _table.Length; i++)
                _table[i].WriteTo(table.AsSpan(i * RefcountTableEntry.Size));
            file.Write(_tableOffset, table);
        }

        file.Sync();
        if (_oldTable is not null)
        {
            int clusters = (int)ClustersFor(_table.Length * RefcountTableEntry.Size);
            Qcow2HeaderSector.Change(file, sector => sector.SetRefcountTable(_tableOffset, clusters));
        }
        else if (_unlinked.Count > 0)
        {
            Span<byte> entry = stackalloc byte[RefcountTableEntry.Size];
            foreach (long index in _unlinked)
            {
                _table[index].WriteTo(entry);
                file.Write(_tableOffset + (index * RefcountTableEntry.Size), entry);
            }

            file.Sync();
        }

        _unlinked.Clear();
    }

    /// <summary>Writes the lowered counts, durably, and gives back the space of what is free now. What was referred to is durably
    /// no longer so.</summary>
    public void WriteLowered()
    {
        if (_oldTable is { } old)
            LowerRegion(old.Offset, old.Clusters << header.ClusterBits);
        _oldTable = null;
        foreach ((long first, long count) in _freed)
            Punch(first, count); // O5
        _freed.Clear();
        WriteChanged();
        file.Sync();
        _lowers = false;
        _end = -1;
        CutTail();
    }

    // A host without the space that a hole takes keeps the bytes; the edit is durable.
    private void Punch(long first, long count)
    {
        try
        {
            file.Discard(first << header.ClusterBits, count << header.ClusterBits);
        }
        catch (StorageException exception) when (exception.IsOutOfSpace)
        {
            return;
        }
    }

    private void CutTail()
    {
        long end = FindEnd();
        while (end > 1 && this[end - 1] == 0)
            end--;
        if (file.Length > end << header.ClusterBits)
        {
            file.SetLength(end << header.ClusterBits);
            file.Sync();
        }
    }

    private void WriteChanged()
    {
        foreach ((long index, byte[] block) in _changed)
            file.Write(_table[index].BlockOffset, block);
        _changed.Clear();
        _loadedIndex = -1;
    }

    // One past the last cluster that is in the file or counted: a crash can lose a file's length and keep its counts.
    private long FindEnd()
    {
        long end = ClustersFor(file.Length);
        for (long index = _table.Length - 1; index >= IndexOf(end); index--)
        {
            if (!HasBlock(index))
                continue;
            for (long cluster = (index + 1) * header.RefcountsPerBlock - 1; cluster >= Math.Max(end, index * header.RefcountsPerBlock); cluster--)
            {
                if (this[cluster] != 0)
                    return cluster + 1;
            }
        }

        return end;
    }

    private long FindFree(long count)
    {
        long run = 0;
        for (long cluster = 1; cluster < _end; cluster++)
        {
            if (!HasBlock(IndexOf(cluster)))
            {
                cluster = (IndexOf(cluster) + 1) * header.RefcountsPerBlock - 1;
                run = 0;
                continue;
            }

            run = this[cluster] == 0 ? run + 1 : 0;
            if (run == count)
                return cluster - count + 1;
        }

        return -1;
    }

    // Makes refcount blocks for the clusters from the old end of the file to the new one. They lie at the end too, and so move it.
    private void Cover(long first)
    {
        List<long> made = [];
        for (long index = IndexOf(first); index <= IndexOf(_end - 1); index++)
        {
            if (HasBlock(index))
                continue;
            if (index >= _table.Length)
                MoveTable(made);
            made.Add(_end);
            _table[index] = RefcountTableEntry.Block(_end << header.ClusterBits);
            _changed[index] = new byte[header.ClusterSize];
            _unlinked.Add(index);
            _end++;
        }

        foreach (long cluster in made)
            this[cluster] = 1;
    }

    private void MoveTable(List<long> made)
    {
        Invariant.Require(_oldTable is null, "a new refcount table is large enough for the edit that needs it");
        long entriesPerCluster = header.ClusterSize / RefcountTableEntry.Size;
        long clusters = _table.Length / entriesPerCluster;
        _oldTable = (_tableOffset, clusters);
        // Half as much again, and room for the blocks that count the table, the edit and the blocks themselves.
        clusters += clusters / 2;
        do
            clusters++;
        while (clusters * entriesPerCluster <= (_end + clusters) / (header.RefcountsPerBlock - 1) + 2);
        long limit = Math.Min(Qcow2Limits.MaxRefcountTableBytes, Qcow2Limits.MaxHostOffset / header.RefcountsPerBlock) >> header.ClusterBits;
        if (clusters > Math.Max(limit, 1))
        {
            throw new ImageFormatException(file.Name, "refcount table", _tableOffset,
                $"it would need {clusters} clusters, more than the {limit} that are allowed", "convert the image to one with larger clusters");
        }

        _tableOffset = _end << header.ClusterBits;
        for (long i = 0; i < clusters; i++)
            made.Add(_end + i);
        _end += clusters;
        Array.Resize(ref _table, (int)(clusters * entriesPerCluster));
    }

    private bool HasBlock(long index) => index < _table.Length && _table[index].IsAllocated;

    private byte[] Block(long index)
    {
        if (_changed.TryGetValue(index, out byte[]? block))
            return block;
        if (_loadedIndex != index)
        {
            _loadedIndex = -1;
            file.Read(_table[index].BlockOffset, _loaded);
            _loadedIndex = index;
        }

        return _loaded;
    }

    private byte[] BlockToChange(long index)
    {
        if (!_changed.TryGetValue(index, out byte[]? block))
        {
            block = [.. Block(index)];
            _changed.Add(index, block);
        }

        return block;
    }

    private long IndexOf(long cluster) => cluster / header.RefcountsPerBlock;

    private int PlaceOf(long cluster) => (int)(cluster % header.RefcountsPerBlock);

    private long ClustersFor(long length) => (length + header.ClusterSize - 1) >> header.ClusterBits;
}
