// Sharing of clusters between guest blocks, and the sweep that gives COPIED back to mappings that are alone again (SharedClusters).
using System.Collections;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Qcow2;

/// <content>Sharing.</content>
internal sealed partial class Qcow2BlockMap : IBlockSharing
{
    public IBlockSharing? Sharing => _external ? null : this;

    public Action<long, long>? Freed
    {
        get => _state.Shared.Freed;
        set => _state.Shared.Freed = value;
    }

    public BitArray Tables
    {
        get
        {
            lock (_cache.Gate)
                return _state.Shared.CopyTables();
        }
    }

    public bool NeedsSweep => _state.Shared.NeedsSweep;

    public bool LeavesMark
    {
        get => _state.Shared.LeavesMark;
        set => _state.Shared.LeavesMark = value;
    }

    // Room is left below what fits the count, so that a snapshot of a disk with much shared data is still possible.
    private ulong MostReferences => _state.Refcounts.Max <= 3 ? _state.Refcounts.Max - 1 : _state.Refcounts.Max / 2;

    public bool TryShare(long block, long owner, long host)
    {
        _space.EnsureTable(TableIndex(block));
        RequireReplaceable(ReadSlot(block), block);
        long cluster = host >> _clusterBits;
        int ownerTable = TableIndex(owner);
        if (!_state.Refcounts.HasBlock(cluster) || !new L1Entry(L1[ownerTable]).IsAllocated)
            return false;
        long ownerEntry = TableEntryOffset(owner);
        using PinnedPages pins = new(_cache);
        pins.AddRange(TableEntryOffset(block), 0);
        MetadataPage ownerPage = pins.Add(PageOf(ownerEntry));
        MetadataPage counts = pins.Add(_state.Refcounts.PageOffset(cluster));
        // Its owner may have rewritten it since it was last synced, so the record of the new mapping lists it (J4).
        _state.Guard?.NoteFresh(host, _clusterMask + 1);
        lock (_cache.Gate)
        {
            // The owner's table may have been replaced by a copy since its page was pinned; then the page says nothing any more.
            Qcow2Slot owned = SlotIn(ownerPage, owner);
            ulong count = _state.Refcounts.Get(counts, cluster);
            bool mayClear = !owned.Entry.Copied || new L1Entry(L1[ownerTable]).Copied; // M3
            if (TableEntryOffset(owner) != ownerEntry || !owned.MapsWhole(host) || !mayClear || count == 0 || count >= MostReferences)
                return false;

            // M2: from here on nothing can fail.
            if (owned.Entry.Copied)
                TakeCopied(ownerPage, ownerEntry, owned.Entry);
            _cache.BeginChange(counts, CommitStage.Counts);
            _state.Refcounts.Set(counts, cluster, count + 1);
            counts.EndChange();
            Qcow2Slot old = SlotIn(pins[0], block);
            ReplaceSlot(pins, block, block, old, old.WithShared(new HostOffset(host)));
            _state.Shared[ownerTable] = true;
            _state.Shared[TableIndex(block)] = true;
            return true;
        }
    }

    public void Sweep(Action commit, Func<bool> stop)
    {
        _state.Shared.BeginSweep();
        bool complete = false;
        try
        {
            for (int table = 0; table < L1.Length && !stop(); table++)
                SweepTableIfNoted(table, commit, stop);
            complete = !stop();
        }
        finally
        {
            if (!complete)
                _state.Shared.ContinueSweep();
        }
    }

    private void SweepTableIfNoted(int table, Action commit, Func<bool> stop)
    {
        lock (_cache.Gate)
        {
            if (!_state.Shared[table])
                return;
            _state.Shared[table] = false; // set again by what is found, or shared meanwhile
        }

        bool done = false;
        try
        {
            L1Entry entry = new(L1[table]);
            done = !entry.IsAllocated || (entry.Copied && SweepTable(CheckTable(entry, table), commit, stop));
        }
        finally
        {
            if (!done)
            {
                lock (_cache.Gate)
                    _state.Shared[table] = true;
            }
        }
    }

    /// <summary>Sets COPIED in the entries of one table of this image's own. False: some entry is still without.</summary>
    private bool SweepTable(long table, Action commit, Func<bool> stop)
    {
        bool complete = true;
        List<(int Index, L2Entry Entry)> found = [];
        for (long offset = table; offset <= table + _clusterMask; offset += _cache.PageSize)
        {
            if (stop())
                return false;
            if (NeedsCommit)
                commit();
            using PinnedPages pins = new(_cache);
            MetadataPage page = pins.Add(offset);
            found.Clear();
            lock (_cache.Gate)
                FindWithoutCopied(page, found);
            foreach ((int index, L2Entry entry) in found)
                complete &= TryGiveCopied(page, index, entry);
        }

        return complete;
    }

    private void FindWithoutCopied(MetadataPage page, List<(int Index, L2Entry Entry)> found)
    {
        for (int i = 0; i < page.Entries.Length; i += 1 << (_entryBits - 3))
        {
            L2Entry entry = new(FromDisk(page.Entries[i]));
            if (!entry.Copied && entry.HasHostCluster)
                found.Add((i, entry));
        }
    }

    private bool TryGiveCopied(MetadataPage page, int index, L2Entry entry)
    {
        long cluster = entry.HostOffset.Value >> _clusterBits;
        if (!_state.Refcounts.HasBlock(cluster) || _state.Metadata![cluster] is not null)
            return false;
        using PinnedPages pins = new(_cache);
        MetadataPage counts = pins.Add(_state.Refcounts.PageOffset(cluster));
        lock (_cache.Gate)
        {
            // A count of one in memory means that every removal of another mapping is durable (I3).
            if (FromDisk(page.Entries[index]) != entry.Raw || _state.Refcounts.Get(counts, cluster) != 1)
                return false;
            _cache.BeginChange(page, CommitStage.Links);
            page.Entries[index] = ToDisk(entry.WithCopied(true).Raw);
            page.EndChange();
            return true;
        }
    }

    /// <summary>Takes COPIED from the entry that owns a cluster, here and with the next commit's stage 0 on disk. Under the gate.</summary>
    private void TakeCopied(MetadataPage page, long entryOffset, L2Entry entry)
    {
        _cache.BeginChange(page, CommitStage.Links);
        page.Entries[(int)((entryOffset & (_cache.PageSize - 1)) >> 3)] = ToDisk(entry.WithCopied(false).Raw);
        page.EndChange();
        _state.Shared.NoteCleared(new ClearedFlag(entryOffset, entry.HostOffset.Value));
    }
}
