// Which host bytes must not change now, and which the next record must list (J4, J5).
//
// W1. A range that is written to reserved space, or under a new table, is noted before its mapping is published; the freeze takes all
//     that is noted in the same step under the gate in which it takes the mappings.
// W2. A range that a record lists does not change from the freeze of that record on until something other than the record says that its
//     sync returned. Who wants to change it commits first.
// W3. The freeze is followed by a wait for everyone inside the epoch: whoever noted a range or passed the guard before has written by
//     then, and only then are checksums taken, or is the data synced that is not listed (J8).
//
// What was zero on stable storage before, and is not written before its mapping is published, is not noted: should the record count
// without a later write to such space, the guest reads the zeros that it read before.
using QcowFs.Images.Engine;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>What a commit found noted.</summary>
/// <param name="Ranges">Sorted, apart from each other. Empty where too much was noted.</param>
/// <param name="IsLarge">So much was noted that the data is to be synced first instead (J8).</param>
internal readonly record struct NotedRanges(JournalRange[] Ranges, bool IsLarge);

/// <summary>Notes and guards host ranges. Thread-safe; its lock is taken under the gate and takes none.</summary>
internal sealed class WriteGuard : IWriteGuard
{
    // J8, and what a record can hold.
    private const long LargeBytes = 1 << 20;
    private const int MostRanges = 2048;

    private readonly Lock _lock = new();
    private readonly int _mostRanges;
    private readonly Func<bool> _log;
    private List<JournalRange> _noted = [];
    private long _notedBytes;
    private bool _large;
    private JournalRange[] _listed = [];
    private JournalRange[] _unconfirmed = [];
    private volatile bool _active;
    private volatile bool _guards;

    /// <param name="maxRecordBytes">Bytes of the largest record.</param>
    /// <param name="log">Logs the caller's changes of the mapping (J11); false where a commit must.</param>
    public WriteGuard(int maxRecordBytes, Func<bool> log)
    {
        _mostRanges = Math.Min(MostRanges, maxRecordBytes / 4 / JournalRecordHeader.CheckSize);
        _log = log;
    }

    /// <summary>Data in a file of its own is not listed (J8).</summary>
    public required bool ListsData { get; init; }

    /// <summary>Whether there is a journal now.</summary>
    public bool Active
    {
        get => _active;
        set => _active = value;
    }

    /// <summary>Whether ranges are guarded that a commit would set free.</summary>
    public bool HasUnconfirmed => _guards;

    public bool TryOverwrite(long host, long length)
    {
        if (!_guards)
            return true;
        lock (_lock)
            return !Overlaps(_listed, host, length) && !Overlaps(_unconfirmed, host, length);
    }

    public void NoteFresh(long host, long length)
    {
        if (!_active)
            return;
        lock (_lock)
        {
            if (_large)
                return;
            _notedBytes += length;
            if (_noted.Count > 0 && _noted[^1].Offset + _noted[^1].Length == host)
                _noted[^1] = _noted[^1] with { Length = _noted[^1].Length + length };
            else
                _noted.Add(new JournalRange(host, length));
            if (_notedBytes <= LargeBytes && _noted.Count <= _mostRanges)
                return;
            _large = true;
            _noted.Clear();
        }
    }

    public bool TryLogChanges() => !_active || _log();

    /// <summary>Takes what is noted, which is guarded from here on (W2). Call under the gate.</summary>
    public NotedRanges Freeze()
    {
        lock (_lock)
        {
            NotedRanges taken = new(Merge(_noted), _large);
            _listed = taken.Ranges;
            (_noted, _notedBytes, _large) = ([], 0, false);
            _guards = _listed.Length + _unconfirmed.Length > 0;
            return taken;
        }
    }

    /// <summary>The record that lists what was frozen is synced, and says that the one before it was.</summary>
    public void Synced()
    {
        lock (_lock)
        {
            _unconfirmed = _listed;
            _listed = [];
            _guards = _unconfirmed.Length > 0;
        }
    }

    /// <summary>Gives back what was frozen: no record was written.</summary>
    public void Restore(NotedRanges taken)
    {
        lock (_lock)
        {
            _large |= taken.IsLarge;
            _noted.AddRange(taken.Ranges);
            foreach (JournalRange range in taken.Ranges)
                _notedBytes += range.Length;
            _listed = [];
            _guards = _unconfirmed.Length > 0;
        }
    }

    /// <summary>Everything was confirmed.</summary>
    public void Confirmed()
    {
        lock (_lock)
        {
            _unconfirmed = [];
            _guards = _listed.Length > 0;
        }
    }

    private static JournalRange[] Merge(List<JournalRange> ranges)
    {
        ranges.Sort(static (a, b) => a.Offset.CompareTo(b.Offset));
        List<JournalRange> merged = new(ranges.Count);
        foreach (JournalRange range in ranges)
        {
            if (merged.Count > 0 && merged[^1].Offset + merged[^1].Length >= range.Offset)
            {
                long end = Math.Max(merged[^1].Offset + merged[^1].Length, range.Offset + range.Length);
                merged[^1] = merged[^1] with { Length = end - merged[^1].Offset };
            }
            else
            {
                merged.Add(range);
            }
        }

        return [.. merged];
    }

    private static bool Overlaps(JournalRange[] sorted, long offset, long length)
    {
        int low = 0;
        for (int high = sorted.Length; low < high;)
        {
            int middle = (low + high) / 2;
            if (sorted[middle].Offset + sorted[middle].Length <= offset)
                low = middle + 1;
            else
                high = middle;
        }

        return low < sorted.Length && sorted[low].Offset < offset + length;
    }
}
