// Direct I/O (O_DIRECT) for callers who know nothing of alignment.
//   D1. The kernel takes only transfers whose memory, offset and length are aligned. Those of the callers that are go through as
//       they are; all others pass through an aligned buffer.
//   D2. A write that covers a block in part reads the block, changes it and writes it back. It holds its blocks exclusively
//       meanwhile, against every other change, whole-block ones too: else a neighbour's newer bytes would be written back old.
//   D3. A file may end inside a block. Reading there gives a short count; writing there makes the file too long for a moment, and
//       it is cut afterwards. Until the cut nobody else may extend the file, so the range held goes on to infinity. A crash in
//       between leaves zeros behind the end, less than a block of them.
//   D4. A span over the collector's memory may be moved after it was found to be aligned; the kernel's EINVAL says so, and the
//       request passes through the aligned buffer after all.
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>The transfers of one descriptor opened with O_DIRECT. Thread-safe.</summary>
internal sealed class DirectIo(int fd, int unit, int memoryUnit)
{
    private readonly RangeGate _gate = new();

    /// <summary>Keeps read-modify-write (D2) out of a range while it is changed by other means than <see cref="Write"/>.</summary>
    public RangeGate.Ticket Hold(long start, long end) => _gate.Enter(start, end, exclusive: false);

    /// <summary>Reads until the span is full or the file ends.</summary>
    public Errno Read(long offset, Span<byte> destination, out int done)
    {
        if (IsAligned(offset, destination))
        {
            Errno result = FileTransfer.Read(fd, destination, offset, unit, out done);
            if (result != Errno.EINVAL) // D4
                return result;
        }
        AlignedBuffer bounce = BouncePool.Rent();
        try
        {
            return ReadThrough(bounce, offset, destination, out done);
        }
        finally
        {
            BouncePool.Return(bounce);
        }
    }

    /// <summary>Writes all of the span. <paramref name="length"/> is the file's length, kept up to date under the range's lock.</summary>
    public Errno Write(long offset, ReadOnlySpan<byte> source, ref long length)
    {
        long end = offset + source.Length;
        if (IsAligned(offset, source))
        {
            using RangeGate.Ticket shared = _gate.Enter(offset, end, exclusive: false);
            Errno result = FileTransfer.Write(fd, source, offset, unit);
            if (result == Errno.None)
                Raise(ref length, end);
            if (result != Errno.EINVAL) // D4
                return result;
        }
        long blocksStart = offset / unit * unit;
        long blocksEnd = RoundUp(end);
        while (true)
        {
            bool cuts = blocksEnd > Volatile.Read(ref length);
            using RangeGate.Ticket exclusive = _gate.Enter(blocksStart, cuts ? long.MaxValue : blocksEnd, exclusive: true);
            // The file may have been cut while this thread waited.
            if (!cuts && blocksEnd > Volatile.Read(ref length))
                continue;
            return WriteBlocks(blocksStart, blocksEnd, offset, source, ref length);
        }
    }

    /// <summary>Sets <paramref name="length"/> to at least <paramref name="end"/>, whatever other threads do to it.</summary>
    public static void Raise(ref long length, long end)
    {
        long seen = Volatile.Read(ref length);
        while (seen < end)
        {
            long found = Interlocked.CompareExchange(ref length, end, seen);
            if (found == seen)
                return;
            seen = found;
        }
    }

    private Errno WriteBlocks(long blocksStart, long blocksEnd, long offset, ReadOnlySpan<byte> source, ref long length)
    {
        long newLength = Math.Max(Volatile.Read(ref length), offset + source.Length);
        AlignedBuffer bounce = BouncePool.Rent();
        try
        {
            for (long at = blocksStart; at < blocksEnd; at += BouncePool.BufferSize)
            {
                int count = (int)Math.Min(BouncePool.BufferSize, blocksEnd - at);
                Errno result = WriteChunk(bounce, at, count, offset, source);
                if (result != Errno.None)
                    return result;
            }
        }
        finally
        {
            BouncePool.Return(bounce);
        }
        // D3
        if (blocksEnd > newLength && Libc.Ftruncate(fd, newLength) != 0)
            return Libc.LastErrno;
        Raise(ref length, newLength);
        return Errno.None;
    }

    // Writes the whole blocks [at, at + count), taking from the source what it has for them and the rest from the file.
    private Errno WriteChunk(AlignedBuffer bounce, long at, int count, long offset, ReadOnlySpan<byte> source)
    {
        long end = offset + source.Length;
        bool raggedStart = offset > at;
        bool raggedEnd = end < at + count;
        if (raggedStart && LoadBlock(bounce, 0, at) is var first && first != Errno.None)
            return first;
        bool alreadyLoaded = raggedStart && count == unit;
        if (raggedEnd && !alreadyLoaded && LoadBlock(bounce, count - unit, at) is var last && last != Errno.None)
            return last;

        long from = Math.Max(offset, at);
        long to = Math.Min(end, at + count);
        source[(int)(from - offset)..(int)(to - offset)].CopyTo(bounce.Span[(int)(from - at)..]);
        return FileTransfer.Write(fd, bounce.Span[..count], at, unit);
    }

    private Errno LoadBlock(AlignedBuffer bounce, int index, long at)
    {
        Errno result = FileTransfer.Read(fd, bounce.Span.Slice(index, unit), at + index, unit, out int got);
        bounce.Span.Slice(index + got, unit - got).Clear();
        return result;
    }

    private Errno ReadThrough(AlignedBuffer bounce, long offset, Span<byte> destination, out int done)
    {
        done = 0;
        while (done < destination.Length)
        {
            long from = offset + done;
            long at = from / unit * unit;
            int count = (int)Math.Min(BouncePool.BufferSize, RoundUp(offset + destination.Length) - at);
            Errno result = FileTransfer.Read(fd, bounce.Span[..count], at, unit, out int got);
            if (result != Errno.None)
                return result;
            int skip = (int)(from - at);
            int useful = Math.Min(got - skip, destination.Length - done);
            if (useful > 0)
            {
                bounce.Span.Slice(skip, useful).CopyTo(destination[done..]);
                done += useful;
            }
            if (got < count)
                break;
        }
        return Errno.None;
    }

    private bool IsAligned(long offset, ReadOnlySpan<byte> span) =>
        offset % unit == 0 && span.Length % unit == 0 && AlignedBuffer.IsAligned(span, memoryUnit);

    private long RoundUp(long value) => (value + unit - 1) / unit * unit;
}
