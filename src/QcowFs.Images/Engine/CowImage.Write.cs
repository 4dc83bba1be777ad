// How the engine changes guest data: in place where the block is the image's own, else reserve, compose, write, publish.
using System.Buffers;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Engine;

/// <content>Writing, zeroing, discarding.</content>
internal sealed partial class CowImage
{
    // One step locks and changes no more than this, so that a commit can come in between when much is dirty.
    private const long StepBlocks = 512;

    // A head or tail up to this size is copied beside the caller's bytes and written with them; a larger one is written alone.
    private const int ComposeLimit = 256 * 1024;

    public void Write(long offset, ReadOnlySpan<byte> source)
    {
        CheckRange(offset, source.Length, "write");
        BeginChange();
        _parts.Changes?.Note(offset, source.Length);
        Statistics.AddWritten(source.Length);
        if (_map.IsComplete)
        {
            // No mapping changes any more, so nothing needs a lock.
            _data.Write(offset, source);
            _dataDirty = true;
            return;
        }

        while (source.Length > 0)
        {
            int step = (int)Math.Min(source.Length, StepEnd(offset) - offset);
            WriteStep(offset, source[..step]);
            offset += step;
            source = source[step..];
        }
    }

    public void WriteZeroes(long offset, long length) => ZeroRange(offset, length, "write zeroes", keepSpace: true);

    public void Discard(long offset, long length)
    {
        ZeroRange(offset, length, "discard", keepSpace: false);
        Statistics.AddDiscarded(length);
    }

    /// <summary>Gives every block of the range host space of its own, its content kept, so that later writes to it need none.</summary>
    public void Reserve(long offset, long length)
    {
        CheckRange(offset, length, "reserve");
        BeginChange();
        for (long end = offset + length; offset < end;)
        {
            long step = Math.Min(end, StepEnd(offset)) - offset;
            Allocating(offset, step, default, (image, at, _) => image.ReserveExclusive(at, step));
            offset += step;
        }
    }

    public void SetLength(long length)
    {
        if (length != Length)
            throw new StorageException(Errno.EPERM, "truncate", Name);
    }

    private long StepEnd(long offset) => ((offset >> _blockBits) + StepBlocks) << _blockBits;

    private void WriteStep(long offset, ReadOnlySpan<byte> source)
    {
        if (_compressing is not null)
            WriteCompressing(_compressing, offset, source);
        else if (_attached is null || !TryWriteDeduplicated(offset, source))
            WritePlain(offset, source);
    }

    private void WritePlain(long offset, ReadOnlySpan<byte> source)
    {
        if (!TryWriteInPlace(offset, source))
            Allocating(offset, source.Length, source, static (image, at, bytes) => image.WriteExclusive(at, bytes));
    }

    /// <summary>Overwrites blocks that are the image's own. False, with an unknown part written, when one of them is not: the
    /// caller writes the whole range again.</summary>
    private bool TryWriteInPlace(long offset, ReadOnlySpan<byte> source)
    {
        using RangeGate.Ticket held = LockRange(offset, source.Length, exclusive: false);
        int slot = _epoch.Enter();
        try
        {
            while (source.Length > 0)
            {
                Extent extent = _map.Lookup(offset, source.Length);
                if (extent.Kind != ExtentKind.Data || !extent.Writable || !MayOverwrite(extent))
                    return false;
                _data.Write(extent.Host, source[..(int)extent.Length]);
                _dataDirty = true;
                offset += extent.Length;
                source = source[(int)extent.Length..];
            }

            return true;
        }
        finally
        {
            _epoch.Exit(slot);
        }
    }

    /// <summary>Changes the mapping. False, with an unknown part done: a commit must come first, then the whole step again.</summary>
    private delegate bool ExclusiveStep(CowImage image, long offset, ReadOnlySpan<byte> source);

    private enum StepOutcome
    {
        Done,
        /// <summary>The host is full, and a commit may free space.</summary>
        HostIsFull,
        /// <summary>A commit must come first (IWriteGuard).</summary>
        NeedsCommit,
    }

    /// <summary>Whether a block that is the image's own may be written in place now.</summary>
    private bool MayOverwrite(in Extent extent) => _dataGuard is null || _dataGuard.TryOverwrite(extent.Host, extent.Length);

