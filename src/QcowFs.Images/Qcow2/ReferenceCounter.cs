// Counts every reference to every host cluster of an image, from the roots: header, refcount structures, L1 tables (the active one
// and those of snapshots), their L2 tables, data and compressed clusters, the snapshot table, the crypto header, bitmaps.
//
// Total and bounded on hostile images:
// C1. Nothing that lies outside the file is read or counted.
// C2. Bytes that several tables share are read once and counted with a weight; so is an L2 table that several L1 entries name.
// C3. Memory: one window of counts, one batch of L2 offsets, one stretch of L2 tables. An image of more clusters takes several passes.
// C4. Holes of the image file are not read where the storage tells them.
// C5. The common case, entry after entry that is sound, costs a few instructions an entry: such runs are found first and dealt with as
//     wholes. Tables that lie together are read together.
using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Is told what a count comes across.</summary>
internal interface IReferenceVisitor
{
    /// <summary>A rule is broken. Each is told once, in the first window only.</summary>
    void Broken(string kind, string structure, long offset, string message, string repair);

    /// <summary>A structure cannot be understood, so that what it refers to is unknown. Told once.</summary>
    void Unreadable(string kind, string structure, long offset, string message);

    /// <summary>An L2 table whose entries come next.</summary>
    /// <param name="tableOffset">Where it is.</param>
    /// <param name="weight">How many L1 entries name it.</param>
    void Table(long tableOffset, long weight);

    /// <summary>An entry of the active L1 table that names an L2 table in the file. Told in every window.</summary>
    void ActiveTable(long entryOffset, L1Entry entry);

    /// <summary>An entry of an L2 table of the active L1 that has a host cluster or is compressed. Told in every window.</summary>
    void ActiveCluster(long entryOffset, L2Entry entry);

    /// <summary>As <see cref="ActiveCluster"/>, for consecutive entries that each name a cluster of data in the file, aligned.</summary>
    /// <param name="entryOffset">Where the first one is.</param>
    /// <param name="entries">The entries as they are stored.</param>
    void ActiveClusters(long entryOffset, ReadOnlySpan<ulong> entries);
}

/// <summary>Counts references window by window. Used by one thread. The image must not change meanwhile.</summary>
internal sealed class ReferenceCounter
{
    /// <summary>Clusters in a window unless the caller wants less: 32 MiB of counts, 2 TiB at the usual cluster size.</summary>
    public const int DefaultWindow = 32 << 20;

    private const int L2BatchSize = 1 << 20;
    private const int StretchSize = 512 << 10;
    private const string ActiveL1 = "L1 table";
    private const string SnapshotL1 = "snapshot's L1 table";
    private const string L2 = "L2 table";
    private const string BitmapTable = "bitmap table";

    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly IReferenceVisitor? _visitor;
    private readonly long _fileLength;
    private readonly RefcountTableEntry[] _refcountTable;
    private readonly List<(string Structure, long Offset, long Length)> _regions = [];
    private readonly List<WeightedRange> _snapshotL1s;
    private readonly List<WeightedRange> _bitmapTables;
    private readonly List<L2Reference> _batch = [];
    private readonly byte[] _stretch;
    private readonly WindowReader _tables;
    private readonly ulong _unsoundBits;
    private (long Start, long End) _data;
    private ReferenceWindow _window = new(0);
    private bool _first = true;

