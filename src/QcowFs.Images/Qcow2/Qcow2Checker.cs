// The consistency check of a qcow2 image, read-only: all references are counted anew and compared with the stored counts, and every
// structure is held against the format's rules. Finds what `qemu-img check` finds and ends in the same class. The rules, by their
// number in the published consistency rules: alignment, reserved bits, ranges, COPIED against the stored count, subcluster bitmaps,
// external data files, snapshots, bitmaps.
//
// The image is read through its storage, past every cache, so it must not be open for writing elsewhere.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>One run of the check. Used by one thread.</summary>
internal sealed class Qcow2Checker : IReferenceVisitor
{
    /// <summary>QEMU's limit (INT_MAX clusters), which also bounds the number of passes.</summary>
    private const long MaxClusters = int.MaxValue;

    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly CheckFindings _findings = new();
    private readonly RefcountTable _stored;
    private readonly ReferenceCounter _counter;
    private readonly ReferenceWindow _window;
    private readonly ulong[] _storedOnce;
    private bool _first = true;
    private long _allocated;
    private long _compressed;
    private long _highest;

    private Qcow2Checker(Qcow2Header header, IStorage file, int windowClusters)
    {
        _header = header;
        _file = file;
        _stored = new RefcountTable(header, file);
        Qcow2SnapshotTable snapshots = Qcow2SnapshotTable.Read(header, file);
        CheckSnapshots(snapshots);
        _counter = new ReferenceCounter(header, file, _stored.Entries, snapshots, BitmapDirectory.Read(header, file), this);
        int capacity = (int)Math.Min(_counter.ClusterCount + 1, windowClusters);
        _window = new ReferenceWindow(capacity);
        _storedOnce = new ulong[capacity / 64 + 1];
    }

    /// <summary>Checks an image. Faults: <see cref="ImageFormatException"/> where a root structure cannot be understood, so that
    /// nothing can be said; <see cref="StorageException"/>.</summary>
    /// <param name="file">The image file.</param>
    /// <param name="windowClusters">Clusters to count at a time; tests make it small.</param>
    public static CheckReport Check(IStorage file, int windowClusters = ReferenceCounter.DefaultWindow)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        if (header.HasJournal)
        {
            throw new ImageFormatException(file.Name, "journal", -1, "it has not been replayed, so nothing else is up to date",
                "mount the image with -w and unmount it, then check again");
        }