    /// <summary>Runs a step that changes the mapping, under the exclusive range lock. Where the host is full while freed blocks
    /// wait for their commit, commits (holding no lock) and tries once more. Where bytes that a commit lists must stay, commits and
    /// tries again.</summary>
    private void Allocating(long offset, long length, ReadOnlySpan<byte> source, ExclusiveStep step)
    {
        if (_map.NeedsCommit)
            _commits.Run();
        bool wasFull = false;
        for (StepOutcome outcome; (outcome = TryStep(offset, length, source, step, lastTry: wasFull)) != StepOutcome.Done;)
        {
            wasFull |= outcome == StepOutcome.HostIsFull;
            _commits.Run();
        }

        if (_guard is not null && !_guard.TryLogChanges())
            _commits.Run();
    }

    private StepOutcome TryStep(long offset, long length, ReadOnlySpan<byte> source, ExclusiveStep step, bool lastTry)
    {
        using RangeGate.Ticket held = LockRange(offset, length, exclusive: true);
        int slot = _epoch.Enter();
        try
        {
            bool done = step(this, offset, source);
            ArmCommitTimer();
            return done ? StepOutcome.Done : StepOutcome.NeedsCommit;
        }
        catch (StorageException exception) when (exception.IsOutOfSpace && !lastTry && _map.IsDirty)
        {
            return StepOutcome.HostIsFull;
        }
        finally
        {
            _epoch.Exit(slot);
        }
    }

    private bool WriteExclusive(long offset, ReadOnlySpan<byte> source)
    {
        while (source.Length > 0)
        {
            Extent extent = _map.Lookup(offset, source.Length);
            ReadOnlySpan<byte> part = source[..(int)extent.Length];
            if (extent.Kind != ExtentKind.Data || !extent.Writable)
                part = part[..WriteNew(offset, part)];
            else if (MayOverwrite(extent))
                _data.Write(extent.Host, part);
            else
                return false;
            if (part.IsEmpty)
                return false;
            _dataDirty = true;
            offset += part.Length;
            source = source[part.Length..];
        }

        return true;
    }

    /// <summary>Writes a prefix of a range that has no block of its own. Returns how many bytes that was; 0: a commit must come
    /// first.</summary>
    private int WriteNew(long offset, ReadOnlySpan<byte> part)
    {
        int zeros = LeadingZeroBytes(offset, part);
        if (zeros > 0)
        {
            if (IsZero(offset, zeros))
                return zeros;
            int whole = WholeSubBlocks(offset, zeros);
            if (whole > 0 && TryZeroBlocks(offset, whole))
                return whole;
        }
        else
        {
            part = part[..NonZeroPrefix(offset, part)];
        }

        return Place(offset, part);
    }

    /// <summary>Reserve, write, publish for a prefix of a range. Returns how many bytes that was; 0: a commit must come first.</summary>
    private int Place(long offset, ReadOnlySpan<byte> part)
    {
        Reservation reservation = _map.Reserve(offset, part.Length);
        if (reservation.InPlace && _dataGuard?.TryOverwrite(reservation.Host, reservation.End - reservation.Start) == false)
            return 0;
        int written = (int)Math.Min(part.Length, reservation.End - offset);
        bool published = false;
        try
        {
            WriteReserved(reservation, offset, part[..written]);
            _dataDirty = true; // I1: before a commit can see the mapping
            _map.Publish(reservation);
            published = true;
        }
        finally
        {
            if (!published)
                _map.Abandon(reservation);
        }

        if (!reservation.InPlace)
            Statistics.AddAllocated(((reservation.End - reservation.Start) + _blockMask) >> _blockBits);
        return written;
    }

