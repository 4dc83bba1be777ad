// New refcount structures for an image whose own are unsound: blocks and table are written behind the end of the file, where nothing
// is, and take effect by one write of the header's first sector.
//
// B1. Nothing of the old structures is written. Until the header is switched the image is what it was, only longer.
// B2. The new counts do not count the old table and blocks: the switch frees them, unless something else refers to them.
// B3. Where references are unknown no count becomes lower than it was.
using System.Buffers.Binary;
using System.Collections;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>One rebuild. Used by one thread.</summary>
internal sealed class RefcountRebuild
{
    private const int HeaderSector = 512;

    private readonly Qcow2Header _old;
    private readonly IStorage _file;
    private readonly RefcountTable _stored;
    private readonly Qcow2SnapshotTable _snapshots;
    private readonly IReadOnlyList<Qcow2Bitmap> _bitmaps;
    private readonly bool _keepHigher;
    private readonly int _blocksInWindow;
    private BitArray _needed = new(0);
    private long _firstFree;

    private RefcountRebuild(Qcow2Header header, IStorage file, bool keepHigher, int windowClusters)
    {
        _old = header;
        _file = file;
        _stored = new RefcountTable(header, file);
        _snapshots = Qcow2SnapshotTable.Read(header, file);
        _bitmaps = BitmapDirectory.Read(header, file);
        _keepHigher = keepHigher;
        _blocksInWindow = (int)Math.Max(1, windowClusters / header.RefcountsPerBlock);
    }

    /// <summary>Rebuilds, durably. False, with nothing changed, where the table would become larger than what can be opened.</summary>
    /// <param name="file">The image file, writable.</param>
    /// <param name="keepHigher">Keep stored counts that are above the references found.</param>
    /// <param name="windowClusters">Clusters to count at a time, rounded to whole blocks.</param>
    public static bool TryRun(IStorage file, bool keepHigher, int windowClusters) =>
        new RefcountRebuild(Qcow2HeaderReader.Read(file), file, keepHigher, windowClusters).TryRun();

    private bool TryRun()
    {
        FindNeededBlocks();
        long tableClusters = Lay(out long blocks);
        if (tableClusters << _old.ClusterBits > Qcow2Limits.MaxRefcountTableBytes)
            return false;

        _file.SetLength((_firstFree + tableClusters + blocks) << _old.ClusterBits);
        Qcow2Header header = _old with
        {
            RefcountTableOffset = _firstFree << _old.ClusterBits,
            RefcountTableClusters = (int)tableClusters,
        };
        RefcountTableEntry[] entries = PlaceBlocks(header);
        WriteBlocks(header, entries);
        WriteTable(header, entries);
        _file.Sync();
        SwitchHeader(header);
        _file.Sync();
        return true;
    }

    private void FindNeededBlocks()
    {
        Qcow2Header bare = _old with { RefcountTableOffset = 0, RefcountTableClusters = 0 };
        ReferenceCounter counter = new(bare, _file, [], _snapshots, _bitmaps, visitor: null);
        _firstFree = counter.ClusterCount;
        _needed = new BitArray((int)(counter.ClusterCount / _old.RefcountsPerBlock + 1));
        for (int i = 0; _keepHigher && i < _needed.Length; i++)
            _needed[i] = _stored.HasBlock(i);
        ReferenceWindow window = NewWindow(counter);
        for (long first = 0; first <= counter.ClusterCount; first = Math.Max(window.End, window.NextReferenced))
        {
            counter.Count(first, window);
            for (long cluster = window.First; cluster < window.End; cluster++)
            {
                if (window[cluster] == 0)
                    continue;
                _needed[(int)(cluster / _old.RefcountsPerBlock)] = true;
                // The last compressed stream may seem to reach behind the end.
                _firstFree = Math.Max(_firstFree, cluster + 1);
            }
        }
    }

