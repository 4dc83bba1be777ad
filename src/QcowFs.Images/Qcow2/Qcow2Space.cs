// Makes room in a qcow2 file: host clusters whose counts can be raised, L2 tables, refcount blocks, a larger refcount table.
//
// S1. A new table or block starts from zeros, or from a copy, that is written before anything links to it; the commit syncs the
//     file before it writes links (I1).
// S2. A structure is linked and counted in one change under the gate, so that no commit ever sees one without the other (I2).
// S3. Everything that a later Publish needs exists when a reservation is handed out, so that Publish cannot meet ENOSPC (I7).
//
// Locks, in this order: structure (one creation at a time, held across I/O), the cache's gate, the allocator's.
using System.Buffers;
using QcowFs.Images.Metadata;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Creates the structures that new mappings need. Thread-safe.</summary>
internal sealed class Qcow2Space(Qcow2State state)
{
    private readonly Lock _structure = new();
    private readonly MetadataCache _cache = state.Cache;
    private readonly int _clusterBits = state.Header.ClusterBits;

    private Refcounts Counts => state.Refcounts;

    private HostAllocator Allocator => state.Allocator!;

    private long ClusterSize => 1L << _clusterBits;

    /// <summary>Hands out 1 to <paramref name="wanted"/> consecutive clusters whose refcount blocks exist. Their counts are still
    /// zero.</summary>
    public ClusterRun TakeCounted(long wanted)
    {
        ClusterRun run = Allocator.Take(wanted);
        bool counted = false;
        try
        {
            EnsureBlocks(run.First, run.Count);
            counted = true;
        }
        finally
        {
            if (!counted)
                GiveBack(run);
        }

        return run;
    }

    /// <summary>Pins the pages that hold the counts of a run of clusters.</summary>
    public void PinCounts(PinnedPages pins, long first, long count)
    {
        for (long cluster = first; cluster < first + count; cluster = Counts.PageEnd(cluster))
            pins.Add(Counts.PageOffset(cluster));
    }

    /// <summary>Raises the counts of a run of free clusters to one. Under the gate.</summary>
    /// <param name="pins">Holds the pages, pinned by <see cref="PinCounts"/> for the same run.</param>
    /// <param name="index">The first of them.</param>
    /// <param name="first">The first cluster.</param>
    /// <param name="count">How many.</param>
    public void RaiseCounts(PinnedPages pins, int index, long first, long count)
    {
        for (long cluster = first; cluster < first + count; index++)
        {
            long end = Math.Min(first + count, Counts.PageEnd(cluster));
            Counts.RaiseFree(pins[index], cluster, end - cluster);
            cluster = end;
        }
    }

    /// <summary>Makes sure that an L1 entry has an L2 table that belongs to the active L1 alone.</summary>
    public void EnsureTable(int index)
    {
        if (IsOwned(index))
            return;
        lock (_structure)
        {
            if (IsOwned(index))
                return;
            L1Entry old = new(state.L1[index]);
            if (old.IsAllocated)
                Counts.RequireCounted(old.TableOffset, ClusterSize);
            ClusterRun run = TakeCounted(1);
            long table = run.First << _clusterBits;
            bool linked = false;
            try
            {
                if (old.IsAllocated)
                    CopyTable(old.TableOffset, table);
                else
                    Zero(run);
                using PinnedPages pins = new(_cache);
                PinCounts(pins, run.First, 1);
                lock (_cache.Gate)
                {
                    RaiseCounts(pins, 0, run.First, 1);
                    state.Metadata!.Add(run.First, 1, MetadataMap.L2Table);
                    state.L1.Set(index, L1Entry.Table(table, copied: true).Raw);
                    state.NoteTableChange();
                    if (old.IsAllocated)
                        state.Remove(new Removal(old.TableOffset, ClusterSize, RemovalKind.Metadata));
                    linked = true;
                }
            }
            finally
            {
                if (!linked)
                    GiveBack(run with { ReadsAsZero = false });
            }
        }
    }

    /// <summary>Hands out consecutive clusters, counted once, for a structure.</summary>
    public ClusterRun TakeArea(long count, string structure)
    {
        ClusterRun run = Allocator.TakeContiguous(count);
        bool linked = false;
        try
        {
            EnsureBlocks(run.First, run.Count);
            using PinnedPages pins = new(_cache);
            PinCounts(pins, run.First, run.Count);
            lock (_cache.Gate)
            {
                RaiseCounts(pins, 0, run.First, run.Count);
                state.Metadata!.Add(run.First, run.Count, structure);
                linked = true;
            }
        }
        finally
        {
            if (!linked)
                GiveBack(run with { ReadsAsZero = false });
        }

        return run;
    }

    private bool IsOwned(int index)
    {
        L1Entry entry = new(state.L1[index]);
        return entry.IsAllocated && entry.Copied;
    }

    /// <summary>Copies a shared table as it is now, changes that wait for a commit included.</summary>
    private void CopyTable(long from, long to)
    {
        byte[] copy = ArrayPool<byte>.Shared.Rent((int)ClusterSize);
        try
        {
            for (int at = 0; at < ClusterSize; at += _cache.PageSize)
            {
                using PinnedPages pin = new(_cache);
                MetadataPage page = pin.Add(from + at);
                lock (_cache.Gate)
                    page.Bytes.CopyTo(copy.AsSpan(at));
            }

            state.File.Write(to, copy.AsSpan(0, (int)ClusterSize));
            state.NoteBase(to, ClusterSize);
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(copy);
        }
    }

