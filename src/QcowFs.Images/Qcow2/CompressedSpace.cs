// Packs the streams of compressed clusters into host clusters, one behind the other.
//
// K1. No write touches a sector that holds bytes of a committed stream: no stream is under way while a commit freezes, and the first one
//     after that begins in a fresh sector.
// K2. Every host cluster that a stream touches counts it once. The counts are raised when the stream's place is reserved, before any of
//     it is written; so a commit that gives up another stream of the cluster cannot take the cluster away. A crash before the mapping
//     leaves a leak (I2). Since a commit waits for streams under way (K1), who counts references after a commit finds the mapping of
//     every count that was raised before it.
// K3. A host cluster whose last reference is about to be given up takes no more streams.
// K4. A host cluster takes no more streams than its count can hold.
//
// Locks: a stream under way holds _streams shared from its reservation to its end, a commit exclusively for its freeze; then the
// reservation's own, held across I/O; then the structure lock and the gate. What is in hand is guarded by the gate.
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Qcow2;

/// <summary>Host space for compressed clusters of one image. Thread-safe.</summary>
/// <param name="state">The image.</param>
/// <param name="space">Supplies host clusters.</param>
internal sealed class CompressedSpace(Qcow2State state, Qcow2Space space) : IDisposable
{
    private const int SectorSize = 512;

    // Clusters are taken in runs of so many bytes, so that streams can lie across their borders.
    private const long RunBytes = 1 << 20;

    private readonly ReaderWriterLockSlim _streams = new();
    private readonly Lock _reserving = new();
    private readonly MetadataCache _cache = state.Cache;
    private readonly int _clusterBits = state.Header.ClusterBits;
    private readonly long _clusterMask = state.Header.ClusterSize - 1L;
    private long _next;
    private long _end;
    private ulong _inCluster;
    private bool _readsAsZero;

    /// <summary>The bytes in hand, from the first to one past the last. For tests, while no other thread uses the image.</summary>
    internal (long First, long End) InHand => (_next, _end);

    /// <summary>Reserves bytes for a stream and counts it. False: the format cannot name the place. Every reservation ends with
    /// <see cref="Complete"/>, by the same thread.</summary>
    public bool TryReserve(int length, out long host)
    {
        _streams.EnterReadLock();
        bool reserved = false;
        try
        {
            lock (_reserving)
                reserved = TryTake(length, out host);
            return reserved;
        }
        finally
        {
            if (!reserved)
                _streams.ExitReadLock();
        }
    }

    /// <summary>Ends a reservation: its stream is written and mapped, or was given up.</summary>
    public void Complete() => _streams.ExitReadLock();

    /// <summary>Runs a freeze while no stream is under way (K1).</summary>
    public T WithoutStreams<T>(Func<T> freeze)
    {
        _streams.EnterWriteLock();
        try
        {
            lock (_cache.Gate)
            {
                _next = (_next + SectorSize - 1) & -SectorSize;
                LeaveFull();
            }

            return freeze();
        }
        finally
        {
            _streams.ExitWriteLock();
        }
    }

    /// <summary>Says that the last reference to a cluster is being given up (K3). Call under the gate.</summary>
    public void Leave(long cluster)
    {
        if ((_next & _clusterMask) != 0 && _next >> _clusterBits == cluster)
            SkipToNextCluster();
    }

    /// <summary>Gives back the clusters in hand that hold no stream. Call under the gate.</summary>
    public void Release()
    {
        long first = (_next + _clusterMask) >> _clusterBits;
        long count = (_end >> _clusterBits) - first;
        if (count > 0)
            state.Allocator!.Free(new ClusterRun(first, count, _readsAsZero));
        (_next, _end) = (0, 0);
    }

    public void Dispose() => _streams.Dispose();

    private bool TryTake(int length, out long host)
    {
        while (true)
        {
            lock (_cache.Gate)
                host = Place(length);
            if (host < 0)
            {
                Extend(length);
                continue;
            }

            if (host + length > CompressedDescriptor.OffsetLimit(_clusterBits))
                return false;
            long first = host >> _clusterBits;
            long count = ((host + length - 1) >> _clusterBits) - first + 1;
            using PinnedPages pins = new(_cache);
            for (long cluster = first; cluster < first + count; cluster++)
                pins.Add(state.Refcounts.PageOffset(cluster));
            lock (_cache.Gate)
            {
                // A commit may have made the cluster unusable meanwhile (K3).
                if (Place(length) != host)
                    continue;
                for (int i = 0; i < count; i++)
                    state.Refcounts.Raise(pins[i], first + i); // K2
                Advance(host, length);
                return true;
            }
        }
    }

    /// <summary>Where a stream of so many bytes can begin, or -1. Under the gate.</summary>
    private long Place(int length) => _next + length <= _end ? _next : -1;

    private void Advance(long host, int length)
    {
        _next = host + length;
        bool sameCluster = host >> _clusterBits == (_next - 1) >> _clusterBits;
        _inCluster = sameCluster && (host & _clusterMask) != 0 ? _inCluster + 1 : 1;
        LeaveFull();
    }

    // K4
    private void LeaveFull()
    {
        if ((_next & _clusterMask) != 0 && _inCluster >= state.Refcounts.Max)
            SkipToNextCluster();
    }

    private void SkipToNextCluster() => _next = (_next + _clusterMask) & ~_clusterMask;

    /// <summary>Takes more clusters: behind those in hand where the allocator has those, else elsewhere.</summary>
    private void Extend(int length)
    {
        long wanted = (Math.Max(length, RunBytes) + _clusterMask) >> _clusterBits;
        ClusterRun run = space.TakeCounted(wanted);
        lock (_cache.Gate)
        {
            if (_end > 0 && run.First << _clusterBits == _end)
            {
                _readsAsZero &= run.ReadsAsZero;
            }
            else
            {
                Release();
                _next = run.First << _clusterBits;
                _readsAsZero = run.ReadsAsZero;
            }

            _end = run.End << _clusterBits;
        }
    }
}
