// A storage in memory: sparse, for what need not outlive the process.
namespace QcowFs.Storage;

/// <summary>A storage in memory, in pieces that exist only where something was written, so that a length of terabytes costs nothing.
/// Thread-safe; overlapping concurrent writes leave either's bytes. Always durable in its own sense: <see cref="Sync"/> does nothing.</summary>
public sealed class MemoryStorage : IStorage
{
    private const int PieceSize = 64 << 10;

    private readonly ReaderWriterLockSlim _lock = new(); // shared: bytes of existing pieces; exclusive: the set of pieces, the length
    private readonly Dictionary<long, byte[]> _pieces = [];
    private long _length;

    /// <summary>Makes an empty storage, or one of zeros with a length in bytes.</summary>
    public MemoryStorage(string name = "memory", long length = 0)
    {
        Name = name;
        _length = length;
    }

    /// <inheritdoc/>
    public string Name { get; }

    /// <inheritdoc/>
    public long Length => Volatile.Read(ref _length);

    /// <inheritdoc/>
    public bool IsReadOnly => false;

    /// <inheritdoc/>
    public void Read(long offset, Span<byte> destination)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        _lock.EnterReadLock();
        try
        {
            // Pieces hold zeros behind the end, so the end needs no thought here.
            while (!destination.IsEmpty)
            {
                int at = (int)(offset % PieceSize);
                int count = Math.Min(PieceSize - at, destination.Length);
                if (_pieces.TryGetValue(offset / PieceSize, out byte[]? piece))
                    piece.AsSpan(at, count).CopyTo(destination);
                else
                    destination[..count].Clear();
                destination = destination[count..];
                offset += count;
            }
        }
        finally
        {
            _lock.ExitReadLock();
        }
    }

    /// <inheritdoc/>
    public void Write(long offset, ReadOnlySpan<byte> source)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        if (source.IsEmpty || TryOverwrite(offset, source))
            return;
        _lock.EnterWriteLock();
        try
        {
            long end = offset + source.Length;
            for (long at = offset; at < end; at = (at / PieceSize + 1) * PieceSize)
            {
                int count = (int)(Math.Min((at / PieceSize + 1) * PieceSize, end) - at);
                if (!_pieces.TryGetValue(at / PieceSize, out byte[]? piece))
                    _pieces.Add(at / PieceSize, piece = new byte[PieceSize]);
                source.Slice((int)(at - offset), count).CopyTo(piece.AsSpan((int)(at % PieceSize)));
            }
            Volatile.Write(ref _length, Math.Max(_length, end));
        }
        finally
        {
            _lock.ExitWriteLock();
        }
    }

    /// <inheritdoc/>
    public void WriteZeroes(long offset, long length)
    {
        CheckRange(offset, length);
        if (length == 0)
            return;
        _lock.EnterWriteLock();
        try
        {
            Volatile.Write(ref _length, Math.Max(_length, offset + length));
            Clear(offset, offset + length);
        }
        finally
        {
            _lock.ExitWriteLock();
        }
    }

    /// <inheritdoc/>
    public void Discard(long offset, long length)
    {
        CheckRange(offset, length);
        _lock.EnterWriteLock();
        try
        {
            Clear(offset, Math.Min(offset + length, _length));
        }
        finally
        {
            _lock.ExitWriteLock();
        }
    }

    /// <inheritdoc/>
    public void Reserve(long offset, long length)
    {
        CheckRange(offset, length);
        if (length == 0)
            return;
        _lock.EnterWriteLock();
        Volatile.Write(ref _length, Math.Max(_length, offset + length));
        _lock.ExitWriteLock();
    }

    /// <inheritdoc/>
    public void SetLength(long length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        _lock.EnterWriteLock();
        try
        {
            if (length < _length)
                Clear(length, _length);
            Volatile.Write(ref _length, length);
        }
        finally
        {
            _lock.ExitWriteLock();
        }
    }

    /// <inheritdoc/>
    public void Sync()
    {
        // Nothing outlives the process, so there is nothing to make durable.
    }

    /// <inheritdoc/>
    public void Dispose() => _lock.Dispose();

    // Under the shared lock: only where every piece is there and the length stays.
    private bool TryOverwrite(long offset, ReadOnlySpan<byte> source)
    {
        _lock.EnterReadLock();
        try
        {
            long end = offset + source.Length;
            if (end > _length)
                return false;
            for (long piece = offset / PieceSize; piece * PieceSize < end; piece++)
            {
                if (!_pieces.ContainsKey(piece))
                    return false;
            }
            while (!source.IsEmpty)
            {
                int at = (int)(offset % PieceSize);
                int count = Math.Min(PieceSize - at, source.Length);
                source[..count].CopyTo(_pieces[offset / PieceSize].AsSpan(at));
                source = source[count..];
                offset += count;
            }
            return true;
        }
        finally
        {
            _lock.ExitReadLock();
        }
    }

    private static void CheckRange(long offset, long length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(length, long.MaxValue - offset);
    }

    private void Clear(long start, long end)
    {
        if (end <= start)
            return;
        // Over a long range there are fewer pieces than indices.
        foreach (long index in _pieces.Keys.Where(index => index * PieceSize < end && (index + 1) * PieceSize > start).ToArray())
        {
            long from = Math.Max(start, index * PieceSize);
            long to = Math.Min(end, (index + 1) * PieceSize);
            if (to - from == PieceSize)
                _pieces.Remove(index);
            else
                _pieces[index].AsSpan((int)(from % PieceSize), (int)(to - from)).Clear();
        }
    }
}
