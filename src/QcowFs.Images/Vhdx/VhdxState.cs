// What the block map of a VHDX image and its commit share.
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>The parts of one open image. Changed under the cache's gate unless a member says otherwise.</summary>
internal sealed class VhdxState
{
    // The freed blocks wait in memory; who finds so many commits first.
    private const int RemovalLimit = 4096;

    private List<Region> _removals = [];
    private int _frozenRemovals;
    private long _grown;
    private long _synced;
    private long _durableLength;

    public required VhdxLayout Layout { get; init; }

    /// <summary>The file, or where it is only read and its log is in use, the view of it.</summary>
    public required IStorage File { get; init; }

    public required MetadataCache Cache { get; init; }

    public required ReaderEpoch Epoch { get; init; }

    public required FailureLatch Latch { get; init; }

    /// <summary>Which space is free, or null where nothing is written.</summary>
    public required VhdxSpace? Space { get; init; }

    public required GuidSource Guids { get; init; }

    /// <summary>Pages changed, or blocks to be freed, since the last commit. A hint outside the gate.</summary>
    public bool IsDirty => Cache.DirtyCount > 0 || RemovalCount > 0;

    /// <summary>Blocks that wait for the commit that makes their removal durable. A hint outside the gate.</summary>
    public int RemovalCount => _removals.Count + _frozenRemovals;

    public bool HasManyRemovals => RemovalCount > RemovalLimit;

    /// <summary>Whether the file became longer since its last sync. Thread-safe.</summary>
    public bool HasGrown => Interlocked.Read(ref _grown) != Interlocked.Read(ref _synced);

    /// <summary>Notes that a block's space is to be freed once its removal is durable.</summary>
    public void Remove(long offset, long length) => _removals.Add(new Region(offset, length));

    /// <summary>Notes that the file became longer. Thread-safe.</summary>
    public void NoteGrowth() => Interlocked.Increment(ref _grown);

    /// <summary>A length of the file that is durable, the last sync's. Set by who opens the image, too.</summary>
    public long DurableLength
    {
        get => Interlocked.Read(ref _durableLength);
        init => _durableLength = value;
    }

    /// <summary>Syncs the file. Called by one thread at a time.</summary>
    public void SyncFile()
    {
        long grown = Interlocked.Read(ref _grown);
        long length = File.Length;
        File.Sync();
        Interlocked.Exchange(ref _synced, grown);
        Interlocked.Exchange(ref _durableLength, length);
    }

    /// <summary>Takes the removals for a commit.</summary>
    public List<Region> FreezeRemovals()
    {
        List<Region> frozen = _removals;
        _removals = [];
        _frozenRemovals = frozen.Count;
        return frozen;
    }

    /// <summary>Ends a commit; what it did not get to waits for the next.</summary>
    public void ThawRemovals(List<Region> left)
    {
        _frozenRemovals = 0;
        _removals.AddRange(left);
    }
}
