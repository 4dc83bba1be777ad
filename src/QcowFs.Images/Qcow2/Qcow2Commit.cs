// The ordered commit of plain qcow2: makes metadata durable in stages, with a sync between, so that a crash at any instant leaves
// at worst leaked clusters.
//
// Stage 0 makes nothing newly reachable: guest data, bases of new tables, raised counts, COPIED flags taken away, a relocated
// refcount table.
// Stage 1 links refcount structures: refcount table entries, the header's pointer to the table (bytes 48-59).
// Stage 2 changes the mapping: L2 pages and L1 entries.
// Then, and only then, what the mapping no longer refers to is given up: counts lowered in memory (the next commit's stage 0
// writes them), space punched, clusters freed.
//
// I1.  Everything that a stage links to was synced by an earlier stage.
// I2.  Counts are raised a stage before mappings refer to the cluster, and lowered after the removal is durable.
// I3.  A freed cluster is punched before its count falls to zero and before the allocator has it; where the host cannot, the allocator is
//      told that it does not read as zeros. Cached pages of a freed metadata block are dropped before that.
// I6.  Before anything is punched, every reader that may have looked it up has left.
// I7.  Without host space a commit stops before its sync and leaves everything dirty; the next one begins at stage 0 again.
//      Writing the same pages twice is safe; a sync is never repeated (LatchedStorage).
// I9.  "In use" is durable before the first change of a session and cleared after its last sync.
// I11. COPIED leaves an entry on disk, durably, before a second mapping of its cluster is written. The entry's page may also hold new
//      links, which are for stage 2, so stage 0 writes the page as it was before this commit, with the flags taken away.
// I10. Auto-clear bits that we do not maintain are cleared together with it.
using System.Buffers;
using System.Buffers.Binary;
using QcowFs.Images.Metadata;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Commits the changes of one qcow2 image. <see cref="Run"/> is called by one thread at a time.</summary>
internal sealed class Qcow2Commit(Qcow2State state)
{
    // What one write of metadata gathers at most.
    private const int BatchSize = 1 << 20;

    // QEMU reads and writes the header by sectors of this size; a sector is the unit that is never torn.
    private const int HeaderSector = 512;

    private readonly Lock _useLock = new();
    private readonly MetadataCache _cache = state.Cache;
    private readonly ReferenceRelease _references = new(state);
    private readonly int _clusterBits = state.Header.ClusterBits;
    private readonly byte[] _headerSector = new byte[HeaderSector];
    private long _headerTableOffset = state.Header.RefcountTableOffset;
    private bool _inUse;

    /// <summary>The bits that stay true while we write (I10).</summary>
    private AutoclearFeatures KeptAutoclear => state.Header.AutoclearFeatures
        & (AutoclearFeatures.RawExternalData | (state.Bitmaps is null ? AutoclearFeatures.None : AutoclearFeatures.Bitmaps));

    /// <summary>Makes everything up to now durable. Returns whether metadata was written.</summary>
    /// <param name="takeDataDirty">Whether guest data was written since it was last asked.</param>
    public bool Run(Func<bool> takeDataDirty)
    {
        Frozen frozen = state.CompressedSpace?.WithoutStreams(Freeze) ?? Freeze();
        bool hasMetadata = frozen.HasMetadata;
        bool written = false;
        try
        {
            WriteStages(frozen, takeDataDirty());
            GiveUp(frozen.Removals);
            written = true;
        }
        finally
        {
            lock (_cache.Gate)
                Thaw(frozen, written);
        }

        return hasMetadata;
    }

    /// <summary>Sets the in-use mark, once a session (I9, I10). Version 2 has no room for one.</summary>
    public void BeginUse()
    {
        lock (_useLock)
        {
            if (_inUse)
                return;
            state.Bitmaps?.Begin(); // D1: the sync of the mark covers theirs
            if (state.Header.Version >= 3)
                WriteAutoclear(KeptAutoclear | AutoclearFeatures.InUse);
            _inUse = true;
        }
    }

    /// <summary>States another size of the disk, without a sync.</summary>
    public void StateSize(long size)
    {
        lock (_useLock)
            WriteHeaderField(Qcow2HeaderLayout.VirtualSizeAt, (ulong)size);
    }

    /// <summary>Ends a session after its last commit: cuts unused space off the tail and clears the in-use mark.</summary>
    /// <param name="recovered">Whether what an earlier crash left has been collected; otherwise the mark stays.</param>
    public void EndUse(bool recovered)
    {
        lock (_useLock)
        {
            lock (_cache.Gate)
                state.CompressedSpace?.Release();
            long end = state.Allocator!.UsedEnd() << _clusterBits;
            if (state.File.Length > end)
            {
                state.File.SetLength(end);
                state.File.Sync();
            }

            state.Bitmaps?.End(); // D2
            if (state.Header.Version >= 3)
                WriteAutoclear(KeptAutoclear | (!recovered ? AutoclearFeatures.InUse
                    : state.Shared.LeavesMark ? AutoclearFeatures.DedupIndex : AutoclearFeatures.None));
            _inUse = false;
        }
    }

