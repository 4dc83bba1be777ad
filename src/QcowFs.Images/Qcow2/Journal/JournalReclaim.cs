// What a committed removal may have as its consequence, and when (J6, J7): punch, count, free set.
//
// A removal that record n committed waits until n is confirmed. Then, for the clusters of which it is the last reference:
//   overlay and cache forget them -> punch -> the next sync -> the count falls in memory, a revoke goes into the next record, free.
// So a cluster that is handed out again was zero on stable storage before the epoch that uses it (J4), and no older record can write
// over what is put there: if one logged it, the record that first maps its new use, or one before, revokes that.
// A cluster with further references only has its count lowered.
using QcowFs.Images.Metadata;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>Gives up what committed removals referred to. Called by the one thread that commits, which holds nothing.</summary>
internal sealed class JournalReclaim(Qcow2State state, JournaledFile file)
{
    private readonly MetadataCache _cache = state.Cache;
    private readonly int _clusterBits = state.Header.ClusterBits;
    private readonly ReferenceRelease _references = new(state);
    private readonly HashSet<long> _punched = [];
    private readonly HashSet<long> _zeroed = [];
    private readonly HashSet<long> _filled = [];
    private readonly HashSet<long> _logged = [];

    /// <summary>Freed ranges that were logged, for the next record. Guarded by the gate; whoever writes the record clears it.</summary>
    public List<JournalRange> Revokes { get; } = [];

    /// <summary>Whether something waits for a sync that need not write a record.</summary>
    public bool NeedsSync => _punched.Count > 0;

    /// <summary>Whether something waits for a record to be confirmed that is not.</summary>
    public bool WaitsAbove(ulong confirmed)
    {
        lock (_cache.Gate)
            return state.Pending.Exists(pending => pending.Sequence > confirmed);
    }

    /// <summary>Goes on after a sync that returned.</summary>
    /// <param name="confirmed">The last confirmed record.</param>
    public void AfterSync(ulong confirmed)
    {
        _zeroed.UnionWith(_punched);
        _punched.Clear();
        bool compressed = false;
        bool due = false;
        lock (_cache.Gate)
        {
            foreach (PendingRemoval pending in state.Pending)
            {
                due |= MayGo(pending, confirmed);
                compressed |= MayGo(pending, confirmed) && pending.Removal.Kind == RemovalKind.Compressed;
            }
        }

        if (!due)
            return;
        state.Epoch.Synchronize(); // I6
        if (compressed)
            state.Compressed.Clear();

        // Nobody else changes the list; others look at it under the gate (LeakCollector).
        for (int i = 0; i < state.Pending.Count; i++)
        {
            if (MayGo(state.Pending[i], confirmed))
                GiveUp(i);
        }

        lock (_cache.Gate)
            state.Pending.RemoveAll(pending => pending.Removal.Length == 0);
    }

    // While leaks are being counted, metadata blocks stay (LeakCollector, L3).
    private bool MayGo(in PendingRemoval pending, ulong confirmed) =>
        pending.Sequence <= confirmed && (pending.Removal.Kind != RemovalKind.Metadata || state.Refcounts.Touched is null);

    /// <summary>Does what can be done now with one of the list, a page of counts at a time. What is done leaves it, so that a failure keeps
    /// the rest and nothing is lowered twice (I2).</summary>
    private void GiveUp(int index)
    {
        while (state.Pending[index].Removal is { Length: > 0 } removal && GiveUpOnPage(removal) is { } left)
        {
            lock (_cache.Gate)
                state.Pending[index] = state.Pending[index] with { Removal = left };
        }
    }

    /// <summary>Gives up the first clusters of a removal, those on one page of counts. Null where some wait for a sync first.</summary>
    private Removal? GiveUpOnPage(Removal removal)
    {
        Refcounts counts = state.Refcounts;
        long first = removal.Offset >> _clusterBits;
        long end = Math.Min((removal.Offset + removal.Length) >> _clusterBits, counts.PageEnd(first));
        using PinnedPages pins = new(_cache);
        MetadataPage page = pins.Add(counts.PageOffset(first));
        List<ClusterRun> last = _references.FindLast(page, first, end);
        if (Punch(last, removal.Kind))
            return null;
        lock (_cache.Gate)
        {
            _references.Lower(page, first, end, removal.Kind);
            foreach (ClusterRun run in last)
                Free(run, removal.Kind);
        }

        long done = (end << _clusterBits) - removal.Offset;
        return removal with { Offset = removal.Offset + done, Length = removal.Length - done };
    }

    /// <summary>Punches the clusters that are not known to be zero. Whether there were any, or some wait for their sync.</summary>
    private bool Punch(List<ClusterRun> runs, RemovalKind kind)
    {
        bool waits = false;
        foreach (ClusterRun run in runs)
        {
            long from = -1;
            for (long cluster = run.First; cluster <= run.End; cluster++)
            {
                bool wanted = cluster < run.End && !_zeroed.Contains(cluster) && !_punched.Contains(cluster);
                waits |= cluster < run.End && !_zeroed.Contains(cluster);
                if (wanted && from < 0)
                    from = cluster;
                if (wanted || from < 0)
                    continue;
                PunchRun(from, cluster - from, kind);
                from = -1;
            }
        }

        return waits;
    }

    private void PunchRun(long first, long count, RemovalKind kind)
    {
        if (kind == RemovalKind.Data)
            state.Shared.TellFreed([new ClusterRun(first, count, ReadsAsZero: false)], _clusterBits);
        for (long cluster = first; cluster < first + count; cluster++)
        {
            // What was logged must not be written home over the hole, nor by a replay over what comes there next (J9).
            if (file.Drop(cluster << _clusterBits, 1L << _clusterBits))
                _logged.Add(cluster);
        }

        bool isHole = true;
        try
        {
            file.Discard(first << _clusterBits, count << _clusterBits);
        }
        catch (StorageException exception) when (exception.IsOutOfSpace)
        {
            isHole = false; // the host gets its space back when the run is used again
        }

        for (long cluster = first; cluster < first + count; cluster++)
        {
            _punched.Add(cluster);
            if (!isHole)
                _filled.Add(cluster);
        }
    }

    // Under the gate.
    private void Free(ClusterRun run, RemovalKind kind)
    {
        if (kind == RemovalKind.Metadata)
            _cache.Drop(run.First << _clusterBits, run.Count << _clusterBits);
        bool readsAsZero = true;
        for (long cluster = run.First; cluster < run.End; cluster++)
        {
            _zeroed.Remove(cluster);
            readsAsZero &= !_filled.Remove(cluster);
            if (_logged.Remove(cluster))
                Revokes.Add(new JournalRange(cluster << _clusterBits, 1L << _clusterBits));
        }

        state.Metadata!.Remove(run.First, run.Count);
        state.Allocator!.Free(run with { ReadsAsZero = readsAsZero });
    }
}
