// Where clusters live in an add-cow image: each at its own place of the image file, or in the backing file while its bit is not set.
// Publishing a cluster is setting its bit.
using QcowFs.Images.Engine;
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

/// <summary>The block map of one add-cow image.</summary>
/// <param name="bitmap">The bitmap.</param>
/// <param name="commit">Makes it durable.</param>
/// <param name="data">The image file, asked for its holes.</param>
internal sealed class AddCowBlockMap(AddCowBitmap bitmap, AddCowCommit commit, IStorage data) : IBlockMap
{
    private readonly int _clusterBits = bitmap.Geometry.Header.ClusterBits;
    private readonly long _clusterMask = bitmap.Geometry.Header.ClusterSize - 1L;
    private readonly long _diskSize = bitmap.Geometry.DiskSize;

    public BlockMapTraits Traits { get; } =
        new(bitmap.Geometry.Header.ClusterSize, bitmap.Geometry.Header.ClusterSize, IsIdentity: true);

    public bool IsComplete => commit.IsComplete;

    // There the length of the image file tells the layout.
    public bool ToleratesLongerData => bitmap.Geometry.Header.Layout != AddCowLayout.March2012;

    public bool NeedsCommit => bitmap.Cache.NeedsCommit;

    public bool IsDirty => bitmap.Cache.DirtyCount > 0;

    public IRecovery? Recovery => null;

    public IReadOnlyList<FormatFact> CurrentFacts =>
        AddCowDescription.Progress(IsComplete, IsComplete ? bitmap.Geometry.Clusters : bitmap.CountAllocated(), bitmap.Geometry.Clusters);

    public Extent Lookup(long offset, long length)
    {
        if (length <= 0 || commit.IsComplete)
            return new Extent(ExtentKind.Data, length, offset, Writable: true);
        long first = offset >> _clusterBits;
        long count = ((offset + (length - 1)) >> _clusterBits) - first + 1;
        AddCowBitmap.Run run = bitmap.FindRun(first, count);
        if (run.Count < count)
            length = ((first + run.Count) << _clusterBits) - offset;
        return run.IsAllocated ? new Extent(ExtentKind.Data, length, offset, Writable: true) : new Extent(ExtentKind.Backing, length);
    }

    public void ReadCompressed(long descriptor, int offset, Span<byte> destination) =>
        Invariant.Require(false, "add-cow has no compressed clusters");

    /// <summary>Whole clusters, the last one of the disk as far as there is of it. What the image file holds there now may be anything.</summary>
    public Reservation Reserve(long offset, long length)
    {
        long start = offset & ~_clusterMask;
        long end = Math.Min((offset + (length - 1)) | _clusterMask, _diskSize - 1) + 1;
        bool isPartial = start < offset || end > offset + length;
        bool isHole = isPartial && !DataHoles.IsData(data, start, end - start, out long run) && run >= end - start;
        return new Reservation(start, end, start, ReadsAsZero: isHole, InPlace: false);
    }

    public void Publish(in Reservation reservation)
    {
        if (commit.IsComplete)
            return;
        long first = reservation.Start >> _clusterBits;
        bitmap.Set(first, ((reservation.End - 1) >> _clusterBits) - first + 1);
    }

    public void Abandon(in Reservation reservation)
    {
        // What was written to the image file stays there unseen: its bit is not set.
    }

    /// <summary>There is no zero state.</summary>
    public bool TryPublishZero(long offset, long length) => false;

    /// <summary>The format has no mark of being in use, and needs none: bits are only ever set.</summary>
    public void BeginUse()
    {
    }

    public bool Commit(Func<bool> takeDataDirty) => commit.Run(takeDataDirty);

    public void EndUse()
    {
    }

    public void Dispose()
    {
    }
}
