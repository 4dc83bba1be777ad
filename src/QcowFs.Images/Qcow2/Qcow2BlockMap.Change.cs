// How the block map changes: reserve, publish, zero. The invariants are at the head of Qcow2BlockMap.cs.
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Qcow2;

/// <content>Changes of the mapping.</content>
internal sealed partial class Qcow2BlockMap
{
    private HostAllocator Allocator => _state.Allocator!;

    public Reservation Reserve(long offset, long length)
    {
        _space.EnsureTable(TableIndex(offset));
        long block = offset & ~_clusterMask;
        long end = Math.Min(offset + length, (TableIndex(offset) + 1L) << (_clusterBits + _tableBits));
        Qcow2Slot first = ReadSlot(block);
        RequireReplaceable(first, block);
        long start = first.NeedsWholeCluster ? block : offset & -(1L << _subBits);
        long runEnd = EndIn(block, end, first);
        if (_external)
            return new Reservation(start, Math.Min(runEnd, _header.VirtualSize), start, ReadsAsZero: false, InPlace: true);
        if (first.OwnsHost)
            return new Reservation(start, runEnd, first.Entry.HostOffset.Value + (start - block), ReadsAsZero: false, InPlace: true);

        // A run of blocks that all need new clusters; one that is asked for only in part ends it.
        long count = 1;
        for (long next = block + _clusterMask + 1; next < end && runEnd == next; next += _clusterMask + 1, count++)
        {
            Qcow2Slot slot = ReadSlot(next);
            if (slot.OwnsHost)
                break;
            RequireReplaceable(slot, next);
            runEnd = EndIn(next, end, slot);
        }

        ClusterRun run = _space.TakeCounted(count);
        return new Reservation(
            start,
            Math.Min(runEnd, block + (run.Count << _clusterBits)),
            (run.First << _clusterBits) + (start - block),
            run.ReadsAsZero,
            InPlace: false);
    }

    public void Publish(in Reservation reservation)
    {
        Placement at = PlacementOf(reservation);
        using PinnedPages pins = new(_cache);
        pins.AddRange(TableEntryOffset(at.Block), (at.Count - 1L) << _entryBits);
        int tablePages = pins.Count;
        if (!reservation.InPlace)
            _space.PinCounts(pins, at.HostCluster, at.Count);
        lock (_cache.Gate)
        {
            // M2: from here on nothing can fail.
            if (!reservation.InPlace)
                _space.RaiseCounts(pins, tablePages, at.HostCluster, at.Count);
            for (int i = 0; i < at.Count; i++)
            {
                long block = at.Block + ((long)i << _clusterBits);
                Qcow2Slot old = SlotIn(PageFor(pins, at.Block, block), block);
                HostOffset host = new(at.Host + (block - at.Block));
                ReplaceSlot(pins, at.Block, block, old, old.WithData(host, Covered(block, reservation.Start, reservation.End)));
            }
        }
    }

    public void Abandon(in Reservation reservation)
    {
        // With a journal a record may list what was written there (J5); the next mount finds it free.
        if (reservation.InPlace || _state.Guard is not null)
            return;
        Placement at = PlacementOf(reservation);
        lock (_cache.Gate)
            Allocator.Free(new ClusterRun(at.HostCluster, at.Count, ReadsAsZero: false));
    }

    public int Compress(ReadOnlySpan<byte> block, Span<byte> stream) => CompressedClusters.Compress(_header.CompressionType, block, stream);

    public bool TryReserveCompressed(long block, int length, out CompressedReservation reservation)
    {
        reservation = default;
        if (_compressedSpace is null)
            return false;
        _space.EnsureTable(TableIndex(block));
        Qcow2Slot slot = ReadSlot(block);
        RequireReplaceable(slot, block);
        if (slot.Entry.IsCompressed || slot.Entry.HasHostCluster || !_compressedSpace.TryReserve(length, out long host))
            return false;
        reservation = new CompressedReservation(block, host, length);
        return true;
    }

