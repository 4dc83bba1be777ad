// One guest cluster's place in an L2 table: the entry and, with extended L2, its subcluster bitmap. Pure transitions; the block map
// reads and writes them.
namespace QcowFs.Images.Qcow2;

/// <summary>An L2 entry with its bitmap, which is zero in a standard table.</summary>
/// <param name="Entry">The entry.</param>
/// <param name="Bitmap">The subclusters.</param>
/// <param name="Extended">Whether the table is an extended one.</param>
internal readonly record struct Qcow2Slot(L2Entry Entry, SubclusterBitmap Bitmap, bool Extended)
{
    /// <summary>The host cluster is this mapping's alone and can be written without anyone else seeing it.</summary>
    public bool OwnsHost => !Entry.IsCompressed && Entry.HasHostCluster && Entry.Copied;

    /// <summary>A new host cluster must be filled as a whole: the old one holds data of subclusters that are not being written,
    /// or there are no subclusters.</summary>
    public bool NeedsWholeCluster => !Extended || Entry.IsCompressed || (Entry.HasHostCluster && !Entry.Copied);

    /// <summary>The slot after data was written to a host cluster.</summary>
    /// <param name="host">The host cluster.</param>
    /// <param name="covered">Bit i: subcluster i was written. All, where the old cluster is replaced.</param>
    public Qcow2Slot WithData(HostOffset host, uint covered)
    {
        L2Entry entry = L2Entry.Data(host, copied: true);
        if (!Extended)
            return new Qcow2Slot(entry, default, false);
        bool kept = !Entry.IsCompressed && (!Entry.HasHostCluster || Entry.HostOffset == host);
        uint allocated = kept ? Bitmap.Allocated | covered : covered;
        uint zero = kept ? Bitmap.ReadsZero & ~covered : 0;
        return new Qcow2Slot(entry, SubclusterBitmap.Of(allocated, zero), true);
    }

    /// <summary>Whether every byte of the cluster lives at this host offset.</summary>
    public bool MapsWhole(long host) =>
        Entry is { IsCompressed: false, IsZeroFlag: false, HasHostCluster: true } && Entry.HostOffset.Value == host
        && (!Extended || Bitmap.Allocated == uint.MaxValue);

    /// <summary>The slot after the whole cluster was mapped to a host cluster that others refer to as well (I11).</summary>
    public Qcow2Slot WithShared(HostOffset host) => new(
        L2Entry.Data(host, copied: false), Extended ? SubclusterBitmap.Of(uint.MaxValue, 0) : default, Extended);

    /// <summary>The slot after subclusters were made to read as zeros. Compressed clusters are covered as a whole.</summary>
    /// <param name="covered">Bit i: subcluster i reads as zeros.</param>
    /// <param name="hasBacking">Whether an unallocated cluster could read anything but zeros.</param>
    public Qcow2Slot WithZeros(uint covered, bool hasBacking)
    {
        if (!Extended)
            return new Qcow2Slot(hasBacking ? L2Entry.Zero : L2Entry.Unallocated, default, false);
        if (covered == uint.MaxValue)
            return new Qcow2Slot(L2Entry.Unallocated, hasBacking ? SubclusterBitmap.AllZero : SubclusterBitmap.Unallocated, true);
        uint allocated = Bitmap.Allocated & ~covered;
        return new Qcow2Slot(
            allocated == 0 ? L2Entry.Unallocated : Entry,
            SubclusterBitmap.Of(allocated, Bitmap.ReadsZero | covered),
            true);
    }
}