    /// <summary>Writes the caller's bytes and what surrounds them in their blocks to reserved space (I5).</summary>
    private void WriteReserved(in Reservation reservation, long offset, ReadOnlySpan<byte> part)
    {
        long host = reservation.Host + (offset - reservation.Start);
        int head = (int)(offset - reservation.Start);
        int tail = (int)(reservation.End - offset - part.Length);
        bool headNeeded = head > 0 && !(reservation.ReadsAsZero && IsZero(reservation.Start, head));
        bool tailNeeded = tail > 0 && !(reservation.ReadsAsZero && IsZero(offset + part.Length, tail));
        if (!headNeeded && !tailNeeded)
        {
            WriteFresh(host, part);
            return;
        }

        int copiedHead = headNeeded ? head : 0;
        int copiedTail = tailNeeded ? tail : 0;
        Statistics.AddCopied(copiedHead + copiedTail);
        byte[] buffer = ArrayPool<byte>.Shared.Rent(Math.Max(copiedHead + copiedTail + (part.Length <= ComposeLimit ? part.Length : 0), 1));
        try
        {
            if (part.Length <= ComposeLimit)
            {
                Span<byte> whole = buffer.AsSpan(0, copiedHead + part.Length + copiedTail);
                ReadAround(offset - copiedHead, whole[..copiedHead]);
                part.CopyTo(whole[copiedHead..]);
                ReadAround(offset + part.Length, whole[(copiedHead + part.Length)..]);
                WriteFresh(host - copiedHead, whole);
                return;
            }

            Span<byte> around = buffer.AsSpan(0, copiedHead + copiedTail);
            ReadAround(offset - copiedHead, around[..copiedHead]);
            ReadAround(offset + part.Length, around[copiedHead..]);
            WriteFresh(host - copiedHead, around[..copiedHead]);
            WriteFresh(host, part);
            WriteFresh(host + part.Length, around[copiedHead..]);
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <summary>Writes to reserved space.</summary>
    private void WriteFresh(long host, ReadOnlySpan<byte> bytes)
    {
        _dataGuard?.NoteFresh(host, bytes.Length);
        _data.Write(host, bytes);
    }

    /// <summary>Reads guest bytes for copy-on-write. The exclusive range lock keeps their blocks from being freed.</summary>
    private void ReadAround(long offset, Span<byte> destination)
    {
        if (destination.Length > 0)
            ReadGuest(offset, destination);
    }

    private bool ReserveExclusive(long offset, long length)
    {
        byte[] buffer = ArrayPool<byte>.Shared.Rent(ComposeLimit);
        try
        {
            for (long end = offset + length; offset < end;)
            {
                Extent extent = _map.Lookup(offset, Math.Min(end - offset, ComposeLimit));
                int part = (int)extent.Length;
                if (extent.Kind != ExtentKind.Data || !extent.Writable)
                {
                    ReadGuest(offset, buffer.AsSpan(0, part));
                    part = Place(offset, buffer.AsSpan(0, part));
                    if (part == 0)
                        return false;
                    _dataDirty = true;
                }
                else
                {
                    // The block may be a hole of the data file, or a large one that is mapped and mostly a hole.
                    _data.Reserve(extent.Host, part);
                    _dataDirty |= _map.Traits.IsIdentity;
                }

                offset += part;
            }

            return true;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <summary>Copies from the backing image what the image does not hold itself of a range of whole blocks. Blocks that read as zeros
    /// become holes of the data file.</summary>
    /// <returns>Bytes read from the backing image for it.</returns>
    internal long FillRange(long offset, long length)
    {
        long read = 0;
        BeginChange();
        Allocating(offset, length, default, (image, at, _) =>
        {
            read = image.FillExclusive(at, length);
            return true;
        });
        return read;
    }

    /// <summary>Makes durable that nothing is missing.</summary>
    internal void CompleteFill()
    {
        BeginChange();
        _commits.Run();
    }

    /// <summary>The first byte from <paramref name="offset"/> on that the image does not hold itself, or the disk's end.</summary>
    internal long FindMissing(long offset)
    {
        int slot = _epoch.Enter();
        try
        {
            while (offset < Length && !_map.IsComplete)
            {
                Extent extent = _map.Lookup(offset, Length - offset);
                if (extent.Kind == ExtentKind.Backing)
                    return offset;
                offset += extent.Length;
            }

            return Length;
        }
        finally
        {
            _epoch.Exit(slot);
        }
    }

    private long FillExclusive(long offset, long length)
    {
        long read = 0;
        byte[] buffer = ArrayPool<byte>.Shared.Rent((int)Math.Max(ComposeLimit, _blockMask + 1));
        try
        {
            for (long end = offset + length; offset < end;)
            {
                Extent extent = _map.Lookup(offset, Math.Min(end - offset, buffer.Length & ~_blockMask));
                int part = (int)extent.Length;
                int hole = extent.Kind == ExtentKind.Backing ? WholeSubBlocks(offset, (int)ZeroPrefix(offset, part)) : 0;
                if (hole > 0 && TryZeroBlocks(offset, hole))
                {
                    part = hole;
                }
                else if (extent.Kind == ExtentKind.Backing)
                {
                    // As far as the backing image has data, to the end of a block.
                    part = (int)Math.Min(part, (QueryBacking(offset, part).Length + _blockMask) & ~_blockMask);
                    ReadGuest(offset, buffer.AsSpan(0, part));
                    read += part;
                    FillBlocks(offset, buffer.AsSpan(0, part));
                }

                offset += part;
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }

        return read;
    }

    private void FillBlocks(long offset, ReadOnlySpan<byte> bytes)
    {
        while (bytes.Length > 0)
        {
            int zeros = LeadingZeroBytes(offset, bytes);
            int part = zeros > 0 ? zeros : NonZeroPrefix(offset, bytes);
            if (zeros == 0 || !TryZeroBlocks(offset, zeros))
                part = Place(offset, bytes[..part]);
            offset += part;
            bytes = bytes[part..];
        }

        _dataDirty = true;
    }

    private void ZeroRange(long offset, long length, string operation, bool keepSpace)
    {
        CheckRange(offset, length, operation);
        BeginChange();
        _parts.Changes?.Note(offset, length);
        long end = offset + length;
        while (offset < end)
        {
            // A range that already reads as zeros is skipped without a lock: whoever writes there at the same time comes after.
            long zeros = ZeroPrefixUnlocked(offset, end - offset);
            if (zeros > 0)
            {
                offset += zeros;
                continue;
            }

            long step = Math.Min(end, StepEnd(offset)) - offset;
            Allocating(offset, step, default, (image, at, _) => image.ZeroExclusive(at, step, keepSpace));
            offset += step;
        }
    }

    private bool ZeroExclusive(long offset, long length, bool keepSpace)
    {
        long end = offset + length;
        int subBlock = _map.Traits.SubBlockSize;
        while (offset < end)
        {
            long zeros = ZeroPrefix(offset, end - offset);
            if (zeros > 0)
            {
                offset += zeros;
                continue;
            }

            // The last sub-block of the disk may be cut by the disk's end.
            long wholeEnd = end == Length ? end : end & -subBlock;
            if ((offset & (subBlock - 1)) == 0 && wholeEnd > offset && TryZeroBlocks(offset, wholeEnd - offset))
            {
                offset = wholeEnd;
                continue;
            }

            long next = (offset & (subBlock - 1)) == 0 && wholeEnd > offset ? wholeEnd : Math.Min(end, (offset | (subBlock - 1L)) + 1);
            if (!WriteZeroBytes(offset, next - offset, keepSpace))
                return false;
            offset = next;
        }

        return true;
    }

    /// <summary>Makes whole sub-blocks read as zeros without writing their bytes. False: the format cannot.</summary>
    private bool TryZeroBlocks(long offset, long length)
    {
        if (!_map.Traits.IsIdentity)
            return !_isWrittenOutside && _map.TryPublishZero(offset, length); // U2
        _data.Discard(offset, length);
        _dataDirty = true; // I1: before a commit can see the mapping
        _map.Publish(new Reservation(offset, offset + length, offset, ReadsAsZero: true, InPlace: false));
        return true;
    }

    private bool WriteZeroBytes(long offset, long length, bool keepSpace)
    {
        for (long end = offset + length; offset < end;)
        {
            Extent extent = _map.Lookup(offset, end - offset);
            long part = extent.Length;
            if (extent.Kind == ExtentKind.Data && extent.Writable)
            {
                if (!MayOverwrite(extent))
                    return false;
                ZeroInPlace(extent.Host, part, keepSpace);
            }
            else if (ZeroPrefix(offset, part) is > 0 and var zeros)
            {
                part = zeros;
            }
            else
            {
                part = Place(offset, Zeros.AsSpan(0, (int)Math.Min(part, Zeros.Length)));
            }

            if (part == 0)
                return false;
            _dataDirty = true;
            offset += part;
        }

        return true;
    }

    /// <summary>Makes a part of a block zero that cannot be unmapped. In formats of large blocks that is most of what a guest discards, so
    /// the host is told instead of being written to.</summary>
    private void ZeroInPlace(long host, long length, bool keepSpace)
    {
        if (length <= Zeros.Length)
            _data.Write(host, Zeros.AsSpan(0, (int)length));
        else if (keepSpace)
            _data.WriteZeroes(host, length);
        else
            _data.Discard(host, length);
    }

    /// <summary>Whether the whole range reads as zeros by the word of the metadata of every layer.</summary>
    private bool IsZero(long offset, long length) => ZeroPrefix(offset, length) >= Math.Min(length, Length - offset);

    /// <summary>How many bytes from <paramref name="offset"/> on read as zeros by the word of the metadata of every layer.</summary>
    private long ZeroPrefix(long offset, long length)
    {
        long start = offset;
        long end = Math.Min(offset + length, Length);
        while (offset < end)
        {
            Extent extent = _map.Lookup(offset, end - offset);
            if (extent.Kind == ExtentKind.Backing)
                extent = QueryBacking(offset, extent.Length);
            if (extent.Kind is not (ExtentKind.Zero or ExtentKind.Backing))
                break;
            offset += extent.Length;
        }

        return offset >= end ? length : offset - start;
    }

    private long ZeroPrefixUnlocked(long offset, long length)
    {
        int slot = _epoch.Enter();
        try
        {
            return ZeroPrefix(offset, length);
        }
        finally
        {
            _epoch.Exit(slot);
        }
    }

    /// <summary>How many bytes of a range are whole sub-blocks from its start on; the disk's end counts as the end of one.</summary>
    private int WholeSubBlocks(long offset, int length)
    {
        long mask = _map.Traits.SubBlockSize - 1L;
        if ((offset & mask) != 0)
            return 0;
        return offset + length == Length ? length : (int)(length & ~mask);
    }

    /// <summary>Bytes of the leading pieces, cut at sub-block boundaries, that are all zero.</summary>
    private int LeadingZeroBytes(long offset, ReadOnlySpan<byte> part)
    {
        int zeros = 0;
        while (zeros < part.Length)
        {
            int piece = PieceLength(offset + zeros, part.Length - zeros);
            if (part.Slice(zeros, piece).ContainsAnyExcept((byte)0))
                break;
            zeros += piece;
        }

        return zeros;
    }

    /// <summary>Bytes before the first whole zero sub-block.</summary>
    private int NonZeroPrefix(long offset, ReadOnlySpan<byte> part)
    {
        int length = 0;
        while (length < part.Length)
        {
            int piece = PieceLength(offset + length, part.Length - length);
            if (WholeSubBlocks(offset + length, piece) == piece && !part.Slice(length, piece).ContainsAnyExcept((byte)0))
                break;
            length += piece;
        }

        return length;
    }

    private int PieceLength(long offset, int available)
    {
        int mask = _map.Traits.SubBlockSize - 1;
        return Math.Min(available, mask + 1 - (int)(offset & mask));
    }

    /// <summary>Locks the blocks that a range touches.</summary>
    private RangeGate.Ticket LockRange(long offset, long length, bool exclusive) =>
        _ranges.Enter(offset >> _blockBits, ((offset + length + _blockMask) >> _blockBits), exclusive);

    private void BeginChange()
    {
        ThrowIfFailed("write");
        if (_inUse)
            return;
        _map.BeginUse();
        _inUse = true;
    }

    private void CheckRange(long offset, long length, string operation)
    {
        ThrowIfReadOnly(operation);
        if (offset < 0 || length < 0 || length > Length - offset)
            throw new StorageException(Errno.ENOSPC, operation, Name, offset, length);
    }

    private static readonly byte[] Zeros = new byte[64 * 1024];
}