    public void PublishCompressed(in CompressedReservation reservation)
    {
        long block = reservation.Block;
        using PinnedPages pins = new(_cache);
        pins.AddRange(TableEntryOffset(block), 0);
        lock (_cache.Gate)
        {
            L2Entry entry = CompressedDescriptor.Entry(reservation.Host, reservation.Length, _clusterBits);
            ReplaceSlot(pins, block, block, SlotIn(pins[0], block), new Qcow2Slot(entry, default, _extended));
        }

        _compressedSpace!.Complete();
    }

    public void AbandonCompressed(in CompressedReservation reservation)
    {
        lock (_cache.Gate)
            RemoveStream(reservation.Host, reservation.Host + reservation.Length);
        _compressedSpace!.Complete();
    }

    public bool TryPublishZero(long offset, long length)
    {
        // Version 2 cannot say "zeros" where a backing would show through.
        if (_hasBacking && _header.Version < 3)
            return false;
        long end = offset + length;
        while (offset < end)
        {
            int table = TableIndex(offset);
            long tableEnd = Math.Min(end, (table + 1L) << (_clusterBits + _tableBits));
            if (!_hasBacking && !new L1Entry(L1[table]).IsAllocated)
            {
                offset = tableEnd;
                continue;
            }

            _space.EnsureTable(table);
            long pageEnd = Math.Min(tableEnd, PageCoverageEnd(offset));
            if (!TryZeroOnPage(offset, pageEnd))
                return false;
            offset = pageEnd;
        }

        return true;
    }

    /// <summary>Zeroes a range whose slots are on one page. False, with nothing changed, where a compressed cluster is covered only
    /// in part.</summary>
    private bool TryZeroOnPage(long offset, long end)
    {
        long firstBlock = offset & ~_clusterMask;
        using PinnedPages pins = new(_cache);
        pins.AddRange(TableEntryOffset(firstBlock), 0);

        // An external file keeps a guest block's place for ever, so its space is punched at once: until the mapping's removal is
        // durable the block reads as zeros either way, and a raw external file must read as the guest does.
        if (_external)
            _data.Discard(offset, Math.Min(end, _header.VirtualSize) - offset);
        lock (_cache.Gate)
        {
            for (long block = firstBlock; block < end; block += _clusterMask + 1)
            {
                Qcow2Slot slot = SlotIn(pins[0], block);
                RequireReplaceable(slot, block);
                if (slot.Entry.IsCompressed && Covered(block, offset, end) != uint.MaxValue && _extended)
                    return false;
            }

            for (long block = firstBlock; block < end; block += _clusterMask + 1)
            {
                Qcow2Slot old = SlotIn(pins[0], block);
                Qcow2Slot next = old.WithZeros(Covered(block, offset, end), _hasBacking);
                if (next != old)
                    ReplaceSlot(pins, firstBlock, block, old, next);
            }
        }

        return true;
    }

    /// <summary>Throws where a slot is not sound, or refers to what no refcount block counts: what it refers to could not be given up,
    /// or would be what it must not be (MetadataMap, P3).</summary>
    private void RequireReplaceable(Qcow2Slot slot, long block)
    {
        string? problem = _extended
            ? ClassifyExtended(slot.Entry, slot.Bitmap, block, out _, out _)
            : Classify(slot.Entry, block, out _, out _);
        if (problem is not null)
            throw BadEntry(PageOf(TableEntryOffset(block)), block, Scan.Bad(problem, slot.Entry.Raw));
        if (slot.Entry.IsCompressed)
        {
            CompressedDescriptor stream = CompressedDescriptor.Of(slot.Entry, _clusterBits);
            _state.Refcounts.RequireCounted(stream.Offset, stream.Length);
        }
        else if (!_external && slot.Entry.HasHostCluster)
        {
            _state.Refcounts.RequireCounted(slot.Entry.HostOffset.Value, 1);
        }
    }

