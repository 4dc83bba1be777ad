// What the block map and the commit of one qcow2 image share.
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>What a removed mapping referred to.</summary>
internal enum RemovalKind
{
    /// <summary>Clusters of guest data, each counted once.</summary>
    Data,

    /// <summary>A metadata block: its cached pages are dropped before it is free (I3).</summary>
    Metadata,

    /// <summary>The clusters that a compressed stream touches.</summary>
    Compressed,
}

/// <summary>A reference that the maps no longer hold, to be given up once that is durable.</summary>
/// <param name="Offset">Host byte offset of the first cluster.</param>
/// <param name="Length">Bytes, whole clusters.</param>
/// <param name="Kind">What it was.</param>
internal readonly record struct Removal(long Offset, long Length, RemovalKind Kind);

/// <summary>A removal that a journal record committed.</summary>
/// <param name="Removal">What to give up.</param>
/// <param name="Sequence">The record.</param>
internal readonly record struct PendingRemoval(Removal Removal, ulong Sequence);

/// <summary>The shared state of one open qcow2 image. Members say which lock guards them.</summary>
internal sealed class Qcow2State
{
    /// <summary>Ours: so many removals make a writer commit, which bounds the list's memory.</summary>
    public const int RemovalLimit = 1 << 16;

    private readonly List<PendingRemoval> _pending = [];
    private List<Removal> _removals = [];
    private volatile bool _fileDirty;
    private volatile bool _tablesDirty;
    private volatile int _frozenRemovals;

    /// <summary>The header as it was at the open.</summary>
    public required Qcow2Header Header { get; init; }

    /// <summary>The image file, latched.</summary>
    public required IStorage File { get; init; }

    /// <summary>The file with guest data, latched; the image file unless there is an external one.</summary>
    public required IStorage Data { get; init; }

    public required MetadataCache Cache { get; init; }

    /// <summary>The active L1 table. Changed under the gate.</summary>
    public required ResidentTable L1 { get; init; }

    public required Refcounts Refcounts { get; init; }

    public required CompressedBlockCache Compressed { get; init; }

    public required ReaderEpoch Epoch { get; init; }

    /// <summary>What is known about clusters with several references.</summary>
    public required SharedClusters Shared { get; init; }

    public required FailureLatch Latch { get; init; }

    /// <summary>Where the structures are; null where the image is read-only.</summary>
    public MetadataMap? Metadata { get; init; }

    /// <summary>Null where the image is read-only.</summary>
    public HostAllocator? Allocator { get; init; }

    /// <summary>Keeps bitmaps true; null where there are none, or none can be kept.</summary>
    public BitmapTracking? Bitmaps { get; set; }

    /// <summary>Where compressed clusters are put; null where none are written.</summary>
    public CompressedSpace? CompressedSpace { get; set; }

    /// <summary>Clusters that the file has, the last one possibly in part.</summary>
    public long FileClusters => Allocator?.Tail ?? FileClustersAtOpen;

    public required long FileClustersAtOpen { get; init; }

    /// <summary>The image file holds bytes, written outside the cache, that a link may soon depend on (M5).</summary>
    public bool FileDirty
    {
        get => _fileDirty;
        set => _fileDirty = value;
    }

    /// <summary>Guest data lives in a file of its own.</summary>
    public required bool HasExternalData { get; init; }

    /// <summary>Where the journal is, while there is one. Set under the gate.</summary>
    public JournalArea? JournalArea { get; set; }

    /// <summary>What must know of bytes that a new mapping will show; null without a journal.</summary>
    public IWriteGuard? Guard { get; set; }

    /// <summary>Committed removals that may not take effect yet (J6). Guarded by the gate.</summary>
    public List<PendingRemoval> Pending => _pending;

    /// <summary>Removals that no commit has taken yet.</summary>
    public int RemovalCount => _removals.Count;

    /// <summary>The removals that no commit has taken yet. For tests, while no other thread uses the image.</summary>
    internal IReadOnlyList<Removal> Removals => _removals;

    /// <summary>Whether a commit has anything to do. Exact under the gate, else a hint that never misses what the caller's own
    /// earlier calls left.</summary>
    public bool IsDirty => _fileDirty || _tablesDirty || _removals.Count > 0 || _frozenRemovals > 0 || Cache.DirtyCount > 0;

    /// <summary>Notes a removal, merged with the one before where it continues it. Call under the gate.</summary>
    public void Remove(Removal removal)
    {
        Touch(removal);
        if (_removals.Count > 0)
        {
            Removal last = _removals[^1];
            if (last.Kind == removal.Kind && removal.Kind != RemovalKind.Compressed && last.Offset + last.Length == removal.Offset)
            {
                _removals[^1] = last with { Length = last.Length + removal.Length };
                return;
            }
        }

        _removals.Add(removal);
    }

    /// <summary>Begins to note which clusters change, or ends it. What waits to be given up counts as changed: its reference is, or will
    /// be, gone from the disk while its count is not. Call under the gate.</summary>
    public void Watch(TouchedClusters? touched)
    {
        Refcounts.Touched = touched;
        TouchAll(_removals);
        foreach (PendingRemoval pending in _pending)
            Touch(pending.Removal);
    }

    /// <summary>Keeps removals that are committed but not confirmed. Call under the gate.</summary>
    public void AddPending(List<Removal> removals, ulong sequence)
    {
        TouchAll(removals); // as in ThawRemovals
        foreach (Removal removal in removals)
            _pending.Add(new PendingRemoval(removal, sequence));
        removals.Clear();
    }

    /// <summary>Notes bytes of the image file, written outside the cache, that a link may soon depend on.</summary>
    public void NoteBase(long offset, long length)
    {
        FileDirty = true;
        Guard?.NoteFresh(offset, length);
    }

    /// <summary>Notes that a resident table changed. Call under the gate.</summary>
    public void NoteTableChange() => _tablesDirty = true;

    /// <summary>Takes the removals for a commit. Call under the gate.</summary>
    public List<Removal> FreezeRemovals()
    {
        List<Removal> taken = _removals;
        _removals = [];
        _frozenRemovals = taken.Count;
        _tablesDirty = false;
        return taken;
    }

    /// <summary>Gives back removals that still wait for a commit, or says that none is left. Call under the gate.</summary>
    public void ThawRemovals(List<Removal> left, bool tablesDirty)
    {
        TouchAll(left); // as in Watch, for what a commit had taken when the watch began
        _removals.AddRange(left);
        _frozenRemovals = 0;
        _tablesDirty |= tablesDirty;
    }

    private void TouchAll(List<Removal> removals)
    {
        foreach (Removal removal in removals)
            Touch(removal);
    }

    private void Touch(Removal removal) =>
        Refcounts.Touched?.Touch(removal.Offset >> Header.ClusterBits, (removal.Offset + removal.Length) >> Header.ClusterBits);
}
