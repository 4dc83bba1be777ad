// How the block map changes: reserve, publish, publish zero. The engine's range lock keeps two changes of one block apart.
using System.Buffers.Binary;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Vhdx;

/// <content>Changing members.</content>
internal sealed partial class VhdxBlockMap
{
    // Host space of the table is made sure of in pieces of this size before the first change in one.
    private const int ReservedPieceBits = 16;

    private readonly Lock _structureLock = new(); // creation of sector bitmap blocks, held across I/O; guards _reservedPieces
    private readonly HashSet<long> _reservedPieces = [];

    public Reservation Reserve(long offset, long length)
    {
        long block = offset >> _blockBits;
        long start = block << _blockBits;
        long end = start + _blockMask + 1;
        long stop = Math.Min(offset + length, end);
        EnsureTableSpace(_geometry.PayloadIndex(block));
        BatEntry entry = ReadEntry(_geometry.PayloadIndex(block));
        Invariant.Require(entry.State != BlockState.FullyPresent, "a block that is present is written in place");
        if (entry.State == BlockState.PartiallyPresent)
            return new Reservation(SectorFloor(offset), SectorCeiling(stop), entry.Offset + SectorFloor(offset) - start, ReadsAsZero: false, InPlace: true);

        // What is not the guest's in the block is the parent's, sector by sector, unless the block was made zero.
        bool inSectors = _geometry.HasParent && entry.State == BlockState.NotPresent && stop - offset <= _blockMask;
        if (inSectors)
            EnsureBitmap(block);
        long host = _state.Space!.Take(_geometry.BlockSize, out bool grown);
        if (grown)
            _state.NoteGrowth();
        return inSectors
            ? new Reservation(SectorFloor(offset), SectorCeiling(stop), host + SectorFloor(offset) - start, ReadsAsZero: true, InPlace: false)
            : new Reservation(start, end, host, ReadsAsZero: true, InPlace: false);
    }

    public void Publish(in Reservation reservation)
    {
        long block = reservation.Start >> _blockBits;
        long start = block << _blockBits;
        long host = reservation.Host - (reservation.Start - start);
        using PinnedPages pins = new(_cache);
        MetadataPage table = pins.Add(PageOf(EntryOffset(_geometry.PayloadIndex(block))));
        bool whole = reservation.End - reservation.Start == _blockMask + 1;
        long bitmap = whole ? 0 : PageOf((BitmapBlock(block) ?? throw BadEntry(start, "its sector bitmap block is not there")) + (BitOf(start) >> 3));
        if (!whole)
            pins.AddRange(bitmap, ((_geometry.BlockSize >> _sectorBits) >> 3) - 1);
        lock (_cache.Gate)
        {
            if (whole)
            {
                SetEntry(table, block, new BatEntry(BlockState.FullyPresent, host));
                return;
            }

            // M3, M4
            if (!reservation.InPlace)
                ChangeBits(pins, start, start, start + _blockMask + 1, value: false);
            ChangeBits(pins, start, reservation.Start, reservation.End, value: true);
            bool complete = BlockIsComplete(pins, start);
            if (complete || !reservation.InPlace)
                SetEntry(table, block, new BatEntry(complete ? BlockState.FullyPresent : BlockState.PartiallyPresent, host));
        }
    }

    public void Abandon(in Reservation reservation)
    {
        if (reservation.InPlace)
            return;
        long host = reservation.Host - (reservation.Start & _blockMask);
        // Something may have been written there, and free space reads as zeros.
        if (_state.Latch.Reason is null)
        {
            _file.Discard(host, _geometry.BlockSize);
            _state.Space!.Free(host, _geometry.BlockSize);
        }
    }

    public bool TryPublishZero(long offset, long length)
    {
        long first = offset >> _blockBits;
        long end = (offset + length + _blockMask) >> _blockBits;
        if (_state.Layout.Metadata.LeavesBlocksAllocated)
            return false;
        while (first < end)
        {
            long index = _geometry.PayloadIndex(first);
            EnsureTableSpace(index);
            long pageOffset = PageOf(EntryOffset(index));
            using PinnedPages pins = new(_cache);
            MetadataPage table = pins.Add(pageOffset);
            lock (_cache.Gate)
            {
                for (; first < end && PageOf(EntryOffset(_geometry.PayloadIndex(first))) == pageOffset; first++)
                    MakeZero(table, first);
            }
        }

        return true;
    }