    /// <summary>Writes a slot and notes what the old one referred to (M4). Under the gate.</summary>
    private void ReplaceSlot(PinnedPages pins, long firstBlock, long block, Qcow2Slot old, Qcow2Slot next)
    {
        MetadataPage page = PageFor(pins, firstBlock, block);
        int index = (int)((TableEntryOffset(block) & (_cache.PageSize - 1)) >> 3);
        _cache.BeginChange(page, CommitStage.Links);
        page.Entries[index] = ToDisk(next.Entry.Raw);
        if (_extended)
            page.Entries[index + 1] = ToDisk(next.Bitmap.Raw);
        page.EndChange();
        if (old.Entry.IsCompressed)
        {
            CompressedDescriptor stream = CompressedDescriptor.Of(old.Entry, _clusterBits);
            RemoveStream(stream.Offset, stream.End);
        }
        else if (!_external && old.Entry.HasHostCluster && (!next.Entry.HasHostCluster || next.Entry.HostOffset != old.Entry.HostOffset))
        {
            _state.Remove(new Removal(old.Entry.HostOffset.Value, _clusterMask + 1, RemovalKind.Data));
        }
    }

    private void RemoveStream(long start, long end)
    {
        long from = start & ~_clusterMask;
        _state.Remove(new Removal(from, ((end + _clusterMask) & ~_clusterMask) - from, RemovalKind.Compressed));
    }

    /// <summary>A slot's value now. The caller holds the block's range lock, so the value stays; the page may not.</summary>
    private Qcow2Slot ReadSlot(long block)
    {
        long pageOffset = PageOf(TableEntryOffset(block));
        while (true)
        {
            MetadataPage page = _cache.Get(pageOffset);
            int sequence = page.Sequence;
            if ((sequence & 1) == 0 && page.Offset == pageOffset)
            {
                Qcow2Slot slot = SlotIn(page, block);
                Volatile.ReadBarrier();
                if (page.Sequence == sequence)
                    return slot;
            }

            Thread.SpinWait(8);
        }
    }

    private Qcow2Slot SlotIn(MetadataPage page, long block)
    {
        int index = (int)((TableEntryOffset(block) & (_cache.PageSize - 1)) >> 3);
        L2Entry entry = new(FromDisk(page.Entries[index]));
        return new Qcow2Slot(entry, _extended ? new SubclusterBitmap(FromDisk(page.Entries[index + 1])) : default, _extended);
    }

    /// <summary>The end of what must be filled in a block when a request ends at <paramref name="end"/>.</summary>
    private long EndIn(long block, long end, Qcow2Slot slot)
    {
        long blockEnd = block + _clusterMask + 1;
        long subMask = (1L << _subBits) - 1;
        return slot.NeedsWholeCluster ? blockEnd : Math.Min(blockEnd, (end + subMask) & ~subMask);
    }

    /// <summary>Bit i: subcluster i of the block lies in the range; all bits where there are no subclusters.</summary>
    private uint Covered(long block, long start, long end)
    {
        if (!_extended)
            return uint.MaxValue;
        long subMask = (1L << _subBits) - 1;
        int first = (int)(Math.Max(start - block, 0) >> _subBits);
        int last = (int)((Math.Min(end - block, _clusterMask + 1) + subMask) >> _subBits);
        return (uint)(((1UL << last) - 1) & ~((1UL << first) - 1));
    }

    private Placement PlacementOf(in Reservation reservation)
    {
        long block = reservation.Start & ~_clusterMask;
        long host = reservation.Host - (reservation.Start - block);
        return new Placement(block, host, host >> _clusterBits, (int)((reservation.End - block + _clusterMask) >> _clusterBits));
    }

    private MetadataPage PageFor(PinnedPages pins, long firstBlock, long block) =>
        pins[(int)((PageOf(TableEntryOffset(block)) - PageOf(TableEntryOffset(firstBlock))) / _cache.PageSize)];

    private int TableIndex(long guest) => (int)(guest >> (_clusterBits + _tableBits));

    /// <summary>Host offset of a guest cluster's L2 entry. Its table exists.</summary>
    private long TableEntryOffset(long guest)
    {
        int index = TableIndex(guest);
        return EntryOffset(CheckTable(new L1Entry(L1[index]), index), guest);
    }

    /// <summary>The first guest offset whose L2 entry is on a later page.</summary>
    private long PageCoverageEnd(long guest)
    {
        int pageBits = System.Numerics.BitOperations.Log2((uint)_cache.PageSize) - _entryBits + _clusterBits;
        return ((guest >> pageBits) + 1) << pageBits;
    }

    /// <summary>Whole clusters that a reservation covers.</summary>
    private readonly record struct Placement(long Block, long Host, long HostCluster, int Count);
}