    /// <param name="header">The image's header.</param>
    /// <param name="file">The image file; its length is taken now.</param>
    /// <param name="refcountTable">The refcount table's entries.</param>
    /// <param name="snapshots">The snapshot table.</param>
    /// <param name="bitmaps">The bitmap directory.</param>
    /// <param name="visitor">Is told what is found, or null.</param>
    public ReferenceCounter(Qcow2Header header, IStorage file, RefcountTableEntry[] refcountTable, Qcow2SnapshotTable snapshots,
        IReadOnlyList<Qcow2Bitmap> bitmaps, IReferenceVisitor? visitor)
    {
        _header = header;
        _file = file;
        _visitor = visitor;
        _fileLength = file.Length;
        _refcountTable = refcountTable;
        _stretch = new byte[Math.Max(header.ClusterSize, StretchSize)];
        _unsoundBits = ~(L2Entry.CopiedBit | (L2Entry.OffsetMask & ~(ulong)(header.ClusterSize - 1)));
        _tables = new WindowReader(file);
        AddRegions(snapshots);
        _snapshotL1s = WeightedRange.Merge(snapshots.Snapshots
            .Where(s => IsUsable(header, s)).Select(s => (s.L1Offset, s.L1Size * L1Entry.Size)));
        _bitmapTables = WeightedRange.Merge(bitmaps.Select(b => (b.TableOffset, b.TableEntries * sizeof(ulong))));
    }

    /// <summary>Clusters of the file, the last one perhaps in part.</summary>
    public long ClusterCount => (_fileLength + _header.ClusterSize - 1) / _header.ClusterSize;

    /// <summary>Is told which part of the image has been counted, 0 to 1; or null.</summary>
    public Action<double>? Progress { get; set; }

    /// <summary>Whether a snapshot's L1 table is aligned and within the limits, so that it can be walked.</summary>
    public static bool IsUsable(Qcow2Header header, Qcow2Snapshot snapshot) =>
        snapshot.L1Offset >= 0 && snapshot.L1Offset < Qcow2Limits.MaxHostOffset && snapshot.L1Offset % header.ClusterSize == 0
        && snapshot.L1Size <= Qcow2Limits.MaxL1Bytes / L1Entry.Size;

    /// <summary>Fills <paramref name="window"/>, from <paramref name="firstCluster"/> on as far as it holds, with the number of
    /// references to each cluster.</summary>
    public void Count(long firstCluster, ReferenceWindow window)
    {
        _window = window;
        // A cluster behind the end can be named where the last one is only there in part.
        window.Reset(firstCluster, ClusterCount + 1);
        foreach ((string structure, long offset, long length) in _regions)
            CountRange(structure, offset, offset, length, weight: 1);
        CountRefcountBlocks();
        CountTables(_bitmapTables, BitmapTable, CountBitmapEntry);
        CountL1(new WeightedRange(_header.L1Offset, (long)_header.L1Size * L1Entry.Size, 1), active: true);
        foreach (WeightedRange range in _snapshotL1s)
            CountL1(range, active: false);
        CountL2Batch();
        _first = false;
    }

    private void AddRegions(Qcow2SnapshotTable snapshots)
    {
        _regions.Add(("header", 0, _header.ClusterSize));
        _regions.Add(("refcount table", _header.RefcountTableOffset, (long)_header.RefcountTableClusters << _header.ClusterBits));
        _regions.Add(("snapshot table", _header.SnapshotsOffset, snapshots.Length));
        if (_header.Journal is { } journal)
            _regions.Add(("journal", journal.Offset, journal.Length));
        if (_header.CryptoHeader is { } crypto)
            _regions.Add(("crypto header", crypto.Offset, crypto.Length));
        if (_header.Bitmaps is { } bitmaps)
            _regions.Add(("bitmap directory", bitmaps.DirectoryOffset, bitmaps.DirectoryLength));
    }

    private void CountRefcountBlocks()
    {
        for (int i = 0; i < _refcountTable.Length; i++)
        {
            long offset = _refcountTable[i].BlockOffset;
            // A block that is not where a block can be is the checker's finding; nothing is counted for it.
            if (offset > 0 && offset % _header.ClusterSize == 0 && _refcountTable[i].Reserved == 0 && offset < _fileLength)
                CountClusters(offset, _header.ClusterSize, weight: 1);
        }
    }