    /// <summary>Call under the gate.</summary>
    private void MakeZero(MetadataPage table, long block)
    {
        BatEntry entry = Entry(table, EntryAt(block));
        if (entry.PayloadProblem(_geometry, block, _file.Length) is { } problem)
            throw BadEntry(block << _blockBits, problem);
        if (entry.HasData)
            _state.Remove(entry.Offset, _geometry.BlockSize); // M5
        else if (entry.State != BlockState.NotPresent || !_geometry.HasParent)
            return;
        SetEntry(table, block, new BatEntry(BlockState.Zero, 0));
    }

    /// <summary>Makes sure that the host has space for a part of the table, so that no commit meets a full host there.</summary>
    private void EnsureTableSpace(long index)
    {
        long piece = EntryOffset(index) >> ReservedPieceBits;
        lock (_structureLock)
        {
            if (_reservedPieces.Contains(piece))
                return;
            _file.Reserve(piece << ReservedPieceBits, 1 << ReservedPieceBits);
            _reservedPieces.Add(piece);
        }
    }

    /// <summary>Makes the sector bitmap block of a block's chunk where there is none. It reads as zeros: no sector is here yet.</summary>
    private void EnsureBitmap(long block)
    {
        long index = _geometry.BitmapIndex(block >> _geometry.RatioBits);
        lock (_structureLock)
        {
            if (BitmapBlock(block) is not null)
                return;
            EnsureTableSpace(index);
            using PinnedPages pins = new(_cache);
            MetadataPage table = pins.Add(PageOf(EntryOffset(index)));
            long host = _state.Space!.Take(VhdxLimits.BitmapBlockSize, out bool grown);
            if (grown)
                _state.NoteGrowth();
            bool reserved = false;
            try
            {
                _file.Reserve(host, VhdxLimits.BitmapBlockSize);
                reserved = true;
            }
            finally
            {
                if (!reserved)
                    _state.Space.Free(host, VhdxLimits.BitmapBlockSize);
            }

            lock (_cache.Gate)
                Set(table, (int)(EntryOffset(index) & (VhdxLimits.SectorSize - 1)), new BatEntry(BlockState.FullyPresent, host));
        }
    }

    /// <summary>Changes the bits of a guest range in the pinned pages of its block's bits. Call under the gate.</summary>
    private void ChangeBits(PinnedPages pins, long blockStart, long start, long end, bool value)
    {
        long firstPage = BitOf(blockStart) / SectorBitmap.BitsPerPage;
        long bit = BitOf(start);
        for (long left = (end - start) >> _sectorBits; left > 0;)
        {
            int inPage = (int)(bit & (SectorBitmap.BitsPerPage - 1));
            int count = (int)Math.Min(left, SectorBitmap.BitsPerPage - inPage);
            MetadataPage page = pins[1 + (int)(bit / SectorBitmap.BitsPerPage - firstPage)];
            // Pages that say so already are not logged.
            if (SectorBitmap.Get(page.Bytes, inPage) != value || SectorBitmap.RunLength(page.Bytes, inPage, count) < count)
            {
                _cache.BeginChange(page, CommitStage.Counts);
                SectorBitmap.Fill(page.Bytes, inPage, count, value);
                page.EndChange();
            }

            bit += count;
            left -= count;
        }
    }

    /// <summary>Whether every sector of a block is in this file. Only asked where one page tells. Call under the gate.</summary>
    private bool BlockIsComplete(PinnedPages pins, long start)
    {
        int sectors = _geometry.BlockSize >> _sectorBits;
        if (sectors > SectorBitmap.BitsPerPage)
            return false;
        int first = (int)(BitOf(start) & (SectorBitmap.BitsPerPage - 1));
        ReadOnlySpan<byte> page = pins[1].Bytes;
        return SectorBitmap.Get(page, first) && SectorBitmap.Get(page, first + sectors - 1) && SectorBitmap.RunLength(page, first, sectors) == sectors;
    }

    private int EntryAt(long block) => (int)(EntryOffset(_geometry.PayloadIndex(block)) & (VhdxLimits.SectorSize - 1));

    private void SetEntry(MetadataPage table, long block, BatEntry entry) => Set(table, EntryAt(block), entry);

    private void Set(MetadataPage table, int at, BatEntry entry)
    {
        _cache.BeginChange(table, CommitStage.Links);
        BinaryPrimitives.WriteUInt64LittleEndian(table.Bytes[at..], entry.Raw);
        table.EndChange();
    }

    private long SectorFloor(long offset) => offset & -_geometry.SectorSize;

    private long SectorCeiling(long offset) => (offset + _geometry.SectorSize - 1) & -_geometry.SectorSize;
}
