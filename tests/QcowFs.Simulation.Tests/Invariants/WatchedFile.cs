// An image file in memory that asks before each change whether it may be made, and can run out of space.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Simulation.Tests.Invariants;

/// <summary>A change that is about to be made. The bytes are empty where the range becomes zeros or is cut off.</summary>
internal readonly ref struct FileChange(ChangeKind kind, long offset, long length, ReadOnlySpan<byte> bytes)
{
    public ChangeKind Kind { get; } = kind;

    public long Offset { get; } = offset;

    public long Length { get; } = length;

    public ReadOnlySpan<byte> Bytes { get; } = bytes;
}

internal enum ChangeKind
{
    Write,
    Zero,
    Punch,
    Cut,
}

internal delegate void BeforeChange(FileChange change);

/// <summary>Used by one thread. Disposing it does nothing: the file outlives who has it open.</summary>
internal sealed class WatchedFile(string name, ReadOnlySpan<byte> content) : IStorage, IImageBytes
{
    private byte[] _bytes = content.ToArray();

    /// <summary>Is asked first; throws where the change must not be.</summary>
    public BeforeChange? Watch { get; set; }

    /// <summary>From how many reservations on the host is full.</summary>
    public int ReservationsLeft { get; set; } = int.MaxValue;

    /// <summary>From how many writes on the host is full.</summary>
    public int WritesLeft { get; set; } = int.MaxValue;

    public string Name => name;

    public long Length { get; private set; } = content.Length;

    public bool IsReadOnly => false;

    public byte[] Content => _bytes[..(int)Length];

    public void Read(long offset, Span<byte> destination)
    {
        int there = (int)Math.Clamp(Length - offset, 0, destination.Length);
        _bytes.AsSpan((int)Math.Min(offset, Length), there).CopyTo(destination);
        destination[there..].Clear();
    }

    /// <summary>Whether a range is there and all zeros, or past the end.</summary>
    public bool IsZero(long offset, long length)
    {
        int there = (int)Math.Clamp(Length - offset, 0, length);
        return !_bytes.AsSpan((int)Math.Min(offset, Length), there).ContainsAnyExcept((byte)0);
    }

    public void Write(long offset, ReadOnlySpan<byte> source)
    {
        Watch?.Invoke(new FileChange(ChangeKind.Write, offset, source.Length, source));
        if (WritesLeft-- <= 0)
            throw new StorageException(Errno.ENOSPC, "write", Name, offset, source.Length);
        Extend(offset + source.Length);
        source.CopyTo(_bytes.AsSpan((int)offset));
    }

    public void WriteZeroes(long offset, long length)
    {
        Watch?.Invoke(new FileChange(ChangeKind.Zero, offset, length, default));
        Extend(offset + length);
        _bytes.AsSpan((int)offset, (int)length).Clear();
    }

    public void Discard(long offset, long length)
    {
        Watch?.Invoke(new FileChange(ChangeKind.Punch, offset, length, default));
        int there = (int)Math.Clamp(Length - offset, 0, length);
        _bytes.AsSpan((int)Math.Min(offset, Length), there).Clear();
    }

    public void Reserve(long offset, long length)
    {
        if (ReservationsLeft-- <= 0)
            throw new StorageException(Errno.ENOSPC, "reserve", Name, offset, length);
        Extend(offset + length);
    }

    public void SetLength(long length)
    {
        if (length < Length)
        {
            Watch?.Invoke(new FileChange(ChangeKind.Cut, length, Length - length, default));
            _bytes.AsSpan((int)length, (int)(Length - length)).Clear();
            Length = length;
        }

        Extend(length);
    }

    public void Sync()
    {
        // What is written stays: crashes are the subject of other tests.
    }

    public void Dispose()
    {
        // The next session opens the same file.
    }

    private void Extend(long length)
    {
        if (length > _bytes.Length)
            Array.Resize(ref _bytes, (int)Math.Max(length, _bytes.Length * 3L / 2));
        Length = Math.Max(Length, length);
    }
}
