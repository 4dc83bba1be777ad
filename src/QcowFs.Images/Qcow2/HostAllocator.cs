// Hands out host clusters of one qcow2 file in constant time, whatever its size.
//
// A1. A cluster is handed out at most once until it is freed. Clusters come from three places: the free runs, the tail (never used,
//     past the end of the file as it was at the open), and, a page of reference counts at a time, the clusters that were free at
//     the open. The scan moves forward only, so it finds each of those once; a cluster freed ahead of it is left to it.
// A2. A run that is marked as zero reads as zeros: it was never written, or was punched before it was freed (I3).
// A3. The tail is handed out only as far as host space has been reserved for it, so that ENOSPC reaches the guest here and not a
//     commit (I7).
//     Before that, the tail skips what a crash may have left counted past the end of the file.
// A4. Host space is reserved in growing chunks and what was not used is given back at the end of use.
// A5. The file is cut only where a session knows that nothing is: past the end that it found, and what it gave up and punched (A2).
//     Clusters that merely have no count stay: in a damaged image they may hold the guest's data. After a crash, when all references of
//     the image were counted, those are known to be unused too that had neither a count nor a reference (KnowUnused).
// A6. Clusters that someone takes ahead, to write them with zeros (Journal/SpaceAhead), are neither free nor the tail until they are
//     written. Then they are handed out before all others. Taken ahead is what reads as zeros, and the tail only where nothing else
//     is free, so that the file does not grow past free space.
//
// Locks: the allocator's own is the last in the order, held without I/O. Reserving more holds the growth lock instead.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>A run of consecutive host clusters.</summary>
/// <param name="First">Number of the first cluster.</param>
/// <param name="Count">How many.</param>
/// <param name="ReadsAsZero">All of it reads as zeros now.</param>
internal readonly record struct ClusterRun(long First, long Count, bool ReadsAsZero)
{
    /// <summary>One past the last cluster.</summary>
    public long End => First + Count;
}

/// <summary>Finds the free clusters in the next part of the file that was not looked at yet.</summary>
internal interface IFreeClusterSource
{
    /// <summary>Reports free runs from <paramref name="first"/> on, below <paramref name="limit"/>, and where to go on: at least
    /// one cluster further. Runs <paramref name="accept"/> under the lock that guards reference counts.</summary>
    void FindFree(long first, long limit, Action<IReadOnlyList<ClusterRun>, long> accept);

    /// <summary>One past the last cluster from <paramref name="first"/> on that has references, else <paramref name="first"/>.</summary>
    long EndOfReferences(long first);
}

/// <summary>The free space of one image file. Thread-safe.</summary>
internal sealed class HostAllocator
{
    private const long FirstChunk = 1L << 20;
    private const long LargestChunk = 64L << 20;
    private const int ScansPerRequest = 4;
    private const int RunsProbed = 8;
    private const int AcceptableRun = 8;

    // Ours: bounds the memory for a badly fragmented image; runs beyond it stay free on disk and are found at the next open.
    private const int MaxRuns = 1 << 18;

    private readonly IStorage _file;
    private readonly IFreeClusterSource _source;
    private readonly int _clusterBits;
    private readonly Lock _lock = new();
    private readonly Lock _growth = new();
    private readonly SortedSet<long> _order = [];
    private readonly Dictionary<long, ClusterRun> _byFirst = [];
    private readonly Dictionary<long, long> _firstByEnd = [];
    private readonly LinkedList<ClusterRun> _ready = new();
    private long _readyClusters;
    private long _handedOut;
    private readonly long _scanLimit;
    private long _scanned;
    private long _tail;
    private long _reservedEnd;
    private long _chunk = FirstChunk;
    private bool _tailChecked;
    private volatile bool _starved;
    private long _unusedFrom = long.MaxValue; // A5; guarded by the allocator's lock

    public HostAllocator(IStorage file, int clusterBits, IFreeClusterSource source)
    {
        _file = file;
        _source = source;
        _clusterBits = clusterBits;
        long size = 1L << clusterBits;
        _tail = (file.Length + size - 1) >> clusterBits;
        _reservedEnd = _tail;
        _scanLimit = _tail;
    }

    /// <summary>A request found no space since this was last cleared.</summary>
    public bool IsStarved
    {
        get => _starved;
        set => _starved = value;
    }

    /// <summary>Clusters that <see cref="Take"/> gave out so far.</summary>
    public long HandedOut => Volatile.Read(ref _handedOut);

    /// <summary>Clusters that are written with zeros and wait to be handed out.</summary>
    public long ReadyClusters => Volatile.Read(ref _readyClusters);

    /// <summary>One past the last cluster that was ever in the file or handed out.</summary>
    public long Tail => Volatile.Read(ref _tail);

    /// <summary>What can be handed out again, in ascending order. For tests, while no other thread allocates.</summary>
    internal IEnumerable<ClusterRun> FreeRuns => _order.Select(first => _byFirst[first]);

