// The commit with a journal: one record, one sync (J1 to J12 of DESIGN.md in this folder, which has the reasons).
//
// J3. Commit n: freeze -> wait for writers inside the epoch -> checksums -> the record, which confirms n-1 -> one sync -> acknowledged.
// J6. Consequences of n wait until n is confirmed, that is, until the sync of a record after it returned.
// J7. Counts are lowered in memory only then.
// J8. Much data, or data in another file, is synced before the record, which lists none of it.
// J11. Every change of the mapping is in a record before it is acknowledged: an intent, written but not synced. No intent of a later
//     epoch comes before a commit's record: the ring's lock is held from the freeze until the record is written.
//
// What a record cannot hold, or may not (a relocated refcount table: the header is never logged), goes the ordered way of
// Qcow2Commit after everything before it, the epoch's intents included, was committed and checkpointed.
//
// Locks: the ring's, then the gate, then the guard's. The ring's is held across I/O but not across a commit's one sync, and taken by
// nobody inside the reader epoch.
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>Commits the changes of one image through its journal. <see cref="Run"/> is called by one thread at a time.</summary>
internal sealed class JournalCommit
{
    private readonly Qcow2State _state;
    private readonly MetadataCache _cache;
    private readonly JournaledFile _file;
    private readonly Qcow2Commit _ordered;
    private readonly JournalRing _ring;
    private readonly JournalCheckpoint _checkpoint;
    private readonly JournalReclaim _reclaim;
    private readonly WriteGuard _guard;
    private readonly SpaceAhead? _ahead;
    private readonly Lock _ringLock = new();

    // Guarded by the ring's lock. What was gathered stays until a record that holds it was written.
    private readonly RedoBuffer _redo = new();
    private readonly byte[] _piece = new byte[64 << 10];
    private ulong _synced;
    private JournalPosition _behind;
    private ulong _confirmed;

    /// <param name="state">The image.</param>
    /// <param name="file">The image file with its overlay, which is empty.</param>
    /// <param name="ordered">Commits without the journal.</param>
    /// <param name="ring">The journal, empty.</param>
    /// <param name="guard">Notes what records must list.</param>
    /// <param name="ahead">Is told of commits; may be null.</param>
    public JournalCommit(Qcow2State state, JournaledFile file, Qcow2Commit ordered, JournalRing ring, WriteGuard guard, SpaceAhead? ahead)
    {
        _state = state;
        _cache = state.Cache;
        _file = file;
        _ordered = ordered;
        _ring = ring;
        _guard = guard;
        _ahead = ahead;
        _checkpoint = new JournalCheckpoint(file, ring);
        _reclaim = new JournalReclaim(state, file);
        _behind = ring.Head;
        _synced = _confirmed = ring.Head.Sequence - 1;
    }

    /// <summary>Where the next record goes. A hint while others write.</summary>
    public JournalPosition Head => _ring.Head;

    private bool HasUnlogged =>
        _redo.Count > 0 || _reclaim.Revokes.Count > 0 || _cache.HasUnlogged || _state.L1.HasUnlogged || _state.Refcounts.Table.HasUnlogged;

    /// <summary>How many dirty pages make a commit necessary, so that a record holds it.</summary>
    public static int DirtyLimit(int maxRecordBytes, int pageSize) =>
        Math.Max(2, maxRecordBytes / 2 / (pageSize + JournalRecordHeader.RedoHeadSize));

    /// <summary>Makes everything up to now durable. Returns whether metadata was written.</summary>
    /// <param name="takeDataDirty">Whether guest data was written since it was last asked.</param>
    public bool Run(Func<bool> takeDataDirty)
    {
        Epoch epoch;
        bool syncs;
        lock (_ringLock)
        {
            epoch = _state.CompressedSpace?.WithoutStreams(Freeze) ?? Freeze();
            bool done = false;
            try
            {
                syncs = Write(epoch, takeDataDirty());
                done = true;
            }
            finally
            {
                if (!done)
                    Undo(epoch);
            }
        }

        if (syncs)
            Sync(epoch);
        else
            Undo(epoch);
        _ahead?.AfterCommit();
        return epoch.HasMetadata;
    }

