// A raw image as a disk: every guest byte is the file's byte at the same offset. The disk's size is the file's length when it was
// opened, whatever it is a multiple of; it changes by TrySetFileLength, or where others were let write to the file, with the file.
// I4. Sync returns after a sync of the file that began after every acknowledged write.
// I7. Every change passes a LatchedStorage, but for a new length: what the host refuses of it leaves the disk as it was.
using System.Diagnostics.CodeAnalysis;
using Microsoft.Win32.SafeHandles;
using QcowFs.Images.Engine;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Raw;

/// <summary>A disk over a raw file, which it owns.</summary>
internal sealed class RawImage : IDiskImage
{
    private readonly IStorage _original;
    private readonly LatchedStorage _file;
    private readonly FailureLatch _latch;
    private long _length; // by Volatile
    private volatile bool _isWrittenOutside;
    private bool _closed;

    public RawImage(IStorage file, OpenOptions options)
    {
        _original = file;
        _latch = new FailureLatch(options.Log);
        _file = new LatchedStorage(file, _latch);
        _length = file.Length;
        IsReadOnly = !options.Writable;
        Info = new ImageInfo { Path = file.Name, Format = RawFormat.FormatName, VirtualSize = _length };
    }

    public string Name => _original.Name;

    public long Length => _isWrittenOutside ? FollowFile() : Volatile.Read(ref _length);

    public bool IsReadOnly { get; }

    public ImageInfo Info { get; }

    public ImageStatistics Statistics { get; } = new();

    public string? Failure => _latch.Reason;

    public void Read(long offset, Span<byte> destination)
    {
        Statistics.AddRead(destination.Length);
        int inside = (int)Math.Clamp(Length - offset, 0, destination.Length);
        _file.Read(offset, destination[..inside]);
        destination[inside..].Clear();
    }

    public void Write(long offset, ReadOnlySpan<byte> source)
    {
        CheckRange(offset, source.Length, "write");
        _file.Write(offset, source);
        Statistics.AddWritten(source.Length);
    }

    public void WriteZeroes(long offset, long length)
    {
        CheckRange(offset, length, "write zeroes");
        _file.WriteZeroes(offset, length);
        Statistics.AddWritten(length);
    }

    public void Discard(long offset, long length)
    {
        CheckRange(offset, length, "discard");
        _file.Discard(offset, length);
        Statistics.AddDiscarded(length);
    }

    public void Reserve(long offset, long length)
    {
        CheckRange(offset, length, "reserve");
        _file.Reserve(offset, length);
    }

    public void SetLength(long length)
    {
        if (length != Length)
            throw new StorageException(Errno.EPERM, "truncate", Name);
    }

    public bool TrySetFileLength(long length)
    {
        if (IsReadOnly || _original is FileStorage hostFile && hostFile.QueryFacts().IsBlockDevice)
            return false;
        if (Failure is not null)
            throw new StorageException(Errno.EIO, "truncate after an earlier failure", Name);
        _original.SetLength(length); // a length that the host cannot have is no failure of the image
        Volatile.Write(ref _length, length);
        return true;
    }

    public void Sync()
    {
        if (IsReadOnly)
            return;
        Statistics.AddSync();
        _file.Sync();
    }

    public Extent QueryExtent(long offset, long length)
    {
        length = Math.Min(length, Length - offset);
        if (length <= 0)
            return new Extent(ExtentKind.Backing, 0);
        if (_original is not IExtentSource extents)
            return new Extent(ExtentKind.Data, length, offset, Writable: true);
        bool isData = extents.IsData(offset, out long end);
        // A file that was cut behind our back reads as zeros up to the disk's end.
        length = end > offset ? Math.Min(length, end - offset) : length;
        return isData ? new Extent(ExtentKind.Data, length, offset, Writable: true) : new Extent(ExtentKind.Backing, length);
    }

    public bool TryGetIdentityFile([NotNullWhen(true)] out SafeFileHandle? file)
    {
        file = _original is FileStorage hostFile && hostFile.QueryFacts() is { IsBlockDevice: false } facts && facts.Length == Length
            ? hostFile.Handle : null;
        return file is not null;
    }

    public bool TryBeginOutsideWrites([NotNullWhen(true)] out SafeFileHandle? file)
    {
        file = null;
        if (IsReadOnly || Failure is not null || !TryGetIdentityFile(out file))
            return false;
        _isWrittenOutside = true;
        return true;
    }

    public bool TryGetDataFile(int depth, [NotNullWhen(true)] out FileStorage? file)
    {
        file = depth == 0 ? _original as FileStorage : null;
        return file is not null;
    }

    public void Close()
    {
        if (_closed)
            return;
        _closed = true;
        try
        {
            if (!IsReadOnly)
                _file.Sync();
        }
        finally
        {
            _file.Dispose();
        }
    }

    public void Dispose()
    {
        _closed = true;
        _file.Dispose();
    }

    // The file is the disk, and whoever writes past its end makes both larger.
    private long FollowFile()
    {
        long length = ((FileStorage)_original).RefreshLength();
        Volatile.Write(ref _length, length);
        return length;
    }

    private void CheckRange(long offset, long length, string operation)
    {
        if (IsReadOnly)
            throw new StorageException(Errno.EROFS, operation, Name, offset, length);
        if (offset < 0 || length < 0 || length > Length - offset)
            throw new StorageException(Errno.ENOSPC, operation, Name, offset, length);
    }
}
