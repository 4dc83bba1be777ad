// What was done to an image over all the times that a mount had it open.
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>Sums of counters. A snapshot of them is immutable.</summary>
internal readonly record struct ImageTotals
{
    public long BytesRead { get; init; }

    public long BytesWritten { get; init; }

    public long BytesDiscarded { get; init; }

    public long BytesCopied { get; init; }

    public long BlocksAllocated { get; init; }

    public long BytesShared { get; init; }

    public long Syncs { get; init; }

    public long Commits { get; init; }

    public long MetadataReads { get; init; }

    /// <summary>These and what an open disk has counted.</summary>
    public ImageTotals Plus(ImageStatistics done) => new()
    {
        BytesRead = BytesRead + done.BytesRead,
        BytesWritten = BytesWritten + done.BytesWritten,
        BytesDiscarded = BytesDiscarded + done.BytesDiscarded,
        BytesCopied = BytesCopied + done.BytesCopied,
        BlocksAllocated = BlocksAllocated + done.BlocksAllocated,
        BytesShared = BytesShared + done.BytesShared,
        Syncs = Syncs + done.Syncs,
        Commits = Commits + done.Commits,
        MetadataReads = MetadataReads + done.MetadataReads,
    };
}
