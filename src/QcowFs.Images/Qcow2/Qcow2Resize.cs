// Changes the size of a qcow2 disk that nobody else has open.
//
// Z1. Growing: everything past the old end reads as zeros before the header states the new size: the rest of the last cluster, what
//     an interrupted shrinking left mapped there, what the backing image holds there, what an external data file has there.
// Z2. Growing: a larger L1 table is durable before the header names it; the old one is given up after that.
// Z3. Shrinking: the header states the new size before anything is unmapped, so that no crash shows a disk with zeros in it where
//     its size still covers them; counts are lowered when the unmapping is durable (I3).
// Z4. An L2 table that a snapshot refers to as well is never changed; the active disk gets one of its own for what it keeps.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Resizes an image in which a check found nothing wrong.</summary>
internal sealed class Qcow2Resize
{
    /// <summary>What sizes of disks are multiples of, in bytes.</summary>
    public const int SizeUnit = 512;

    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly IStorage? _dataFile;
    private readonly Qcow2Edit _edit;
    private readonly BitmapResize _bitmaps;

    private Qcow2Resize(Qcow2Header header, IStorage file, IStorage? dataFile, long size)
    {
        _header = header;
        _file = file;
        _dataFile = dataFile;
        _edit = Qcow2Edit.Begin(header, file);
        _bitmaps = new BitmapResize(_edit, file, size);
    }

    /// <summary>Gives the disk another size, durably. Faults: <see cref="ImageFormatException"/> before anything changes;
    /// <see cref="StorageException"/>, which leaves a valid image of the old or the new size.</summary>
    /// <param name="header">The image's header.</param>
    /// <param name="file">The image file, which stays the caller's.</param>
    /// <param name="dataFile">The external data file, which stays the caller's, or null where there is none.</param>
    /// <param name="backing">The backing image or null. The call owns it.</param>
    /// <param name="size">The new size in bytes.</param>
    public static void Run(Qcow2Header header, IStorage file, IStorage? dataFile, IDiskImage? backing, long size)
    {
        try
        {
            RequirePossible(header, file, size);
            if (size > header.VirtualSize)
                new Qcow2Resize(header, file, dataFile, size).Grow(size, backing);
            else if (size < header.VirtualSize)
                new Qcow2Resize(header, file, dataFile, size).Shrink(size);
        }
        finally
        {
            backing?.Dispose();
        }
    }

    private static void RequirePossible(Qcow2Header header, IStorage file, long size)
    {
        if (size % SizeUnit != 0)
            throw Refused(file, $"a qcow2 disk cannot have {size} bytes", $"give a multiple of {SizeUnit}");
        long entries = header.L1EntriesFor(size);
        if (entries > Qcow2Limits.MaxL1Bytes / L1Entry.Size)
        {
            throw Refused(file, $"{size} bytes are more than clusters of {header.ClusterSize} bytes can map",
                "convert the image to one with larger clusters");
        }

        // Such an entry means the size that the disk has now.
        Qcow2Snapshot? unsized = Qcow2SnapshotTable.Read(header, file).Snapshots.FirstOrDefault(s => s.VirtualSize is null);
        if (unsized is not null)
        {
            throw Refused(file, $"snapshot {Printable.Quote(unsized.NameText)} does not state its own size, so it would change with the disk's",
                "delete the snapshot first");
        }
    }

    private void Grow(long size, IDiskImage? backing)
    {
        L1Entry[] l1 = _edit.ReadL1(_header.L1Offset, _header.L1Size);
        RequireOwnPlaces(l1);
        int needed = (int)_header.L1EntriesFor(size);
        bool moves = needed > _header.L1Size;
        long offset = moves ? _edit.Counts.Take(needed * (long)L1Entry.Size) : _header.L1Offset;
        BeginUse();
        if (moves)
        {
            Array.Resize(ref l1, needed);
            _edit.WriteL1(offset, l1);
        }

        _bitmaps.WriteNew();
        _edit.Counts.WriteRaised();
        _bitmaps.Switch();
        if (moves)
        {
            Qcow2HeaderSector.Change(_file, sector => sector.SetL1(offset, needed)); // Z2
            _edit.Counts.LowerRegion(_header.L1Offset, _header.L1Size * (long)L1Entry.Size);
        }

        _bitmaps.Lower();
        _edit.Counts.WriteLowered();
        GrowDataFile(size);
        long zeroEnd = Math.Min(size, Math.Max(MappedEnd(l1), backing?.Length ?? 0));
        if (zeroEnd > _header.VirtualSize)
            WriteZeroes(_header.VirtualSize, zeroEnd, size, backing); // Z1
        Qcow2HeaderSector.Change(_file, sector => sector.SetVirtualSize(size));
        EndUse();
    }