    /// <summary>The clusters whose counts have not been looked at yet: from the first up to the second. For tests.</summary>
    internal (long First, long End) NotScanned => (_scanned, _scanLimit);

    /// <summary>Hands out a run of 1 to <paramref name="wanted"/> clusters. Throws <see cref="StorageException"/> with ENOSPC when
    /// the host is full.</summary>
    public ClusterRun Take(long wanted)
    {
        ClusterRun run = TakeAny(wanted);
        Interlocked.Add(ref _handedOut, run.Count);
        return run;
    }

    private ClusterRun TakeAny(long wanted)
    {
        for (int scans = 0; ; scans++)
        {
            lock (_lock)
            {
                if (_readyClusters > 0)
                    return TakeReady(wanted);
                if (TryTakeFree(wanted, anySize: false) is { } run)
                    return run;
                if (_tail < _reservedEnd)
                    return TakeTail(Math.Min(wanted, _reservedEnd - _tail));
            }

            if (scans < ScansPerRequest && Scan())
                continue;
            if (TryReserve(wanted, out StorageException? full))
                continue;
            lock (_lock)
            {
                if (TryTakeFree(wanted, anySize: true) is { } run)
                    return run;
            }

            if (!Scan())
                throw full!;
        }
    }

    /// <summary>Hands out consecutive clusters at the tail, as a table needs them.</summary>
    public ClusterRun TakeContiguous(long count)
    {
        while (true)
        {
            lock (_lock)
            {
                if (_tail + count <= _reservedEnd)
                    return TakeTail(count);
            }

            if (!TryReserve(count, out StorageException? full, exactly: true))
                throw full!;
        }
    }

    /// <summary>Hands out a run of up to <paramref name="count"/> clusters that read as zeros, to be written with zeros (A6). Null where
    /// nothing is at hand.</summary>
    public ClusterRun? TakeAhead(long count)
    {
        for (int scans = 0; scans < ScansPerRequest; scans++)
        {
            lock (_lock)
            {
                foreach (long first in _order.Take(RunsProbed))
                {
                    ClusterRun run = _byFirst[first];
                    if (!run.ReadsAsZero)
                        continue;
                    Remove(run);
                    if (run.Count > count)
                        Add(run with { First = run.First + count, Count = run.Count - count });
                    return run with { Count = Math.Min(run.Count, count) };
                }

                if (_order.Count > 0)
                    return null;
                if (_scanned >= _scanLimit)
                    return _tail < _reservedEnd ? TakeTail(Math.Min(count, _reservedEnd - _tail)) : null;
            }

            _ = Scan();
        }

        return null;
    }

    /// <summary>Takes over what <see cref="TakeAhead"/> gave, written.</summary>
    public void AddReady(ClusterRun run)
    {
        lock (_lock)
        {
            _ready.AddLast(run);
            _readyClusters += run.Count;
        }
    }

    /// <summary>Hands out all that is written with zeros.</summary>
    public IReadOnlyList<ClusterRun> TakeReady()
    {
        lock (_lock)
        {
            ClusterRun[] runs = [.. _ready];
            _ready.Clear();
            _readyClusters = 0;
            return runs;
        }
    }

    /// <summary>Takes clusters back. Call under the lock that guards reference counts.</summary>
    public void Free(ClusterRun run)
    {
        lock (_lock)
        {
            // Leaks of a crash can lie past the end of the file. As long as the tail may still be there, it hands them out (A1).
            if (!_tailChecked)
                run = run with { Count = Math.Min(run.End, _tail) - run.First };

            // The part ahead of the scan is left to it (A1).
            if (run.First < _scanned)
                Insert(run with { Count = Math.Min(run.End, _scanned) - run.First });
            if (run.End > _scanLimit)
            {
                long first = Math.Max(run.First, _scanLimit);
                Insert(run with { First = first, Count = run.End - first });
            }
        }
    }

    /// <summary>Notes that no cluster from one on had a count or a reference when all were counted, but for those that this session
    /// handed out (A5).</summary>
    public void KnowUnused(long first)
    {
        lock (_lock)
            _unusedFrom = first;
    }

    /// <summary>Where the file may end: one past the last cluster that is in use, as far as what is known to be unused reaches to the tail
    /// (A5).</summary>
    public long UsedEnd()
    {
        lock (_lock)
        {
            long end = _tail;
            while (true)
            {
                long down = UnusedBefore(end);
                if (down == end)
                    return end;
                end = down;
            }
        }
    }

    // One step of it: down to the start of the free run that ends here, or of what was not looked at yet, as far as it may be cut.
    private long UnusedBefore(long end)
    {
        if (_firstByEnd.TryGetValue(end, out long first))
        {
            if (_byFirst[first].ReadsAsZero || first >= _scanLimit)
                return first;
        }
        else if (end > _scanned && end <= _scanLimit)
            first = _scanned; // nothing of it was handed out
        else
            return end;
        return Math.Max(first, Math.Min(Math.Min(end, _scanLimit), _unusedFrom));
    }

