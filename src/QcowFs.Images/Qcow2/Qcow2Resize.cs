// Changes the size of a qcow2 disk that nobody else has open.
//
// Z1. Growing: everything past the old end reads as zeros before the header states the new size: the rest of the last cluster, what
//     an interrupted shrinking left mapped there, what the backing image holds there.
// Z2. Growing: a larger L1 table is durable before the header names it; the old one is given up after that.
// Z3. Shrinking: the header states the new size before anything is unmapped, so that no crash shows a disk with zeros in it where
//     its size still covers them; counts are lowered when the unmapping is durable (I3).
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Resizes an image in which a check found nothing wrong.</summary>
internal sealed class Qcow2Resize
{
    private const int SizeUnit = 512;
    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly Qcow2Edit _edit;

    private Qcow2Resize(Qcow2Header header, IStorage file)
    {
        _header = header;
        _file = file;
        _edit = Qcow2Edit.Begin(header, file);
    }

    /// <summary>Gives the disk another size, durably. Faults: <see cref="ImageFormatException"/> before anything changes;
    /// <see cref="StorageException"/>, which leaves a valid image of the old or the new size.</summary>
    /// <param name="header">The image's header.</param>
    /// <param name="file">The image file, which stays the caller's.</param>
    /// <param name="backing">The backing image or null. The call owns it.</param>
    /// <param name="size">The new size in bytes.</param>
    public static void Run(Qcow2Header header, IStorage file, IDiskImage? backing, long size)
    {
        try
        {
            RequirePossible(header, file, size);
            if (size > header.VirtualSize)
                new Qcow2Resize(header, file).Grow(size, backing);
            else if (size < header.VirtualSize)
                new Qcow2Resize(header, file).Shrink(size);
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

        if (header.HasExternalDataFile)
            throw Refused(file, "the data is in an external file, which is not resized here", "use qemu-img resize");
        if (header.SnapshotCount > 0 && (header.Version < 3 || size < header.VirtualSize))
        {
            throw Refused(file, header.Version < 3
                ? "an image of version 2 that has snapshots cannot be resized" : "an image that has snapshots cannot be shrunk",
                "delete the snapshots first");
        }
    }

    private void Grow(long size, IDiskImage? backing)
    {
        Qcow2Header header = _header;
        L1Entry[] l1 = _edit.ReadL1(header.L1Offset, header.L1Size);
        int needed = (int)header.L1EntriesFor(size);
        if (needed > header.L1Size)
        {
            long offset = _edit.Counts.Take(needed * (long)L1Entry.Size);
            _edit.BeginUse(contentChanges: true);
            Array.Resize(ref l1, needed);
            _edit.WriteL1(offset, l1);
            _edit.Counts.WriteRaised();
            Qcow2HeaderSector.Change(_file, sector => sector.SetL1(offset, needed)); // Z2
            _edit.Counts.LowerRegion(header.L1Offset, header.L1Size * (long)L1Entry.Size);
            _edit.Counts.WriteLowered();
        }
        else
        {
            _edit.BeginUse(contentChanges: true);
        }

        long zeroEnd = Math.Min(size, Math.Max(MappedEnd(l1), backing?.Length ?? 0));
        if (zeroEnd > header.VirtualSize)
            WriteZeroes(header.VirtualSize, zeroEnd, size, backing); // Z1
        Qcow2HeaderSector.Change(_file, sector => sector.SetVirtualSize(size));
        _edit.EndUse(contentChanges: true);
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

    // The engine knows how to zero shared, compressed and partial clusters; it is told the size that is to come.
    private void WriteZeroes(long from, long end, long size, IDiskImage? backing)
    {
        Qcow2Header now = Qcow2HeaderReader.Read(_file);
        Qcow2Header coming = now with { VirtualSize = size, AutoclearFeatures = _header.AutoclearFeatures & (AutoclearFeatures.RawExternalData | AutoclearFeatures.InUse) };
        OpenOptions options = new() { Writable = true, CommitInterval = TimeSpan.Zero, BackgroundRecovery = false };
        using IDiskImage disk = Qcow2Image.Open(new Qcow2Parts(coming, new BorrowedStorage(_file), null, backing, options));
        disk.WriteZeroes(from, end - from);
        disk.Sync();
        disk.Close();
    }

    private void Shrink(long size)
    {
        _edit.BeginUse(contentChanges: true);
        Qcow2HeaderSector.Change(_file, sector => sector.SetVirtualSize(size)); // Z3
        long keptClusters = (size + _header.ClusterSize - 1) >> _header.ClusterBits;
        L1Entry[] l1 = _edit.ReadL1(_header.L1Offset, _header.L1Size);
        byte[] table = new byte[_header.ClusterSize];
        for (int i = (int)(keptClusters / _header.L2Entries); i < l1.Length; i++)
        {
            if (!l1[i].IsAllocated)
                continue;
            int kept = (int)Math.Max(keptClusters - (long)i * _header.L2Entries, 0);
            _file.Read(l1[i].TableOffset, table);
            _edit.WalkTable(table, kept, _edit.Counts.Lower);
            if (kept > 0)
            {
                table.AsSpan(kept * _header.L2EntrySize).Clear();
                _file.Write(l1[i].TableOffset, table);
                continue;
            }

            _edit.Counts.Lower(l1[i].TableOffset >> _header.ClusterBits);
            l1[i] = L1Entry.Unallocated;
        }

        byte[] bytes = new byte[l1.Length * L1Entry.Size];
        for (int i = 0; i < l1.Length; i++)
            l1[i].WriteTo(bytes.AsSpan(i * L1Entry.Size));
        _file.Write(_header.L1Offset, bytes);
        _file.Sync();
        _edit.Counts.WriteLowered();
        _edit.RebuildCopied(l1, _header.L1Offset); // what shared a cluster with the part that is gone may be its only mapping now
        _edit.EndUse(contentChanges: true);
    }

    private static ImageFormatException Refused(IStorage file, string problem, string advice) => new(file.Name, "size", -1, problem, advice);
}