    /// <summary>Makes new space read as zeros (S1).</summary>
    private void Zero(ClusterRun run)
    {
        if (run.ReadsAsZero)
            return;
        state.File.WriteZeroes(run.First << _clusterBits, run.Count << _clusterBits);
        state.NoteBase(run.First << _clusterBits, run.Count << _clusterBits);
    }

    private void GiveBack(ClusterRun run)
    {
        // A record may list what was written there (J5). Its counts are zero, so the next mount finds it free.
        if (state.Guard is not null && !run.ReadsAsZero)
            return;
        lock (_cache.Gate)
            Allocator.Free(run);
    }

    private void EnsureBlocks(long first, long count)
    {
        for (long cluster = first; cluster < first + count; cluster = Counts.BlockEnd(cluster))
        {
            if (Counts.HasBlock(cluster))
                continue;
            lock (_structure)
                CreateBlock(cluster);
        }
    }

    /// <summary>Creates the refcount block that counts a cluster. The block is counted by itself or by one that exists first.</summary>
    private void CreateBlock(long cluster)
    {
        if (Counts.HasBlock(cluster))
            return;
        if (Counts.BlockIndex(cluster) >= Counts.Table.Length)
            GrowTable(Counts.BlockIndex(cluster));
        ClusterRun run = Allocator.Take(1);
        bool linked = false;
        try
        {
            int index = Counts.BlockIndex(cluster);
            bool countsItself = Counts.BlockIndex(run.First) == index;
            if (!countsItself)
                EnsureBlocks(run.First, 1);
            if (Counts.HasBlock(cluster))
                return;
            Zero(run);
            long block = run.First << _clusterBits;
            using PinnedPages pins = new(_cache);
            pins.Add(countsItself ? Counts.PageOffsetIn(block, run.First) : Counts.PageOffset(run.First));
            lock (_cache.Gate)
            {
                Counts.Table.Set(index, RefcountTableEntry.Block(block).Raw);
                state.NoteTableChange();
                state.Metadata!.Add(run.First, 1, MetadataMap.RefcountBlock);
                Counts.RaiseFree(pins[0], run.First, 1);
                linked = true;
            }
        }
        finally
        {
            if (!linked)
                GiveBack(run with { ReadsAsZero = false });
        }
    }

    /// <summary>Moves the refcount table to a larger place. The new table, and the new blocks that count it, lie together at the
    /// tail; the old table is freed once the header points at the new one.</summary>
    private void GrowTable(int index)
    {
        ResidentTable old = Counts.Table;
        Counts.RequireCounted(old.Offset, old.Length * 8L);
        long entries = Math.Max(index + 1L, Math.Min(old.Length * 2L, Qcow2Limits.MaxRefcountTableBytes / 8));
        long tableClusters = ((entries * 8) + ClusterSize - 1) >> _clusterBits;
        if (tableClusters << _clusterBits > Math.Max(Qcow2Limits.MaxRefcountTableBytes, ClusterSize))
            throw new StorageException(Errno.EFBIG, "grow the refcount table", state.File.Name);
        long blocks = 2;
        while (((tableClusters + blocks) / state.Header.RefcountsPerBlock) + 2 > blocks)
            blocks++;
        ClusterRun run = Allocator.TakeContiguous(tableClusters + blocks);
        long used = 0;
        try
        {
            used = InstallTable(old, run, tableClusters);
        }
        finally
        {
            GiveBack(run with { First = run.First + used, Count = run.Count - used });
        }
    }

    /// <summary>Returns how many clusters of the run are in use now.</summary>
    private long InstallTable(ResidentTable old, ClusterRun run, long tableClusters)
    {
        ResidentTable table = old.Relocate(run.First << _clusterBits, checked((int)((tableClusters << _clusterBits) / 8)));
        long used = tableClusters;
        for (long cluster = run.First; cluster < run.First + used; cluster = Counts.BlockEnd(cluster))
        {
            int index = Counts.BlockIndex(cluster);
            if (!new RefcountTableEntry(table[index]).IsAllocated)
                table.Set(index, RefcountTableEntry.Block((run.First + used++) << _clusterBits).Raw);
        }

        Zero(run with { Count = used });
        using PinnedPages pins = new(_cache);
        for (long cluster = run.First; cluster < run.First + used; cluster = Counts.PageEnd(cluster))
            pins.Add(Counts.PageOffsetIn(new RefcountTableEntry(table[Counts.BlockIndex(cluster)]).BlockOffset, cluster));
        lock (_cache.Gate)
        {
            RaiseCounts(pins, 0, run.First, used);
            state.Metadata!.Add(run.First, tableClusters, MetadataMap.RefcountTable);
            state.Metadata!.Add(run.First + tableClusters, used - tableClusters, MetadataMap.RefcountBlock);
            Counts.Table = table;
            state.NoteTableChange();
            long oldLength = ((old.Length * 8L) + ClusterSize - 1) & -ClusterSize;
            state.Remove(new Removal(old.Offset, oldLength, RemovalKind.Data));
        }

        return used;
    }
}