    private void BeginUse()
    {
        _bitmaps.Mark();
        _edit.BeginUse();
    }

    private void EndUse()
    {
        _bitmaps.Unmark();
        _edit.EndUse();
    }

    // Z1
    private void GrowDataFile(long size)
    {
        if (_dataFile is null)
            return;
        long stale = Math.Min(_dataFile.Length, size) - _header.VirtualSize;
        if (stale > 0)
            _dataFile.WriteZeroes(_header.VirtualSize, stale);
        if (_dataFile.Length < size)
            _dataFile.SetLength(size);
        _dataFile.Sync();
    }

    // The engine refuses an entry of an external data file that leads to another place than the guest's. What is past the disk's end it is
    // asked about only when the change has begun.
    private void RequireOwnPlaces(L1Entry[] l1)
    {
        byte[] table = new byte[_header.ClusterSize];
        long firstCluster = _header.VirtualSize >> _header.ClusterBits;
        for (int i = (int)Math.Min(firstCluster / _header.L2Entries, l1.Length); _header.HasExternalDataFile && i < l1.Length; i++)
        {
            if (!l1[i].IsAllocated)
                continue;
            _file.Read(l1[i].TableOffset, table);
            long first = (long)i * _header.L2Entries;
            for (int at = 0; at < _header.L2Entries; at++)
            {
                L2Entry entry = L2Entry.Read(table.AsSpan(at * _header.L2EntrySize));
                if (first + at >= firstCluster && entry.HostOffset.Value != 0 && entry.HostOffset.Value != (first + at) << _header.ClusterBits)
                    throw Refused(_file, $"past the disk's end an entry leads to byte {entry.HostOffset.Value} of the data file, expected {(first + at) << _header.ClusterBits}", "restore the image from a copy");
            }
        }
    }

    /// <summary>The end of the last cluster that has an entry and reaches past the disk's end, or 0.</summary>
    private long MappedEnd(L1Entry[] l1)
    {
        byte[] table = new byte[_header.ClusterSize];
        long firstCluster = _header.VirtualSize >> _header.ClusterBits;
        for (int i = l1.Length - 1; i >= firstCluster / _header.L2Entries; i--)
        {
            if (!l1[i].IsAllocated)
                continue;
            _file.Read(l1[i].TableOffset, table);
            long first = Math.Max(firstCluster - (long)i * _header.L2Entries, 0);
            int last = table.AsSpan((int)first * _header.L2EntrySize).LastIndexOfAnyExcept((byte)0);
            if (last >= 0)
                return ((long)i * _header.L2Entries + first + last / _header.L2EntrySize + 1) << _header.ClusterBits;
        }

        return 0;
    }

    // The engine knows how to zero shared, compressed and partial clusters; it is told the size that is to come. The bitmaps are marked,
    // so it leaves them alone.
    private void WriteZeroes(long from, long end, long size, IDiskImage? backing)
    {
        Qcow2Header now = Qcow2HeaderReader.Read(_file);
        Qcow2Header coming = now with { VirtualSize = size, AutoclearFeatures = now.AutoclearFeatures & ~AutoclearFeatures.InUse | (_header.AutoclearFeatures & AutoclearFeatures.InUse) };
        OpenOptions options = new() { Writable = true, CommitInterval = TimeSpan.Zero, BackgroundRecovery = false };
        IStorage? data = _dataFile is null ? null : new BorrowedStorage(_dataFile);
        using IDiskImage disk = Qcow2Image.Open(new Qcow2Parts(coming, new BorrowedStorage(_file), data, backing, options));
        disk.WriteZeroes(from, end - from);
        disk.Sync();
        disk.Close();
    }