    private void CountL1(WeightedRange range, bool active)
    {
        string structure = active ? ActiveL1 : SnapshotL1;
        if (!CountRegionOfTable(structure, range))
            return;
        ReadEntries(range, (entryOffset, raw) =>
        {
            L1Entry entry = new(raw);
            if (entry.Reserved != 0)
                Broken("reserved-bits", structure, entryOffset, $"entry 0x{raw:x16} has reserved bits set", RepairText.None);
            if (!entry.IsAllocated)
            {
                if (entry.Copied)
                    Broken("reserved-bits", structure, entryOffset, "an entry without an L2 table has its COPIED flag set", RepairText.None);
                return;
            }

            if (active)
                _visitor?.ActiveTable(entryOffset, entry);
            if (CountCluster(structure, entryOffset, entry.TableOffset, "L2 table", range.Weight, RepairText.None))
                AddToBatch(new L2Reference(entry.TableOffset, range.Weight, active));
        });
    }

    private void CountTables(List<WeightedRange> ranges, string structure, Action<long, ulong, long> count)
    {
        foreach (WeightedRange range in ranges)
        {
            if (CountRegionOfTable(structure, range))
                ReadEntries(range, (offset, raw) => count(offset, raw, range.Weight));
        }
    }

    private void CountBitmapEntry(long entryOffset, ulong raw, long weight)
    {
        ulong offset = raw & Qcow2Bitmap.EntryOffsetMask;
        if ((raw & Qcow2Bitmap.EntryReservedMask) != 0 || (offset != 0 && (raw & 1) != 0))
        {
            if (_first)
                _visitor?.Unreadable("bitmap-table", BitmapTable, entryOffset, $"entry 0x{raw:x16} has reserved bits set");
        }
        else if (offset != 0)
            CountCluster(BitmapTable, entryOffset, (long)offset, "bitmap data cluster", weight, RepairText.None);
    }

    private void AddToBatch(L2Reference reference)
    {
        _batch.Add(reference);
        if (_batch.Count == L2BatchSize)
            CountL2Batch();
    }

    // C2: an L2 table that many L1 entries name is read once for all of them.
    private void CountL2Batch()
    {
        _batch.Sort(static (left, right) => left.Offset.CompareTo(right.Offset));
        ReadOnlySpan<L2Reference> references = CollectionsMarshal.AsSpan(_batch);
        (long Start, long End) stretch = (0, 0);
        for (int i = 0; i < references.Length;)
        {
            if (references[i].Offset >= stretch.End)
            {
                stretch = ReadStretch(references[i..]);
                Progress?.Invoke((_window.First + (double)i / references.Length * _window.Count) / Math.Max(1, ClusterCount));
            }

            long offset = references[i].Offset;
            long weight = 0;
            bool active = false;
            for (; i < references.Length && references[i].Offset == offset; i++)
            {
                weight += references[i].Weight;
                active |= references[i].IsActive;
            }

            ReadOnlySpan<byte> table = _stretch.AsSpan((int)(offset - stretch.Start), _header.ClusterSize);
            if (!table.ContainsAnyExcept((byte)0))
                continue;
            _visitor?.Table(offset, weight);
            if (_header.HasExtendedL2 || _header.HasExternalDataFile || weight > 1)
                CountEntries(offset, table, 0, table.Length, weight, active);
            else
                CountStandardTable(offset, table, active);
        }

        _batch.Clear();
    }

    // The first table and those that follow it without a gap, as far as there is room. C4: holes stay zeros.
    private (long Start, long End) ReadStretch(ReadOnlySpan<L2Reference> references)
    {
        long start = references[0].Offset;
        long end = start + _header.ClusterSize;
        foreach (L2Reference next in references)
        {
            if (next.Offset == end && end + _header.ClusterSize - start <= _stretch.Length)
                end += _header.ClusterSize;
            else if (next.Offset >= end)
                break;
        }

        Span<byte> bytes = _stretch.AsSpan(0, (int)(end - start));
        if (IsHole(start, bytes.Length))
            bytes.Clear();
        else
            _file.Read(start, bytes);
        return (start, end);
    }

