// Brings stored reference counts to the references that were found, in the refcount blocks that are there.
//
// No mapping changes meanwhile, so each count can be mended by itself and any part of the changes that a crash leaves is nearer to
// the truth than what was. Raises come before lowers, a window at a time, with a sync between.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>One correction of all counts. Used by one thread.</summary>
internal sealed class RefcountCorrection
{
    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly RefcountTable _stored;
    private readonly ReferenceCounter _counter;
    private readonly ReferenceWindow _window;
    private readonly byte[] _block;

    private RefcountCorrection(Qcow2Header header, IStorage file, int windowClusters)
    {
        _header = header;
        _file = file;
        _stored = new RefcountTable(header, file);
        _counter = new ReferenceCounter(header, file, _stored.Entries, Qcow2SnapshotTable.Read(header, file),
            BitmapDirectory.Read(header, file), visitor: null);
        _window = new ReferenceWindow((int)Math.Min(_counter.ClusterCount + 1, windowClusters));
        _block = new byte[header.ClusterSize];
    }

    /// <summary>Corrects the counts, durably, and tells whether any was wrong. The refcount structures must be sound.</summary>
    /// <param name="file">The image file, writable.</param>
    /// <param name="raise">Raise counts that are too low.</param>
    /// <param name="lower">Lower counts that are too high.</param>
    /// <param name="windowClusters">Clusters to count at a time.</param>
    public static bool Run(IStorage file, bool raise, bool lower, int windowClusters) =>
        new RefcountCorrection(Qcow2HeaderReader.Read(file), file, windowClusters).Run(raise, lower);

    private bool Run(bool raise, bool lower)
    {
        bool changed = false;
        for (long first = 0; first < _counter.ClusterCount;)
        {
            _counter.Count(first, _window);
            changed |= raise && Correct(upwards: true);
            changed |= lower && Correct(upwards: false);
            first = Math.Max(_window.End, Math.Min(_window.NextReferenced, _stored.NextStored(_window.End)));
        }

        return changed;
    }

    private bool Correct(bool upwards)
    {
        bool changed = false;
        long end = Math.Min(_window.End, _counter.ClusterCount);
        for (long cluster = _stored.NextStored(_window.First); cluster < end; cluster = _stored.NextStored(cluster))
        {
            long stop = Math.Min(end, _stored.BlockEnd(cluster));
            changed |= CorrectBlock(cluster, stop, upwards);
            cluster = stop;
        }

        if (changed)
            _file.Sync();
        return changed;
    }

    private bool CorrectBlock(long cluster, long end, bool upwards)
    {
        long offset = _stored.Entries[_stored.BlockOf(cluster)].BlockOffset;
        _file.Read(offset, _block);
        bool changed = false;
        for (; cluster < end; cluster++)
        {
            int index = (int)(cluster % _header.RefcountsPerBlock);
            ulong stored = RefcountEncoding.Get(_block, index, _header.RefcountOrder);
            uint counted = _window[cluster];
            ulong wanted = Math.Min(counted, _header.MaxRefcount);
            // The window stops counting there, so more may be right.
            bool unsure = counted == uint.MaxValue && stored > counted;
            if (wanted == stored || wanted > stored != upwards || unsure)
                continue;
            RefcountEncoding.Set(_block, index, _header.RefcountOrder, wanted);
            changed = true;
        }

        if (changed)
            _file.Write(offset, _block);
        return changed;
    }
}
