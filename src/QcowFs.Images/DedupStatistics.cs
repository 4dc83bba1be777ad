// Counters of deduplication in one open image.
namespace QcowFs.Images;

/// <summary>Live counters, in blocks. Thread-safe; reading is not atomic across members.</summary>
public sealed class DedupStatistics
{
    private long _hashed;
    private long _shared;
    private long _unchanged;
    private long _stale;
    private long _busy;
    private long _full;
    private long _bypassed;

    /// <summary>Blocks that were hashed and looked up.</summary>
    public long Hashed => Interlocked.Read(ref _hashed);

    /// <summary>Blocks that share the place of an equal one now.</summary>
    public long Shared => Interlocked.Read(ref _shared);

    /// <summary>Blocks that were overwritten with what they held already.</summary>
    public long Unchanged => Interlocked.Read(ref _unchanged);

    /// <summary>Answers of the index that proved wrong: the block had moved or changed.</summary>
    public long Stale => Interlocked.Read(ref _stale);

    /// <summary>Hits given up because their owner was in use at that moment.</summary>
    public long Busy => Interlocked.Read(ref _busy);

    /// <summary>Hits given up because the block could take no more references.</summary>
    public long Full => Interlocked.Read(ref _full);

    /// <summary>Blocks that were not hashed because hardly anything repeated.</summary>
    public long Bypassed => Interlocked.Read(ref _bypassed);

    /// <summary>Whether most blocks are not hashed now, because hardly anything repeated.</summary>
    public bool IsBypassing { get; internal set; }

    /// <summary>Why deduplication has stopped until the next mount, or null.</summary>
    public Func<string?> Paused { get; internal init; } = static () => null;

    /// <summary>Entries of the index.</summary>
    public Func<long> IndexEntries { get; internal init; } = static () => 0;

    /// <summary>Bytes of memory that the index holds.</summary>
    public Func<long> IndexMemory { get; internal init; } = static () => 0;

    internal void AddHashed(long blocks) => Interlocked.Add(ref _hashed, blocks);

    internal void AddShared() => Interlocked.Increment(ref _shared);

    internal void AddUnchanged() => Interlocked.Increment(ref _unchanged);

    internal void AddStale() => Interlocked.Increment(ref _stale);

    internal void AddBusy() => Interlocked.Increment(ref _busy);

    internal void AddFull() => Interlocked.Increment(ref _full);

    internal void AddBypassed(long blocks) => Interlocked.Add(ref _bypassed, blocks);
}