        return new Qcow2Checker(header, file, windowClusters).Run();
    }

    private CheckReport Run()
    {
        if (_counter.ClusterCount > MaxClusters)
        {
            _findings.Unchecked("too-large", "image", -1,
                $"the file has {_counter.ClusterCount} clusters, more than the {MaxClusters} that can be checked");
            return Report();
        }

        CheckRefcountTable();
        for (long first = 0; first < _counter.ClusterCount;)
        {
            LoadStoredOnce(first);
            _counter.Count(first, _window);
            Compare();
            _first = false;
            first = Math.Max(_window.End, Math.Min(_window.NextReferenced, _stored.NextStored(_window.End)));
        }

        return Report();
    }

    private CheckReport Report() => new()
    {
        Format = "qcow2",
        CheckErrors = _findings.CheckErrors,
        Corruptions = _findings.Corruptions,
        HarmlessCorruptions = _findings.HarmlessCount,
        Leaks = _findings.Leaks,
        ImageEndOffset = (_highest + 1) << _header.ClusterBits,
        TotalClusters = _header.VirtualSize / _header.ClusterSize + (_header.VirtualSize % _header.ClusterSize == 0 ? 0 : 1),
        AllocatedClusters = _allocated,
        CompressedClusters = _compressed,
        Findings = _findings.Listed,
        FindingsNotListed = _findings.NotListed,
    };

    private void CheckSnapshots(Qcow2SnapshotTable table)
    {
        if (_header.HasExternalDataFile && table.Snapshots.Count > 0)
        {
            _findings.Corruption("snapshot-external", "header", Qcow2HeaderLayout.SnapshotCountAt,
                $"there are {table.Snapshots.Count} snapshots although the data is in an external file", "none");
        }

        foreach (Qcow2Snapshot snapshot in table.Snapshots)
        {
            string name = Printable.Quote(snapshot.NameText);
            if (_header.Version >= 3 && snapshot.Extra.Length < Qcow2Snapshot.Version3ExtraSize)
            {
                _findings.Corruption("snapshot-incomplete", "snapshot table", snapshot.Offset,
                    $"snapshot {name} has {snapshot.Extra.Length} bytes of extra data, expected at least "
                    + $"{Qcow2Snapshot.Version3ExtraSize}", "completes the entry");
            }

            if (!ReferenceCounter.IsUsable(_header, snapshot))
            {
                _findings.Corruption("snapshot-l1", "snapshot table", snapshot.Offset,
                    $"snapshot {name} has an L1 table of {snapshot.L1Size} entries at byte {snapshot.L1Offset}, expected a multiple of "
                    + $"{_header.ClusterSize} and at most {Qcow2Limits.MaxL1Bytes / L1Entry.Size} entries", "none");
            }
        }
    }

    private void CheckRefcountTable()
    {
        for (int i = 0; i < _stored.Entries.Length; i++)
        {
            RefcountTableEntry entry = _stored.Entries[i];
            string? problem =
                entry.Reserved != 0 ? "has reserved bits set"
                : entry.BlockOffset % _header.ClusterSize != 0 ? $"is not at a multiple of {_header.ClusterSize}"
                : entry.BlockOffset < 0 || entry.BlockOffset >= _file.Length ? $"lies outside the file of {_file.Length} bytes"
                : null;
            if (problem is not null)
            {
                _findings.Corruption("refcount-table", "refcount table", _stored.EntryOffset(i),
                    $"refcount block {i} at byte {(ulong)entry.Raw & RefcountTableEntry.OffsetMask} {problem}",
                    "rebuilds the refcount structures");
            }
        }
    }

    // One bit for each cluster of the window: the stored count is exactly 1. COPIED is held against it in any order of clusters.
    private void LoadStoredOnce(long first)
    {
        Array.Clear(_storedOnce);
        long end = Math.Min(first + _window.Capacity, _counter.ClusterCount + 1);
        for (long cluster = _stored.NextStored(first); cluster < end; cluster = _stored.NextStored(cluster))
        {
            for (long blockEnd = Math.Min(end, _stored.BlockEnd(cluster)); cluster < blockEnd; cluster++)
            {
                if (_stored[cluster] == 1)
                    _storedOnce[(cluster - first) / 64] |= 1UL << (int)((cluster - first) % 64);
            }
        }
    }

    private void Compare()
    {
        ReadOnlySpan<uint> counts = _window.Counts;
        long end = Math.Min(_window.End, _counter.ClusterCount);
        for (long cluster = _window.First; cluster < end; cluster++)
        {
            uint counted = counts[(int)(cluster - _window.First)];
            long block = _stored.BlockOf(cluster);
            if (!_stored.IsReadable(block))
            {
                NoteUnreadable(cluster, block);
                continue;
            }

            ulong stored = _stored[cluster];
            if (stored == 0 && counted == 0)
                continue;
            _highest = cluster;
            if (stored != counted && !(counted == uint.MaxValue && stored > counted))
                NoteMismatch(cluster, stored, counted);
        }

        CheckRefcountBlocks(end);
    }

    private void NoteMismatch(long cluster, ulong stored, uint counted)
    {
        long offset = cluster << _header.ClusterBits;
        string found = $"the reference count is {stored}, but {counted} {(counted == 1 ? "reference was" : "references were")} found";
        if (stored > counted)
            _findings.Leak("cluster", offset, found, "lowers the count");
        else
        {
            _findings.Corruption("refcount-too-low", "cluster", offset, found,
                stored == 0 ? "rebuilds the refcount structures" : "raises the count");
        }
    }

    private void NoteUnreadable(long cluster, long block)
    {
        // One finding for a block, at its first cluster in this window.
        if (cluster == _window.First || cluster % _header.RefcountsPerBlock == 0)
        {
            _findings.Unchecked("refcount-block", "refcount table", _stored.EntryOffset(block),
                $"refcount block {block} cannot be read, so the counts of its clusters are unknown");
        }
    }

    // A refcount block that is used for anything else would be overwritten by the next change of a count.
    private void CheckRefcountBlocks(long end)
    {
        for (int i = 0; i < _stored.Entries.Length; i++)
        {
            long cluster = _stored.Entries[i].BlockOffset >> _header.ClusterBits;
            if (_stored.Entries[i].Reserved == 0 && _stored.HasBlock(i) && cluster < end && _window.Contains(cluster)
                && _window[cluster] != 1)
            {
                _findings.Corruption("refcount-block", "refcount table", _stored.EntryOffset(i),
                    $"refcount block {i} at byte {_stored.Entries[i].BlockOffset} is referred to {_window[cluster]} times, expected once",
                    "rebuilds the refcount structures");
            }
        }
    }

    void IReferenceVisitor.Broken(string kind, string structure, long offset, string message, string repair) =>
        _findings.Corruption(kind, structure, offset, message, repair);

    void IReferenceVisitor.Unreadable(string kind, string structure, long offset, string message) =>
        _findings.Unchecked(kind, structure, offset, message);

    void IReferenceVisitor.ActiveTable(long entryOffset, L1Entry entry) =>
        CheckCopied("L1 table", entryOffset, entry.TableOffset, entry.Copied, "L2 table");

    void IReferenceVisitor.ActiveCluster(long entryOffset, L2Entry entry)
    {
        if (_first)
        {
            _allocated++;
            _compressed += entry.IsCompressed ? 1 : 0;
        }

        if (entry.IsCompressed)
            return;
        if (!_header.HasExternalDataFile)
            CheckCopied("L2 table", entryOffset, entry.HostOffset.Value, entry.Copied, "cluster");
        else if (_first && !entry.Copied)
            NoteCopied("L2 table", entryOffset, copied: false, "cluster in the external data file", entry.HostOffset.Value);
    }

    private void CheckCopied(string structure, long entryOffset, long target, bool copied, string what)
    {
        long cluster = target >> _header.ClusterBits;
        if (!_window.Contains(cluster) || !_stored.IsReadable(_stored.BlockOf(cluster)))
            return;
        long index = cluster - _window.First;
        bool once = (_storedOnce[index / 64] >> (int)(index % 64) & 1) != 0;
        if (once != copied)
            NoteCopied(structure, entryOffset, copied, what, target);
    }

    private void NoteCopied(string structure, long entryOffset, bool copied, string what, long target)
    {
        if (copied)
        {
            _findings.Corruption("copied-wrong", structure, entryOffset,
                $"COPIED is set although the reference count of the {what} at byte {target} is not 1", "clears the flag");
        }
        else
        {
            _findings.Harmless("copied-missing", structure, entryOffset,
                $"COPIED is clear although the reference count of the {what} at byte {target} is 1", "sets the flag");
        }
    }
}