    // The new structures are counted by blocks that are among them: their size is the least that covers itself. Gives the clusters of
    // the table.
    private long Lay(out long blocks)
    {
        long tableClusters = 1;
        blocks = 1;
        while (true)
        {
            long last = (_firstFree + tableClusters + blocks - 1) / _old.RefcountsPerBlock;
            long table = ((last + 1) * RefcountTableEntry.Size + _old.ClusterSize - 1) >> _old.ClusterBits;
            long own = _firstFree / _old.RefcountsPerBlock;
            long needed = last - own + 1;
            for (int i = 0; i < _needed.Length; i++)
                needed += i < own && _needed[i] ? 1 : 0;
            if (table == tableClusters && needed == blocks)
                break;
            tableClusters = Math.Max(table, tableClusters);
            blocks = Math.Max(needed, blocks);
        }

        return tableClusters;
    }

    private RefcountTableEntry[] PlaceBlocks(Qcow2Header header)
    {
        long own = _firstFree / header.RefcountsPerBlock;
        long end = _file.Length >> header.ClusterBits;
        long last = (end - 1) / header.RefcountsPerBlock;
        long place = _firstFree + header.RefcountTableClusters;
        RefcountTableEntry[] entries = new RefcountTableEntry[(header.RefcountTableClusters << header.ClusterBits) / RefcountTableEntry.Size];
        for (int i = 0; i <= last; i++)
        {
            if (i >= own || _needed[i])
                entries[i] = RefcountTableEntry.Block(place++ << header.ClusterBits);
        }

        return entries;
    }

    private void WriteBlocks(Qcow2Header header, RefcountTableEntry[] entries)
    {
        ReferenceCounter counter = new(header, _file, entries, _snapshots, _bitmaps, visitor: null);
        ReferenceWindow window = NewWindow(counter);
        byte[] block = new byte[header.ClusterSize];
        for (int i = 0; i < entries.Length; i++)
        {
            if (!entries[i].IsAllocated)
                continue;
            long first = i * header.RefcountsPerBlock;
            // A window holds whole blocks, since the first begins with one.
            if (!window.Contains(first))
                counter.Count(first, window);
            FillBlock(block, first, window);
            _file.Write(entries[i].BlockOffset, block);
        }
    }

    private void FillBlock(Span<byte> block, long first, ReferenceWindow window)
    {
        block.Clear();
        for (long cluster = first; cluster < Math.Min(window.End, first + _old.RefcountsPerBlock); cluster++)
        {
            ulong count = Math.Min(window[cluster], _old.MaxRefcount);
            if (_keepHigher && _stored.IsReadable(_stored.BlockOf(cluster)))
                count = Math.Max(count, _stored[cluster]);
            RefcountEncoding.Set(block, (int)(cluster - first), _old.RefcountOrder, count);
        }
    }

    private void WriteTable(Qcow2Header header, RefcountTableEntry[] entries)
    {
        byte[] table = new byte[entries.Length * RefcountTableEntry.Size];
        for (int i = 0; i < entries.Length; i++)
            entries[i].WriteTo(table.AsSpan(i * RefcountTableEntry.Size));
        _file.Write(header.RefcountTableOffset, table);
    }

    private void SwitchHeader(Qcow2Header header)
    {
        byte[] sector = new byte[HeaderSector];
        _file.Read(0, sector);
        BinaryPrimitives.WriteInt64BigEndian(sector.AsSpan(Qcow2HeaderLayout.RefcountTableOffsetAt), header.RefcountTableOffset);
        BinaryPrimitives.WriteInt32BigEndian(sector.AsSpan(Qcow2HeaderLayout.RefcountTableClustersAt), header.RefcountTableClusters);
        _file.Write(0, sector);
    }

    private ReferenceWindow NewWindow(ReferenceCounter counter)
    {
        long blocks = Math.Min(_blocksInWindow, counter.ClusterCount / _old.RefcountsPerBlock + 1);
        return new ReferenceWindow((int)(blocks * _old.RefcountsPerBlock));
    }
}