    /// <summary>The refcount table is not where the header says.</summary>
    public bool IsRelocated => state.Refcounts.Table.Offset != _headerTableOffset;

    /// <summary>Takes all changes up to now; end with <see cref="Thaw"/>.</summary>
    public Frozen Freeze()
    {
        lock (_cache.Gate)
        {
            ResidentTable counts = state.Refcounts.Table;
            Frozen frozen = new()
            {
                Pages = _cache.Freeze(),
                CountTable = counts,
                CountPieces = counts.Freeze(),
                L1Pieces = state.L1.Freeze(),
                Removals = state.FreezeRemovals(),
                FileDirty = state.FileDirty,
                Cleared = state.Shared.FreezeCleared(),
            };
            state.FileDirty = false;
            return frozen;
        }
    }

    /// <summary>Ends what <see cref="Freeze"/> began. Where the changes were not written, they wait for the next commit. Call under the
    /// gate.</summary>
    public void Thaw(Frozen frozen, bool written)
    {
        _cache.Thaw(frozen.Pages, written);
        if (!written)
        {
            frozen.CountTable.Thaw(frozen.CountPieces);
            state.L1.Thaw(frozen.L1Pieces);
            state.FileDirty |= frozen.FileDirty;
            state.Shared.ThawCleared(frozen.Cleared);
        }

        state.ThawRemovals(frozen.Removals, !written && frozen.CountPieces.Count + frozen.L1Pieces.Count > 0);
    }

    /// <summary>Writes the stages, each with its sync. Nothing is given up.</summary>
    public void WriteStages(Frozen frozen, bool dataDirty)
    {
        bool separateData = state.HasExternalData;
        bool relocated = frozen.CountTable.Offset != _headerTableOffset;

        // Stage 0.
        int counts = WritePages(frozen.Pages, CommitStage.Counts) + WriteCleared(frozen.Cleared);
        if (relocated)
            WritePieces(frozen.CountPieces);
        if (separateData && dataDirty)
            state.Data.Sync();
        if (counts > 0 || relocated || frozen.FileDirty || (dataDirty && !separateData))
            state.File.Sync();

        // Stage 1.
        if (relocated)
            WriteTablePointer(frozen.CountTable);
        else
            WritePieces(frozen.CountPieces);
        if (relocated || frozen.CountPieces.Count > 0)
        {
            state.File.Sync();
            _headerTableOffset = frozen.CountTable.Offset;
        }

        // Stage 2.
        int links = WritePages(frozen.Pages, CommitStage.Links);
        WritePieces(frozen.L1Pieces);
        if (links > 0 || frozen.L1Pieces.Count > 0)
            state.File.Sync();
        lock (_cache.Gate)
        {
            // What follows pins, changes and drops pages; those of this commit are written.
            _cache.Thaw(frozen.Pages, written: true);
            frozen.Pages.Clear();
            frozen.CountPieces.Clear();
            frozen.L1Pieces.Clear();
            frozen.Cleared.Clear();
        }
    }

    /// <summary>Takes COPIED from entries on disk whose clusters get a second reference in this commit (I11): the page as an earlier commit
    /// left it, with nothing changed but those flags. Returns how many pages.</summary>
    private int WriteCleared(List<ClearedFlag> cleared)
    {
        if (cleared.Count == 0)
            return 0;
        int pages = 0;
        byte[] page = new byte[_cache.PageSize];
        foreach (IGrouping<long, ClearedFlag> flags in cleared.GroupBy(flag => flag.EntryOffset & -_cache.PageSize))
        {
            // What the file holds was written by a commit whose counts and data were synced before, so it may become durable here.
            state.File.Read(flags.Key, page);
            bool changed = false;
            foreach (ClearedFlag flag in flags)
            {
                Span<byte> bytes = page.AsSpan((int)(flag.EntryOffset - flags.Key));
                L2Entry entry = L2Entry.Read(bytes);
                if (entry.IsCompressed || !entry.Copied || entry.HostOffset.Value != flag.Host)
                    continue;
                entry.WithCopied(false).WriteTo(bytes);
                changed = true;
            }

            if (!changed)
                continue;
            state.File.Write(flags.Key, page);
            pages++;
        }

        return pages;
    }