    /// <summary>Logs what changed since the last record, for the case that this process is killed (J11). False where only a commit can.
    /// Call outside of the reader epoch.</summary>
    public bool TryLogChanges()
    {
        lock (_ringLock)
        {
            List<JournalRange> revokes;
            lock (_cache.Gate)
            {
                if (!HasUnlogged)
                    return true;
                if (_ordered.IsRelocated)
                    return false;
                Gather();
                revokes = [.. _reclaim.Revokes];
            }

            JournalContent intent = new(JournalRecordKind.Intent, _synced, DataIsDurable: false, revokes, []);
            long blocks = JournalRing.BlocksFor(intent, _redo);
            long kept = JournalLayout.BlocksFor(_ring.MaxRecordBytes);
            if (blocks > kept || _ring.FreeBlocks - blocks < kept)
                return false;
            _ = _ring.Append(intent, _redo);
            Logged(revokes.Count);
            return true;
        }
    }

    /// <summary>Brings everything that is committed to its place, durably, and confirms it. Call as <see cref="Run"/>.</summary>
    public void Settle()
    {
        lock (_ringLock)
        {
            _confirmed = _checkpoint.Force(_synced, _behind, _confirmed);
            _guard.Confirmed();
        }
    }

    private Epoch Freeze()
    {
        lock (_cache.Gate)
        {
            Qcow2Commit.Frozen frozen = _ordered.Freeze();
            Gather();
            return new Epoch(frozen, _guard.Freeze(), [.. _reclaim.Revokes], frozen.HasMetadata || _redo.Count > 0);
        }
    }

    // Under the ring's lock and the gate.
    private void Gather()
    {
        _cache.TakeChanges(_redo.AddChanges);
        _state.L1.TakeUnlogged(piece => _redo.Add(piece.Offset, piece.Bytes));
        _state.Refcounts.Table.TakeUnlogged(piece => _redo.Add(piece.Offset, piece.Bytes));
    }

    // Under the ring's lock, when a record holds what was gathered.
    private void Logged(int revokes)
    {
        _redo.Clear();
        lock (_cache.Gate)
            _reclaim.Revokes.RemoveRange(0, revokes);
    }

    /// <summary>Writes the record of an epoch, or its pages. Whether a sync must follow.</summary>
    private bool Write(Epoch epoch, bool dataDirty)
    {
        if (_state.HasExternalData && dataDirty)
            _state.Data.Sync(); // J8
        bool mustConfirm = _guard.HasUnconfirmed || _reclaim.WaitsAbove(_confirmed);
        if (!epoch.HasMetadata && epoch.Revokes.Count == 0 && !mustConfirm)
        {
            _ring.Close();
            return (dataDirty && !_state.HasExternalData) || epoch.Frozen.FileDirty || _reclaim.NeedsSync;
        }

        JournalContent content = new(JournalRecordKind.Commit, _synced, epoch.Noted.IsLarge, epoch.Revokes, ChecksOf(epoch.Noted));
        int blocks = JournalRing.BlocksFor(content, _redo);
        if (_ordered.IsRelocated || blocks > JournalLayout.BlocksFor(_ring.MaxRecordBytes))
        {
            WriteOrdered(epoch, dataDirty, content);
            return true;
        }

        if (blocks > _ring.FreeBlocks)
            _confirmed = _checkpoint.Force(_synced, _behind, _confirmed);
        epoch.Sequence = _ring.Append(content, _redo);
        epoch.Behind = _ring.Head;
        Logged(epoch.Revokes.Count);
        return true;
    }

    /// <summary>What the record lists. Where that is too much the data is synced instead.</summary>
    private JournalCheck[] ChecksOf(NotedRanges noted)
    {
        JournalRange[] ranges = noted.Ranges;
        if (ranges.Length == 0 && !noted.IsLarge)
            return [];
        _state.Epoch.Synchronize(); // W3
        if (noted.IsLarge)
        {
            _file.Sync(); // J8
            return [];
        }

        JournalCheck[] checks = new JournalCheck[ranges.Length];
        for (int i = 0; i < ranges.Length; i++)
        {
            uint checksum = JournalReplay.ChecksumOf(_file.Inner, ranges[i].Offset, ranges[i].Length, _piece);
            checks[i] = new JournalCheck(ranges[i].Offset, (int)ranges[i].Length, checksum);
        }

        return checks;
    }