    // C5
    private void CountStandardTable(long tableOffset, ReadOnlySpan<byte> table, bool active)
    {
        ReadOnlySpan<ulong> entries = MemoryMarshal.Cast<byte, ulong>(table);
        for (int i = 0; i < entries.Length;)
        {
            int zeros = entries[i..].IndexOfAnyExcept(0UL);
            if (zeros < 0)
                return;
            i += zeros;
            int run = SoundRun(entries[i..], _unsoundBits, (ulong)_header.ClusterSize, (ulong)_fileLength);
            if (run == 0)
            {
                CountEntries(tableOffset, table, i * L2Entry.Size, (i + 1) * L2Entry.Size, weight: 1, active);
                i++;
                continue;
            }

            ReadOnlySpan<ulong> sound = entries.Slice(i, run);
            if (active)
                _visitor?.ActiveClusters(tableOffset + (i * L2Entry.Size), sound);
            _window.AddEntries(sound, _header.ClusterBits);
            i += run;
        }
    }

    // How many entries from the first on are nothing but a cluster in the file and perhaps COPIED.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static int SoundRun(ReadOnlySpan<ulong> entries, ulong unsoundBits, ulong first, ulong end)
    {
        for (int i = 0; i < entries.Length; i++)
        {
            ulong entry = BitConverter.IsLittleEndian ? BinaryPrimitives.ReverseEndianness(entries[i]) : entries[i];
            ulong host = entry & L2Entry.OffsetMask;
            if ((entry & unsoundBits) != 0 || host < first || host >= end)
                return i;
        }

        return entries.Length;
    }

    private void CountEntries(long tableOffset, ReadOnlySpan<byte> table, int from, int to, long weight, bool active)
    {
        for (int at = from; at < to; at += _header.L2EntrySize)
        {
            L2Entry entry = L2Entry.Read(table[at..]);
            SubclusterBitmap bitmap = _header.HasExtendedL2
                ? SubclusterBitmap.Read(table[(at + L2Entry.Size)..]) : SubclusterBitmap.Unallocated;
            if (entry.Raw == 0 && bitmap.Raw == 0)
                continue;
            long entryOffset = tableOffset + at;
            if (entry.IsCompressed)
                CountCompressed(entryOffset, entry, bitmap, weight, active);
            else
                CountStandard(entryOffset, entry, bitmap, weight, active);
        }
    }

    private void CountCompressed(long entryOffset, L2Entry entry, SubclusterBitmap bitmap, long weight, bool active)
    {
        if (entry.Copied)
            Broken("copied-compressed", L2, entryOffset, "a compressed cluster has its COPIED flag set", RepairText.ClearFlag);
        if (_header.HasExternalDataFile)
        {
            Broken("compressed-external", L2, entryOffset, "a cluster is compressed although the data is in an external file", RepairText.None);
            return;
        }

        if (bitmap.Raw != 0)
        {
            Broken("subcluster-bitmap", L2, entryOffset, "a compressed cluster has a subcluster bitmap that is not zero", RepairText.None);
            return;
        }

        if (active)
            _visitor?.ActiveCluster(entryOffset, entry);
        CompressedDescriptor descriptor = CompressedDescriptor.Of(entry, _header.ClusterBits);
        CountRange(L2, entryOffset, descriptor.Offset, descriptor.Length, weight);
    }

