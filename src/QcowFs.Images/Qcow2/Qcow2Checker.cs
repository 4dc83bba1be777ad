// The consistency check of a qcow2 image: all references are counted anew and compared with the stored counts, and every
// structure is held against the format's rules. Finds what `qemu-img check` finds and ends in the same class. The rules, by their
// number in the published consistency rules: alignment, reserved bits, ranges, COPIED against the stored count, subcluster bitmaps,
// external data files, snapshots, bitmaps.
//
// What a journal holds counts as replayed. The image is read through its storage, past every cache, so it must not be open for writing elsewhere. A check writes nothing by
// itself; run with an EntryRepair it has the entries mended that it finds broken, none of which changes what it goes on to count but
// a misaligned zero cluster, so that the findings of such a run are not for reporting.
using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>What a check found, for the repair.</summary>
/// <param name="Report">The findings.</param>
/// <param name="ReferencesKnown">No structure is broken so that what it refers to is unknown: a count above the references found is
/// a leak and not the data of a structure that could be mended by hand.</param>
/// <param name="NeedsRebuild">The refcount structures are unsound themselves, or lack a block.</param>
/// <param name="PointsOutside">Something refers to space past the end of the file, which therefore must not be put to use.</param>
/// <param name="CountsTooLow">Counts below the references found.</param>
/// <param name="Harmless">Corruptions of the report that are harmless.</param>
/// <param name="EntriesToMend">L1 and L2 entries that <see cref="EntryRepair"/> can mend.</param>
/// <param name="IncompleteSnapshots">Snapshots whose entries lack what version 3 demands.</param>
internal sealed record Qcow2Diagnosis(
    CheckReport Report, bool ReferencesKnown, bool NeedsRebuild, bool PointsOutside, long CountsTooLow, long Harmless, long EntriesToMend,
    long IncompleteSnapshots);

/// <summary>One run of the check. Used by one thread.</summary>
internal sealed class Qcow2Checker : IReferenceVisitor
{
    /// <summary>QEMU's limit (INT_MAX clusters), which also bounds the number of passes.</summary>
    private const long MaxClusters = int.MaxValue;

    /// <summary>Ours: so many flags wait for the end of a window to be judged; those beyond are taken for wrong.</summary>
    private const int MaxDoubtful = 1 << 16;

    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly CheckFindings _findings = new();
    private readonly RefcountTable _stored;
    private readonly ReferenceCounter _counter;
    private readonly ReferenceWindow _window;
    private readonly byte[] _storedSmall;
    private readonly bool _allReadable;
    private readonly EntryRepair? _repair;
    private readonly List<DoubtfulFlag> _doubtful = [];
    private (long Offset, long Weight) _table;
    private bool _first = true;
    private bool _referencesKnown = true;
    private bool _needsRebuild;
    private bool _pointsOutside;
    private long _countsTooLow;
    private long _harmless;
    private long _entriesToMend;
    private long _incompleteSnapshots;
    private long _allocated;
    private long _compressed;
    private long _highest;

    private Qcow2Checker(Qcow2Header header, IStorage file, int windowClusters, EntryRepair? repair)
    {
        _repair = repair;
        _header = header;
        _file = file;
        _stored = new RefcountTable(header, file);
        Qcow2SnapshotTable snapshots = Qcow2SnapshotTable.Read(header, file);
        CheckSnapshots(snapshots);
        _counter = new ReferenceCounter(header, file, _stored.Entries, snapshots, BitmapDirectory.Read(header, file), this);
        int capacity = (int)Math.Min(_counter.ClusterCount + 1, windowClusters);
        _window = new ReferenceWindow(capacity);
        _storedSmall = new byte[capacity];
        _allReadable = Enumerable.Range(0, _stored.Entries.Length).All(index => _stored.IsReadable(index));
    }

    /// <summary>Checks an image. Faults: <see cref="ImageFormatException"/> where a root structure cannot be understood, so that
    /// nothing can be said; <see cref="StorageException"/>.</summary>
    /// <param name="file">The image file.</param>
    /// <param name="windowClusters">Clusters to count at a time; tests make it small.</param>
    public static CheckReport Check(IStorage file, int windowClusters = ReferenceCounter.DefaultWindow) =>
        Diagnose(file, windowClusters).Report;