    private ClusterRun TakeReady(long wanted)
    {
        ClusterRun run = _ready.First!.Value;
        ClusterRun taken = run with { Count = Math.Min(wanted, run.Count) };
        _readyClusters -= taken.Count;
        _ready.RemoveFirst();
        if (taken.Count < run.Count)
            _ready.AddFirst(run with { First = taken.End, Count = run.Count - taken.Count });
        return taken;
    }

    private ClusterRun TakeTail(long count)
    {
        ClusterRun run = new(_tail, count, ReadsAsZero: true);
        Volatile.Write(ref _tail, _tail + count);
        return run;
    }

    /// <summary>Takes from the free runs, the lowest first. A request for many clusters looks at a few runs for one that keeps
    /// them together, and rather grows the file than take crumbs.</summary>
    private ClusterRun? TryTakeFree(long wanted, bool anySize)
    {
        long least = anySize ? 1 : Math.Min(wanted, AcceptableRun);
        long best = -1;
        int probed = 0;
        foreach (long first in _order)
        {
            long count = _byFirst[first].Count;
            if (count >= least && (best < 0 || count > _byFirst[best].Count))
                best = first;
            if (count >= wanted || ++probed >= RunsProbed)
                break;
        }

        if (best < 0)
            return null;
        ClusterRun run = _byFirst[best];
        Remove(run);
        if (run.Count <= wanted)
            return run;
        Add(run with { First = run.First + wanted, Count = run.Count - wanted });
        return run with { Count = wanted };
    }

    private bool Scan()
    {
        long from;
        lock (_lock)
        {
            from = _scanned;
            if (from >= _scanLimit)
                return false;
        }

        _source.FindFree(from, _scanLimit, (runs, next) =>
        {
            lock (_lock)
            {
                // Another thread may have scanned the same part meanwhile.
                if (_scanned != from)
                    return;
                foreach (ClusterRun run in runs)
                    Insert(run);
                _scanned = next;
            }
        });
        return true;
    }

    private bool TryReserve(long wanted, out StorageException? full, bool exactly = false)
    {
        full = null;
        lock (_growth)
        {
            CheckTail();
            long end;
            lock (_lock)
            {
                end = _reservedEnd;
                if (exactly ? _tail + wanted <= end : _tail < end)
                    return true;
                if (exactly)
                    wanted = _tail + wanted - end;
            }

            long chunk = Math.Max(wanted, _chunk >> _clusterBits);
            // Shifted further, or cut to the bits that an entry has, the offset would be that of another cluster.
            if (end + chunk > Qcow2Limits.MaxHostOffset >> _clusterBits)
                throw new StorageException(Errno.EFBIG, "grow the image", _file.Name);
            while (true)
            {
                try
                {
                    _file.Reserve(end << _clusterBits, chunk << _clusterBits);
                    break;
                }
                catch (StorageException exception) when (exception.IsOutOfSpace)
                {
                    full = exception;
                    long least = exactly ? wanted : 1;
                    _starved = true;
                    if (chunk <= least)
                        return false;
                    chunk = Math.Max(least, chunk / 4);
                }
            }

            _chunk = Math.Min(LargestChunk, _chunk * 2);
            lock (_lock)
                _reservedEnd = end + chunk;
            return true;
        }
    }

    /// <summary>Moves the tail past clusters that are counted although the file ends before them: the file's length was lost in a
    /// crash, its counts were not. Under the growth lock, before the tail is first used.</summary>
    private void CheckTail()
    {
        if (_tailChecked)
            return;
        long end = _source.EndOfReferences(_tail);
        lock (_lock)
        {
            _reservedEnd = end;
            Volatile.Write(ref _tail, end);
            _tailChecked = true;
        }
    }

    private void Insert(ClusterRun run)
    {
        if (run.Count <= 0)
            return;
        if (_firstByEnd.TryGetValue(run.First, out long before) && _byFirst[before].ReadsAsZero == run.ReadsAsZero)
        {
            ClusterRun left = _byFirst[before];
            Remove(left);
            run = left with { Count = left.Count + run.Count };
        }

        if (_byFirst.TryGetValue(run.End, out ClusterRun right) && right.ReadsAsZero == run.ReadsAsZero)
        {
            Remove(right);
            run = run with { Count = run.Count + right.Count };
        }

        if (_order.Count < MaxRuns)
            Add(run);
    }

    private void Add(ClusterRun run)
    {
        bool isNew = _byFirst.TryAdd(run.First, run);
        Invariant.Require(isNew, "A1: a cluster is freed once");
        _order.Add(run.First);
        _firstByEnd.Add(run.End, run.First);
    }

    private void Remove(ClusterRun run)
    {
        _byFirst.Remove(run.First);
        _order.Remove(run.First);
        _firstByEnd.Remove(run.End);
    }
}
