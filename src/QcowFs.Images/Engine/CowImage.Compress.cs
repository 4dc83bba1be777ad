// How the engine stores new blocks compressed, where it was told to: only whole blocks that have no host space yet. All other writes,
// and blocks that do not become smaller, go the plain way.
using System.Buffers;

namespace QcowFs.Images.Engine;

/// <content>Writing compressed blocks.</content>
internal sealed partial class CowImage
{
    private void WriteCompressing(ICompressingMap map, long offset, ReadOnlySpan<byte> source)
    {
        while (source.Length > 0)
        {
            int piece = (int)Math.Min(source.Length, (offset | _blockMask) + 1 - offset);
            ReadOnlySpan<byte> block = source[..piece];
            bool isWhole = (offset & _blockMask) == 0 && (piece == _blockMask + 1 || offset + piece == Length);
            if (!isWhole || !block.ContainsAnyExcept((byte)0) || !TryWriteCompressed(map, offset, block))
                WritePlain(offset, block);
            offset += piece;
            source = source[piece..];
        }
    }

    /// <summary>Stores a whole block compressed. False, with nothing written, where it is to be written as it is.</summary>
    private bool TryWriteCompressed(ICompressingMap map, long offset, ReadOnlySpan<byte> block)
    {
        // A first look spares the work; the reservation decides, under the range lock.
        if (!HasNoData(offset, block.Length))
            return false;
        byte[] stream = ArrayPool<byte>.Shared.Rent(_map.Traits.BlockSize);
        try
        {
            int length = Compress(map, block, stream.AsSpan(0, _map.Traits.BlockSize));
            bool placed = false;
            if (length > 0)
                Allocating(offset, block.Length, stream.AsSpan(0, length), (image, at, bytes) =>
                {
                    placed = image.PlaceCompressed(map, at, bytes);
                    return true;
                });
            return placed;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(stream);
        }
    }

    /// <summary>Compresses a block; one that the disk's end cuts is filled with zeros.</summary>
    private int Compress(ICompressingMap map, ReadOnlySpan<byte> block, Span<byte> stream)
    {
        if (block.Length == stream.Length)
            return map.Compress(block, stream);
        byte[] whole = ArrayPool<byte>.Shared.Rent(stream.Length);
        try
        {
            block.CopyTo(whole);
            whole.AsSpan(block.Length).Clear();
            return map.Compress(whole.AsSpan(0, stream.Length), stream);
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(whole);
        }
    }

    /// <summary>Reserve, write, publish.</summary>
    private bool PlaceCompressed(ICompressingMap map, long block, ReadOnlySpan<byte> stream)
    {
        if (!map.TryReserveCompressed(block, stream.Length, out CompressedReservation reservation))
            return false;
        bool published = false;
        try
        {
            WriteFresh(reservation.Host, stream);
            _dataDirty = true; // I1: before a commit can see the mapping
            map.PublishCompressed(reservation);
            published = true;
        }
        finally
        {
            if (!published)
                map.AbandonCompressed(reservation);
        }

        Statistics.AddAllocated(1);
        return true;
    }

    private bool HasNoData(long offset, int length)
    {
        int slot = _epoch.Enter();
        try
        {
            for (long end = offset + length; offset < end;)
            {
                Extent extent = _map.Lookup(offset, end - offset);
                if (extent.Kind is not (ExtentKind.Zero or ExtentKind.Backing))
                    return false;
                offset += extent.Length;
            }

            return true;
        }
        finally
        {
            _epoch.Exit(slot);
        }
    }
}