    /// <summary>Checks an image for a repair, likewise.</summary>
    /// <param name="file">The image file.</param>
    /// <param name="windowClusters">Clusters to count at a time.</param>
    /// <param name="repair">Mends the entries that are found broken, or null. It tells what was there before.</param>
    /// <param name="progress">Is told which part of the image has been looked at, 0 to 1; or null.</param>
    public static Qcow2Diagnosis Diagnose(
        IStorage file, int windowClusters = ReferenceCounter.DefaultWindow, EntryRepair? repair = null, Action<double>? progress = null)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        if (header.HasJournal)
            file = JournalReplay.Plan(header, file).View();
        Qcow2Checker checker = new(header, file, windowClusters, repair);
        checker._counter.Progress = progress;
        CheckReport report = checker.Run();
        return new Qcow2Diagnosis(report, checker._referencesKnown, checker._needsRebuild, checker._pointsOutside,
            checker._countsTooLow, checker._harmless, checker._entriesToMend, checker._incompleteSnapshots);
    }

    private CheckReport Run()
    {
        if (_counter.ClusterCount > MaxClusters)
        {
            _referencesKnown = false;
            _findings.Unchecked("too-large", "image", -1,
                $"the file has {_counter.ClusterCount} clusters, more than the {MaxClusters} that can be checked");
            return Report();
        }

        CheckRefcountTable();
        for (long first = 0; first < _counter.ClusterCount;)
        {
            LoadStored(first);
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
        Findings = _needsRebuild && _pointsOutside ? RepairText.Without(_findings.Listed, RepairText.NoRebuildOutside) : _findings.Listed,
        FindingsNotListed = _findings.NotListed,
    };

    private void CheckSnapshots(Qcow2SnapshotTable table)
    {
        if (_header.HasExternalDataFile && table.Snapshots.Count > 0)
        {
            _referencesKnown = false;
            _findings.Corruption("snapshot-external", "header", Qcow2HeaderLayout.SnapshotCountAt,
                $"there are {table.Snapshots.Count} snapshots although the data is in an external file", RepairText.None);
        }

        foreach (Qcow2Snapshot snapshot in table.Snapshots)
        {
            string name = Printable.Quote(snapshot.NameText);
            if (_header.Version >= 3 && snapshot.Extra.Length < Qcow2Snapshot.Version3ExtraSize)
            {
                _incompleteSnapshots++;
                _findings.Corruption("snapshot-incomplete", "snapshot table", snapshot.Offset,
                    $"snapshot {name} has {snapshot.Extra.Length} bytes of extra data, expected at least "
                    + $"{Qcow2Snapshot.Version3ExtraSize}", RepairText.CompleteSnapshot);
            }

            if (!ReferenceCounter.IsUsable(_header, snapshot))
            {
                _referencesKnown = false;
                _findings.Corruption("snapshot-l1", "snapshot table", snapshot.Offset,
                    $"snapshot {name} has an L1 table of {snapshot.L1Size} entries at byte {snapshot.L1Offset}, expected a multiple of "
                    + $"{_header.ClusterSize} and at most {Qcow2Limits.MaxL1Bytes / L1Entry.Size} entries", RepairText.None);
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
                _needsRebuild = true;
                _findings.Corruption("refcount-table", "refcount table", _stored.EntryOffset(i),
                    $"refcount block {i} at byte {(ulong)entry.Raw & RefcountTableEntry.OffsetMask} {problem}",
                    RepairText.Rebuild);
            }
        }
    }

    // The stored counts of the window's clusters in a byte each: COPIED is held against them in any order of clusters.
    private void LoadStored(long first)
    {
        long end = Math.Min(first + _window.Capacity, _counter.ClusterCount + 1);
        long loaded = first;
        for (long cluster = _stored.NextStored(first); cluster < end; cluster = _stored.NextStored(cluster))
        {
            long blockEnd = Math.Min(end, _stored.BlockEnd(cluster));
            _storedSmall.AsSpan((int)(loaded - first), (int)(cluster - loaded)).Clear();
            _stored.CopySmall(cluster, _storedSmall.AsSpan((int)(cluster - first), (int)(blockEnd - cluster)));
            cluster = loaded = blockEnd;
        }

        _storedSmall.AsSpan((int)(loaded - first), (int)(end - loaded)).Clear();
    }

    private void Compare()
    {
        long end = Math.Min(_window.End, _counter.ClusterCount);
        for (long cluster = _window.First; cluster < end;)
        {
            long blockEnd = Math.Min(end, _stored.BlockEnd(cluster));
            int from = (int)(cluster - _window.First);
            ReadOnlySpan<byte> counted = _window.Small[from..(int)(blockEnd - _window.First)];
            ReadOnlySpan<byte> stored = _storedSmall.AsSpan(from, counted.Length);
            if (_allReadable && counted.SequenceEqual(stored) && !counted.Contains(ReferenceWindow.Many))
                NoteHighest(cluster, counted);
            else
                CompareEach(cluster, blockEnd);
            cluster = blockEnd;
        }

        JudgeDoubtfulFlags();
        CheckRefcountBlocks(end);
        CheckTableIsOwn(end);
    }

    private void NoteHighest(long first, ReadOnlySpan<byte> counts)
    {
        int last = counts.LastIndexOfAnyExcept((byte)0);
        if (last >= 0)
            _highest = first + last;
    }

    private void CompareEach(long first, long end)
    {
        for (long cluster = first; cluster < end; cluster++)
        {
            uint counted = _window[cluster];
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
    }

    private void CheckTableIsOwn(long end)
    {
        long first = _header.RefcountTableOffset >> _header.ClusterBits;
        for (long cluster = first; cluster < Math.Min(end, first + _header.RefcountTableClusters); cluster++)
            _needsRebuild |= _window.Contains(cluster) && _stored.IsReadable(_stored.BlockOf(cluster)) && _window[cluster] > 1;
    }

    // COPIED beside a stored count that is too high, where one mapping is all there is: a crash between raising a count and using it
    // leaves that. QEMU calls it an error, so it counts as one, but nothing is damaged, and giving the leak up makes the flag right.
    private void JudgeDoubtfulFlags()
    {
        foreach (DoubtfulFlag flag in _doubtful)
        {
            ulong stored = _stored[flag.Target >> _header.ClusterBits];
            if (_window[flag.Target >> _header.ClusterBits] == 1 && stored > 1)
            {
                _harmless++;
                _findings.Harmless("copied-beside-leak", flag.Structure, flag.EntryOffset,
                    $"COPIED is set, and the {flag.What} at byte {flag.Target} has one reference, but its stored count is {stored}", RepairText.LowerCount);
                continue;
            }

            _repair?.EnterTable(flag.Table.Offset, flag.Table.Weight);
            NoteCopied(flag.Structure, flag.EntryOffset, copied: true, flag.What, flag.Target);
        }

        _doubtful.Clear();
    }

    private void NoteMismatch(long cluster, ulong stored, uint counted)
    {
        long offset = cluster << _header.ClusterBits;
        string found = $"the reference count is {stored}, but {counted} {(counted == 1 ? "reference was" : "references were")} found";
        if (stored > counted)
            _findings.Leak("cluster", offset, found, RepairText.LowerCount);
        else
        {
            bool hasBlock = _stored.HasBlock(_stored.BlockOf(cluster));
            _countsTooLow++;
            _needsRebuild |= !hasBlock;
            _findings.Corruption("refcount-too-low", "cluster", offset, found,
                hasBlock ? RepairText.RaiseCount : RepairText.Rebuild);
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
                _needsRebuild = true;
                _findings.Corruption("refcount-block", "refcount table", _stored.EntryOffset(i),
                    $"refcount block {i} at byte {_stored.Entries[i].BlockOffset} is referred to {_window[cluster]} times, expected once",
                    RepairText.Rebuild);
            }
        }
    }

    void IReferenceVisitor.Broken(string kind, string structure, long offset, string message, string repair)
    {
        _findings.Corruption(kind, structure, offset, message, repair);
        _pointsOutside |= kind == "out-of-range";
        if (repair == RepairText.None)
        {
            _referencesKnown = false;
            return;
        }

        _entriesToMend++;
        if (repair == RepairText.PlainZero)
            _repair?.MakePlainZero(offset);
        else
            _repair?.SetCopied(offset, copied: false);
    }

    void IReferenceVisitor.Unreadable(string kind, string structure, long offset, string message)
    {
        _referencesKnown = false;
        _findings.Unchecked(kind, structure, offset, message);
    }

    void IReferenceVisitor.Table(long tableOffset, long weight) => EnterTable(tableOffset, weight);

    private void EnterTable(long tableOffset, long weight)
    {
        _table = (tableOffset, weight);
        _repair?.EnterTable(tableOffset, weight);
    }

    void IReferenceVisitor.ActiveTable(long entryOffset, L1Entry entry)
    {
        EnterTable(entryOffset, weight: 0);
        CheckCopied("L1 table", entryOffset, entry.TableOffset, entry.Copied, "L2 table");
    }

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

    void IReferenceVisitor.ActiveClusters(long entryOffset, ReadOnlySpan<ulong> entries)
    {
        if (_first)
            _allocated += entries.Length;
        for (int i = 0; i < entries.Length; i++)
        {
            i += FlagsAsStored(entries[i..]);
            if (i == entries.Length)
                return;
            L2Entry entry = L2Entry.Read(MemoryMarshal.AsBytes(entries[i..]));
            CheckCopied("L2 table", entryOffset + (i * L2Entry.Size), entry.HostOffset.Value, entry.Copied, "cluster");
        }
    }

    // How many entries from the first on name clusters of the window and have COPIED exactly where the stored count is 1.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private int FlagsAsStored(ReadOnlySpan<ulong> entries)
    {
        ReadOnlySpan<byte> stored = _storedSmall.AsSpan(0, _window.Count);
        long first = _window.First;
        int bits = _header.ClusterBits;
        for (int i = 0; i < entries.Length; i++)
        {
            ulong entry = BitConverter.IsLittleEndian ? BinaryPrimitives.ReverseEndianness(entries[i]) : entries[i];
            ulong index = unchecked(((entry & L2Entry.OffsetMask) >> bits) - (ulong)first);
            if (index >= (ulong)stored.Length || (stored[(int)index] == 1) != ((entry & L2Entry.CopiedBit) != 0))
                return i;
        }

        return entries.Length;
    }

    private void CheckCopied(string structure, long entryOffset, long target, bool copied, string what)
    {
        long cluster = target >> _header.ClusterBits;
        if (!_window.Contains(cluster) || !_stored.IsReadable(_stored.BlockOf(cluster)))
            return;
        if (_storedSmall[(int)(cluster - _window.First)] == 1 == copied)
            return;
        if (copied && _doubtful.Count < MaxDoubtful)
            _doubtful.Add(new DoubtfulFlag(structure, entryOffset, target, what, _table));
        else
            NoteCopied(structure, entryOffset, copied, what, target);
    }

    private void NoteCopied(string structure, long entryOffset, bool copied, string what, long target)
    {
        _entriesToMend++;
        _repair?.SetCopied(entryOffset, !copied);
        if (copied)
        {
            _findings.Corruption("copied-wrong", structure, entryOffset,
                $"COPIED is set although the reference count of the {what} at byte {target} is not 1", RepairText.ClearFlag);
        }
        else
        {
            _harmless++;
            _findings.Harmless("copied-missing", structure, entryOffset,
                $"COPIED is clear although the reference count of the {what} at byte {target} is 1", RepairText.SetFlag);
        }
    }

    /// <summary>COPIED beside a stored count that is not one, until the references are counted.</summary>
    private readonly record struct DoubtfulFlag(string Structure, long EntryOffset, long Target, string What, (long Offset, long Weight) Table);
}