    /// <summary>Writes the frozen pages of a stage, neighbours in one write. Returns how many pages.</summary>
    private int WritePages(List<MetadataPage> pages, CommitStage stage)
    {
        MetadataPage[] chosen = [.. pages.Where(page => page.Stage == stage).OrderBy(page => page.Offset)];
        if (chosen.Length == 0)
            return 0;
        int pageSize = _cache.PageSize;
        byte[] batch = ArrayPool<byte>.Shared.Rent(Math.Min(BatchSize, chosen.Length * pageSize));
        try
        {
            for (int i = 0; i < chosen.Length;)
            {
                int first = i;
                int length = 0;
                lock (_cache.Gate)
                {
                    do
                    {
                        chosen[i].CommitContent.CopyTo(batch.AsSpan(length));
                        length += pageSize;
                        i++;
                    }
                    while (i < chosen.Length && chosen[i].Offset == chosen[i - 1].Offset + pageSize && length + pageSize <= batch.Length);
                }

                state.File.Write(chosen[first].Offset, batch.AsSpan(0, length));
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(batch);
        }

        return chosen.Length;
    }

    private void WritePieces(List<ResidentTable.FrozenPiece> pieces)
    {
        foreach (ResidentTable.FrozenPiece piece in pieces)
            state.File.Write(piece.Offset, piece.Bytes);
    }

    private void WriteTablePointer(ResidentTable table)
    {
        lock (_useLock)
        {
            // The journal's feature bit comes and goes in the same sector.
            Span<byte> sector = _headerSector;
            state.File.Read(0, sector);
            BinaryPrimitives.WriteInt64BigEndian(sector[Qcow2HeaderLayout.RefcountTableOffsetAt..], table.Offset);
            int clusters = (int)((table.Length * 8L) >> _clusterBits);
            BinaryPrimitives.WriteInt32BigEndian(sector[Qcow2HeaderLayout.RefcountTableClustersAt..], clusters);
            state.File.Write(0, sector);
        }
    }

    private void WriteAutoclear(AutoclearFeatures features)
    {
        WriteHeaderField(Qcow2HeaderLayout.AutoclearFeaturesAt, (ulong)features);
        state.File.Sync();
    }

    // One write of one sector, which is never torn.
    private void WriteHeaderField(int at, ulong value)
    {
        state.File.Read(0, _headerSector);
        BinaryPrimitives.WriteUInt64BigEndian(_headerSector.AsSpan(at), value);
        state.File.Write(0, _headerSector);
    }

    /// <summary>Gives up references whose removal is durable. What is done leaves the list, a page of counts at a time, so that a failure
    /// keeps the rest and nothing is lowered twice (I2).</summary>
    private void GiveUp(List<Removal> removals)
    {
        if (removals.Count == 0)
            return;
        state.Epoch.Synchronize(); // I6
        if (removals.Exists(removal => removal.Kind == RemovalKind.Compressed))
            state.Compressed.Clear();
        for (int i = removals.Count - 1; i >= 0; i--)
        {
            // While leaks are being counted, metadata blocks stay (LeakCollector, L3).
            if (removals[i].Kind == RemovalKind.Metadata && state.Refcounts.Touched is not null)
                continue;
            while (removals[i].Length > 0)
                removals[i] = LowerOnPage(removals[i]);
            removals.RemoveAt(i);
        }
    }

    /// <summary>Lowers the counts of a removal's first clusters, those on one page. Returns what is left of it. Nothing has changed when
    /// it fails.</summary>
    private Removal LowerOnPage(Removal removal)
    {
        Refcounts counts = state.Refcounts;
        long first = removal.Offset >> _clusterBits;
        long end = Math.Min((removal.Offset + removal.Length) >> _clusterBits, counts.PageEnd(first));
        using PinnedPages pins = new(_cache);
        MetadataPage page = pins.Add(counts.PageOffset(first));

        // I3: punched while the count still protects it, then free. Only a commit lowers a count, so what is the last reference stays it.
        List<ClusterRun> unused = _references.FindLast(page, first, end);
        if (removal.Kind == RemovalKind.Data)
            state.Shared.TellFreed(unused, _clusterBits);
        unused = unused.ConvertAll(Punch);
        lock (_cache.Gate)
        {
            _references.Lower(page, first, end, removal.Kind);
            foreach (ClusterRun run in unused)
            {
                if (removal.Kind == RemovalKind.Metadata)
                    _cache.Drop(run.First << _clusterBits, run.Count << _clusterBits);
                state.Metadata!.Remove(run.First, run.Count);
                state.Allocator!.Free(run);
            }
        }

        long done = (end << _clusterBits) - removal.Offset;
        return removal with { Offset = removal.Offset + done, Length = removal.Length - done };
    }

    /// <summary>Gives a run's space back to the host. A host without the space that this takes gets it back when the run is used again:
    /// everything is durable already, so it is no reason to fail.</summary>
    private ClusterRun Punch(ClusterRun run)
    {
        try
        {
            state.File.Discard(run.First << _clusterBits, run.Count << _clusterBits);
            return run;
        }
        catch (StorageException exception) when (exception.IsOutOfSpace)
        {
            return run with { ReadsAsZero = false };
        }
    }

    /// <summary>What one commit writes.</summary>
    internal sealed class Frozen
    {
        public required List<MetadataPage> Pages { get; init; }

        public required ResidentTable CountTable { get; init; }

        public required List<ResidentTable.FrozenPiece> CountPieces { get; init; }

        public required List<ResidentTable.FrozenPiece> L1Pieces { get; init; }

        public required List<Removal> Removals { get; init; }

        public required bool FileDirty { get; init; }

        public required List<ClearedFlag> Cleared { get; init; }

        public bool HasMetadata => Pages.Count + CountPieces.Count + L1Pieces.Count + Removals.Count > 0;
    }
}