    private void Shrink(long size)
    {
        long keptClusters = (size + _header.ClusterSize - 1) >> _header.ClusterBits;
        L1Entry[] old = _edit.ReadL1(_header.L1Offset, _header.L1Size);
        L1Entry[] l1 = [.. old];
        Cut cut = new((int)(keptClusters / _header.L2Entries), (int)(keptClusters % _header.L2Entries));
        if (cut.Kept > 0 && cut.Index < l1.Length && l1[cut.Index].IsAllocated)
        {
            cut = cut with { Table = new byte[_header.ClusterSize] };
            _file.Read(l1[cut.Index].TableOffset, cut.Table);
            if (_edit.Counts[l1[cut.Index].TableOffset >> _header.ClusterBits] > 1) // Z4
                l1[cut.Index] = L1Entry.Table(_edit.Counts.Take(_header.ClusterSize), copied: true);
        }

        Array.Clear(l1, cut.FirstDropped, l1.Length - cut.FirstDropped);
        BeginUse();
        bool copies = cut.Table is not null && l1[cut.Index] != old[cut.Index];
        if (copies)
            WriteCut(cut, l1[cut.Index]);
        _bitmaps.WriteNew();
        _edit.Counts.WriteRaised();
        Qcow2HeaderSector.Change(_file, sector => sector.SetVirtualSize(size)); // Z3
        if (cut.Table is not null && !copies)
            WriteCut(cut, l1[cut.Index]);
        _edit.OverwriteL1(_header.L1Offset, l1);
        _file.Sync();
        _bitmaps.Switch();
        int needed = Math.Max((int)_header.L1EntriesFor(size), 1);
        if (needed < l1.Length)
            Qcow2HeaderSector.Change(_file, sector => sector.SetL1(_header.L1Offset, needed));
        LowerDropped(old, cut, copies);
        LowerL1(Math.Min(needed, l1.Length), l1.Length);
        _bitmaps.Lower();
        _edit.Counts.WriteLowered();
        // What shared a cluster with the part that is gone may be its only mapping now.
        if (!_header.HasExternalDataFile)
            _edit.RebuildCopied(l1[..Math.Min(needed, l1.Length)], _header.L1Offset);
        ShrinkDataFile(size);
        EndUse();
    }

    private void WriteCut(Cut cut, L1Entry entry)
    {
        byte[] table = [.. cut.Table!];
        table.AsSpan(cut.Kept * _header.L2EntrySize).Clear();
        _file.Write(entry.TableOffset, table);
    }

    private void LowerDropped(L1Entry[] old, Cut cut, bool copied)
    {
        // Clusters of an external data file are not counted.
        Action<long> lower = _header.HasExternalDataFile ? static _ => { } : _edit.Counts.Lower;
        if (cut.Table is not null)
            _edit.WalkTable(cut.Table, cut.Kept, lower);
        if (copied)
            _edit.Counts.Lower(old[cut.Index].TableOffset >> _header.ClusterBits);
        byte[] table = new byte[_header.ClusterSize];
        for (int i = cut.FirstDropped; i < old.Length; i++)
        {
            if (!old[i].IsAllocated)
                continue;
            _file.Read(old[i].TableOffset, table);
            _edit.WalkTable(table, 0, lower);
            _edit.Counts.Lower(old[i].TableOffset >> _header.ClusterBits);
        }
    }

    // The clusters at the end of the L1 table that no entry is left in.
    private void LowerL1(int kept, int had)
    {
        long used = (kept * (long)L1Entry.Size + _header.ClusterSize - 1) & -_header.ClusterSize;
        _edit.Counts.LowerRegion(_header.L1Offset + used, Math.Max(had * (long)L1Entry.Size - used, 0));
    }

    private void ShrinkDataFile(long size)
    {
        if (_dataFile is null || _dataFile.Length <= size)
            return;
        _dataFile.SetLength(size);
        _dataFile.Sync();
    }

    /// <summary>Where shrinking cuts the L1 table.</summary>
    /// <param name="Index">The entry that the new end falls into.</param>
    /// <param name="Kept">Entries of its L2 table that stay.</param>
    private readonly record struct Cut(int Index, int Kept)
    {
        /// <summary>The L2 table of which a part stays, as it was; null where there is none.</summary>
        public byte[]? Table { get; init; }

        /// <summary>The first L1 entry of which nothing stays.</summary>
        public int FirstDropped => Table is null ? Index : Index + 1;
    }

    private static ImageFormatException Refused(IStorage file, string problem, string advice) => new(file.Name, "size", -1, problem, advice);
}