    private void CountStandard(long entryOffset, L2Entry entry, SubclusterBitmap bitmap, long weight, bool active)
    {
        if (entry.Reserved != 0)
            Broken("reserved-bits", L2, entryOffset, $"entry 0x{entry.Raw:x16} has reserved bits set", RepairText.None);
        bool hasCluster = entry.HostOffset.Value != 0 || (_header.HasExternalDataFile && entry.HasHostCluster && !entry.IsZeroFlag);
        if (!hasCluster)
        {
            if (bitmap.Allocated != 0)
                Broken("subcluster-bitmap", L2, entryOffset, "subclusters are allocated in a cluster that has no place", RepairText.None);
            return;
        }

        if (!bitmap.IsWellFormed)
            Broken("subcluster-bitmap", L2, entryOffset, "subclusters are allocated and zero at once", RepairText.None);
        if (active)
            _visitor?.ActiveCluster(entryOffset, entry);
        bool holdsData = _header.HasExtendedL2 ? bitmap.Allocated != 0 : !entry.IsZeroFlag;
        string repair = holdsData ? RepairText.None : RepairText.PlainZero;
        if (!_header.HasExternalDataFile)
            CountCluster(L2, entryOffset, entry.HostOffset.Value, "cluster", weight, repair);
        else if (entry.HostOffset.Value % _header.ClusterSize != 0)
            BrokenAlignment(L2, entryOffset, entry.HostOffset.Value, "cluster", repair);
    }

    // One cluster that an entry names. Whether it lies in the file, aligned, so that it can be followed.
    private bool CountCluster(string structure, long entryOffset, long target, string what, long weight, string repair)
    {
        bool aligned = target % _header.ClusterSize == 0;
        if (!aligned)
            BrokenAlignment(structure, entryOffset, target, what, repair);
        return CountRange(structure, entryOffset, target, _header.ClusterSize, weight) && aligned;
    }

    private bool CountRegionOfTable(string structure, WeightedRange range) =>
        CountRange(structure, range.Offset, range.Offset, range.Length, range.Weight);

    // C1. As in QEMU, a range may reach past the end of the file by less than a cluster: the last one may be there in part.
    private bool CountRange(string structure, long foundAt, long offset, long length, long weight)
    {
        if (length == 0)
            return true;
        if (offset >= _fileLength || offset + length - _fileLength >= _header.ClusterSize)
        {
            Broken("out-of-range", structure, foundAt,
                $"{length} bytes at byte {offset} are referred to, but the file ends at byte {_fileLength}", RepairText.None);
            return false;
        }

        CountClusters(offset, length, weight);
        return true;
    }

    private void CountClusters(long offset, long length, long weight) =>
        _window.Add(offset >> _header.ClusterBits, (offset + length - 1) >> _header.ClusterBits, weight);

    private void ReadEntries(WeightedRange range, Action<long, ulong> visit)
    {
        long end = Math.Min(range.Offset + range.Length, _fileLength);
        for (long at = range.Offset; at < end;)
        {
            if (_file is IExtentSource extents && !extents.IsData(at, out long dataStart))
            {
                at = Math.Max(at + sizeof(ulong), dataStart & -sizeof(ulong));
                continue;
            }

            ReadOnlySpan<byte> chunk = _tables.Get(at, (int)Math.Min(end - at + 7 & -8, _tables.Capacity));
            for (int i = 0; i < chunk.Length; i += sizeof(ulong))
            {
                ulong raw = L1Entry.Read(chunk[i..]).Raw;
                if (raw != 0)
                    visit(at + i, raw);
            }

            at += chunk.Length;
        }
    }

    // C4. Where data was found, its end is kept: asking again would make some file systems walk all of it each time.
    private bool IsHole(long offset, long length)
    {
        if (_file is not IExtentSource extents || (offset >= _data.Start && offset < _data.End))
            return false;
        if (extents.IsData(offset, out long end))
        {
            _data = (offset, end);
            return false;
        }

        return end >= offset + length;
    }

    private void BrokenAlignment(string structure, long entryOffset, long target, string what, string repair) => Broken("misaligned",
        structure, entryOffset, $"the {what} at byte {target} is not at a multiple of {_header.ClusterSize}", repair);

    private void Broken(string kind, string structure, long offset, string message, string repair)
    {
        if (_first)
            _visitor?.Broken(kind, structure, offset, message, repair);
    }

    private readonly record struct L2Reference(long Offset, long Weight, bool IsActive);
}
