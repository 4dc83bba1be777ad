// Counters of what was done through one image since it was opened. Feeds the unmount receipt and stats.json.
namespace QcowFs.Images;

/// <summary>Live counters of one open image. Thread-safe; reading is not atomic across members.</summary>
/// <param name="metadataReads">Gives <see cref="MetadataReads"/>; null: the format counts none.</param>
public sealed class ImageStatistics(Func<long>? metadataReads = null)
{
    private long _bytesRead;
    private long _bytesWritten;
    private long _bytesDiscarded;
    private long _syncs;
    private long _commits;
    private long _blocksAllocated;
    private long _bytesCopied;
    private long _bytesShared;

    /// <summary>Guest bytes read.</summary>
    public long BytesRead => Interlocked.Read(ref _bytesRead);

    /// <summary>Guest bytes written.</summary>
    public long BytesWritten => Interlocked.Read(ref _bytesWritten);

    /// <summary>Guest bytes discarded.</summary>
    public long BytesDiscarded => Interlocked.Read(ref _bytesDiscarded);

    /// <summary>Syncs asked for by the guest or by a close.</summary>
    public long Syncs => Interlocked.Read(ref _syncs);

    /// <summary>Metadata commits that wrote something.</summary>
    public long Commits => Interlocked.Read(ref _commits);

    /// <summary>Blocks newly allocated for guest data.</summary>
    public long BlocksAllocated => Interlocked.Read(ref _blocksAllocated);

    /// <summary>Bytes copied or zero-filled around partial writes to fill whole blocks.</summary>
    public long BytesCopied => Interlocked.Read(ref _bytesCopied);

    /// <summary>Times that metadata was not in the cache and had to be read from the file.</summary>
    public long MetadataReads => metadataReads?.Invoke() ?? 0;

    /// <summary>Guest bytes that were not stored because an equal block was there.</summary>
    public long BytesShared => Interlocked.Read(ref _bytesShared);

    /// <summary>Counters of deduplication, or null where it is off.</summary>
    public DedupStatistics? Dedup { get; internal set; }

    internal void AddShared(long bytes) => Interlocked.Add(ref _bytesShared, bytes);

    internal void AddRead(long bytes) => Interlocked.Add(ref _bytesRead, bytes);

    internal void AddWritten(long bytes) => Interlocked.Add(ref _bytesWritten, bytes);

    internal void AddDiscarded(long bytes) => Interlocked.Add(ref _bytesDiscarded, bytes);

    internal void AddSync() => Interlocked.Increment(ref _syncs);

    internal void AddCommit() => Interlocked.Increment(ref _commits);

    internal void AddAllocated(long blocks) => Interlocked.Add(ref _blocksAllocated, blocks);

    internal void AddCopied(long bytes) => Interlocked.Add(ref _bytesCopied, bytes);
}