    /// <summary>Commits an epoch without a record: everything before it goes to its place, then the stages of the ordered commit. The
    /// epoch's intents are committed and go to their place first: after a kill, words that they logged would be laid over what the stages
    /// wrote there later.</summary>
    private void WriteOrdered(Epoch epoch, bool dataDirty, in JournalContent content)
    {
        if (_ring.Head != _behind)
            CommitIntents(content with { Revokes = [] });
        _confirmed = _checkpoint.Force(_synced, _behind, _confirmed);
        _ordered.WriteStages(epoch.Frozen, dataDirty);
        epoch.Sequence = _synced;
        epoch.Behind = _behind;
        epoch.IsInPlace = true;
        Logged(epoch.Revokes.Count);
    }

    private void CommitIntents(in JournalContent content)
    {
        JournalPosition first = _behind;
        RedoBuffer none = new();
        if (JournalRing.BlocksFor(content, none) > _ring.FreeBlocks)
            _confirmed = _checkpoint.Force(_synced, _behind, _confirmed);
        ulong sequence = _ring.Append(content, none);
        _ring.Close();
        _file.Sync();
        _ring.ReadRedo(first, _file.Put);
        (_confirmed, _synced, _behind) = (_synced, sequence, _ring.Head);
    }

    private void Sync(Epoch epoch)
    {
        long length = _file.Length;
        bool done = false;
        try
        {
            _file.Sync();
            done = true;
        }
        finally
        {
            if (!done)
                Undo(epoch);
        }

        if (epoch.Sequence != 0 || epoch.IsInPlace)
            Adopt(epoch);
        else
            Undo(epoch, written: true);
        _reclaim.AfterSync(_confirmed);
        lock (_ringLock)
            _checkpoint.AfterSync(_synced, _behind, _confirmed, length);
    }

    /// <summary>The epoch is durable, and with it that the record before it was synced (J3).</summary>
    private void Adopt(Epoch epoch)
    {
        if (!epoch.IsInPlace)
            LayOver(epoch.Frozen);
        lock (_ringLock)
        {
            _confirmed = epoch.IsInPlace ? epoch.Sequence : _synced;
            _synced = epoch.Sequence;
            _behind = epoch.Behind;
        }

        _guard.Synced();
        if (epoch.IsInPlace)
            _guard.Confirmed();
        lock (_cache.Gate)
        {
            _state.AddPending(epoch.Frozen.Removals, epoch.Sequence);
            _ordered.Thaw(epoch.Frozen, written: true);
        }
    }

    /// <summary>Puts the logged pages over the file, so that they may leave the cache.</summary>
    private void LayOver(Qcow2Commit.Frozen frozen)
    {
        byte[] page = new byte[_cache.PageSize];
        foreach (MetadataPage changed in frozen.Pages)
        {
            lock (_cache.Gate)
                changed.CommitContent.CopyTo(page);
            _file.Put(changed.Offset, page);
        }

        foreach (ResidentTable.FrozenPiece piece in frozen.CountPieces)
            _file.Put(piece.Offset, piece.Bytes);
        foreach (ResidentTable.FrozenPiece piece in frozen.L1Pieces)
            _file.Put(piece.Offset, piece.Bytes);
    }

    /// <summary>No record holds the epoch: what it took waits for the next one, unless there was nothing to take.</summary>
    private void Undo(Epoch epoch, bool written = false)
    {
        if (!written)
            _guard.Restore(epoch.Noted);
        lock (_cache.Gate)
            _ordered.Thaw(epoch.Frozen, written);
    }

    /// <summary>What one commit took.</summary>
    private sealed class Epoch(Qcow2Commit.Frozen frozen, NotedRanges noted, List<JournalRange> revokes, bool hasMetadata)
    {
        public Qcow2Commit.Frozen Frozen { get; } = frozen;

        public NotedRanges Noted { get; } = noted;

        public List<JournalRange> Revokes { get; } = revokes;

        public bool HasMetadata { get; } = hasMetadata;

        /// <summary>The record's, once it is written.</summary>
        public ulong Sequence { get; set; }

        /// <summary>The place behind it.</summary>
        public JournalPosition Behind { get; set; }

        /// <summary>It was committed without a record.</summary>
        public bool IsInPlace { get; set; }
    }
}
