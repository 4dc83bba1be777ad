// A host file or block device as a storage: the only implementation in production that touches the host.
//   F1. EINTR and short transfers end in FileTransfer; nobody above sees one.
//   F2. A failed sync is final. The kernel reports a lost write to one sync of a descriptor and then forgets it, so a later sync
//       that succeeds proves nothing: syncs are serialised, and after a failure every one fails.
//   F3. What the file system cannot do (punch, zero range) is done by writing zeros, and not tried again.
//   F4. A block device has all its space from the start and keeps its length: what would pass its end is ENOSPC, a cut does nothing.
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>
/// A regular file or block device. Thread-safe as <see cref="IStorage"/> says. <see cref="SetLength"/> to less than others are
/// writing at that moment leaves the length undefined until both are done.
/// </summary>
public sealed class FileStorage : IIdentifiedStorage, IExtentSource
{
    // Below this, writing zeros beats the file system's transaction for changing the allocation.
    private const long SmallZeroes = 64 << 10;

    // A file of the kernel's that never changes; without /proc nothing is known.
    private static readonly Lazy<UInt128> BootId = new(ReadBootId);

    private static readonly AlignedBuffer Zeroes = new(BouncePool.BufferSize); // never written, never freed

    private readonly SafeFileHandle _handle;
    private readonly int _fd; // _handle's, which outlives every call (the owner disposes last)
    private readonly bool _isBlockDevice;
    private readonly int _sectorSize; // of a block device: the unit of its fallocate; else 1
    private readonly DirectIo? _direct;
    private readonly Lock _syncLock = new();
    private Errno _syncFailure; // guarded by _syncLock
    private long _length; // by Volatile and Interlocked
    private readonly bool _isTmpfs;
    private volatile bool _cannotPunch;
    private volatile bool _cannotZeroRange;
    private readonly Lazy<SafeFileHandle?> _uncached; // the same file opened past the page cache; null where the host cannot

    internal FileStorage(SafeFileHandle handle, string name, bool isReadOnly, bool directIo)
    {
        _handle = handle;
        _fd = (int)handle.DangerousGetHandle();
        Name = name;
        IsReadOnly = isReadOnly;
        StatxData facts = Stat(Libc.STATX_BASIC_STATS | Libc.STATX_DIOALIGN);
        _isBlockDevice = (facts.Mode & Libc.S_IFMT) == Libc.S_IFBLK;
        _sectorSize = _isBlockDevice ? QuerySectorSize() : 1;
        _isTmpfs = Libc.Fstatfs(_fd, out StatFsData fileSystem) == 0 && fileSystem.Type == Libc.TMPFS_MAGIC;
        _length = CurrentLength(facts);
        _direct = directIo ? OpenDirect(facts) : null;
        _uncached = new Lazy<SafeFileHandle?>(OpenUncached);
    }

    /// <inheritdoc/>
    public string Name { get; }

    /// <inheritdoc/>
    /// <remarks>As this storage knows it; <see cref="QueryFacts"/> asks the host.</remarks>
    public long Length => Volatile.Read(ref _length);

    /// <inheritdoc/>
    public bool IsReadOnly { get; }

    /// <summary>Whether transfers bypass the host's page cache.</summary>
    public bool IsDirect => _direct != null;

    /// <summary>The open file. It stays owned by the storage.</summary>
    public SafeFileHandle Handle => _handle;

    /// <summary>While set, <see cref="Dispose"/> does nothing: whoever set it takes it back and then ends the file, so that a disk over
    /// the file can be closed and made anew without the file or its locks being let go.</summary>
    public bool IsHeld { get; set; }

    /// <summary>Whether <see cref="QemuLocks"/> holds locks on the file.</summary>
    public bool HoldsLocks { get; internal set; }

    /// <summary>Asks the host about the file.</summary>
    public FileFacts QueryFacts()
    {
        StatxData facts = Stat(Libc.STATX_BASIC_STATS);
        return FileFacts.From(facts) with { Length = CurrentLength(facts), IsBlockDevice = _isBlockDevice };
    }

    /// <inheritdoc/>
    public StorageIdentity Identity => QueryFacts() is var facts ? new StorageIdentity(BootId.Value, facts.Device, facts.Inode) : default;

    /// <inheritdoc/>
    /// <remarks>Where the host cannot tell, all is data.</remarks>
    public bool IsData(long offset, out long end)
    {
        end = Length;
        if (offset >= end)
            return false;
        long data = Libc.Lseek(_fd, offset, Libc.SEEK_DATA);
        if (data < 0)
            return Libc.LastErrno != Errno.ENXIO;
        if (data > offset)
        {
            end = Math.Min(data, end);
            return false;
        }
        long hole = Libc.Lseek(_fd, offset, Libc.SEEK_HOLE);
        if (hole >= 0)
            end = Math.Min(hole, end);
        return true;
    }

    /// <summary>Learns the length anew, for a file that others may have changed, and gives it.</summary>
    public long RefreshLength()
    {
        long length = CurrentLength(Stat(Libc.STATX_BASIC_STATS));
        Volatile.Write(ref _length, length);
        return length;
    }

    /// <summary>Whether the file system lets the file be opened with O_DIRECT.</summary>
    public static bool CanBeOpenedDirect(SafeFileHandle file)
    {
        string path = string.Create(System.Globalization.CultureInfo.InvariantCulture, $"/proc/self/fd/{file.DangerousGetHandle()}");
        int fd = Libc.Open(path, Libc.O_RDONLY | Libc.O_DIRECT | Libc.O_CLOEXEC, 0);
        GC.KeepAlive(file);
        if (fd >= 0)
            _ = Libc.Close(fd);
        return fd >= 0;
    }

    /// <summary>Unit in which the file system shares blocks between files, in bytes.</summary>
    public int HostBlockSize => Libc.Fstatfs(_fd, out StatFsData facts) == 0
        ? (int)facts.BlockSize
        : throw new StorageException(Libc.LastErrno, "stat", Name);

    /// <summary>Makes a range of this file share the blocks of a range of another file, on the same file system, without copying; offsets
    /// and length are multiples of <see cref="HostBlockSize"/>. EOPNOTSUPP, EXDEV, EINVAL: the file system cannot.</summary>
    public Errno TryClone(FileStorage source, long sourceOffset, long offset, long length)
    {
        CheckRange(offset, length);
        CheckWritable("clone", offset, length);
        var request = new CloneRange
        {
            Source = source._fd,
            SourceOffset = (ulong)sourceOffset,
            SourceLength = (ulong)length,
            TargetOffset = (ulong)offset,
        };
        while (Libc.Clone(_fd, request) != 0)
        {
            if (Libc.LastErrno != Errno.EINTR)
                return Libc.LastErrno;
        }
        DirectIo.Raise(ref _length, offset + length);
        return Errno.None;
    }

    /// <inheritdoc/>
    public void Read(long offset, Span<byte> destination)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        Errno result = _direct != null
            ? _direct.Read(offset, destination, out int done)
            : FileTransfer.Read(_fd, destination, offset, unit: 1, out done);
        if (result != Errno.None)
            throw new StorageException(result, "read", Name, offset, destination.Length);
        destination[done..].Clear();
    }

    /// <inheritdoc/>
    public void Write(long offset, ReadOnlySpan<byte> source)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        CheckWritable("write", offset, source.Length);
        if (source.IsEmpty)
            return;
        Errno result;
        if (_direct != null)
        {
            result = _direct.Write(offset, source, ref _length);
        }
        else
        {
            result = FileTransfer.Write(_fd, source, offset, unit: 1);
            if (result == Errno.None)
                DirectIo.Raise(ref _length, offset + source.Length);
        }
        if (result != Errno.None)
            throw Failed(result, "write", offset, source.Length);
    }

    /// <inheritdoc/>
    public void WriteZeroes(long offset, long length)
    {
        CheckRange(offset, length);
        CheckWritable("zero", offset, length);
        if (length <= SmallZeroes || _cannotZeroRange)
            WriteZeroBytes(offset, length);
        else
            _cannotZeroRange = !TryFallocate(Libc.FALLOC_FL_ZERO_RANGE, "zero", offset, length);
    }

    /// <summary>Writes zeros to a range, past the page cache where that is possible: then no sync has to wait for them to reach the disk,
    /// though they are as little durable without one as any write.</summary>
    public void WriteZeroesUncached(long offset, long length)
    {
        CheckRange(offset, length);
        CheckWritable("zero", offset, length);
        bool isAligned = ((offset | length) & (AlignedBuffer.PageSize - 1)) == 0;
        if (IsDirect || _isBlockDevice || !isAligned || offset + length > Length || _uncached.Value is not { } handle)
        {
            WriteZeroBytes(offset, length);
            return;
        }

        while (length > 0)
        {
            int count = (int)Math.Min(length, Zeroes.Length);
            Errno result = FileTransfer.Write((int)handle.DangerousGetHandle(), Zeroes.Span[..count], offset, unit: AlignedBuffer.PageSize);
            if (result == Errno.EINVAL)
                WriteZeroBytes(offset, count); // a file system that wants another alignment
            else if (result != Errno.None)
                throw Failed(result, "zero", offset, count);
            offset += count;
            length -= count;
        }
    }

    /// <inheritdoc/>
    public void Discard(long offset, long length)
    {
        CheckRange(offset, length);
        CheckWritable("discard", offset, length);
        length = Math.Min(length, Length - offset);
        if (length <= 0)
            return;
        if (_cannotPunch)
            WriteZeroBytes(offset, length);
        else
            _cannotPunch = !TryFallocate(Libc.FALLOC_FL_PUNCH_HOLE | Libc.FALLOC_FL_KEEP_SIZE, "discard", offset, length);
    }

    /// <inheritdoc/>
    public void Reserve(long offset, long length)
    {
        CheckRange(offset, length);
        CheckWritable("reserve", offset, length);
        if (_isBlockDevice)
        {
            RequireOnDevice("reserve", offset, length);
            return;
        }

        if (length == 0)
            return;
        using RangeGate.Ticket held = Hold(offset, offset + length);
        Errno result = _isTmpfs ? ReserveInMemory(offset, length) : Fallocate(0, offset, length);
        if (result == Errno.None)
            DirectIo.Raise(ref _length, offset + length);
        else if (result is not (Errno.EOPNOTSUPP or Errno.ENOSYS))
            throw Failed(result, "reserve", offset, length);
    }

    /// <inheritdoc/>
    public void SetLength(long length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        CheckWritable("set length", length, -1);
        if (_isBlockDevice)
        {
            RequireOnDevice("set length", 0, length);
            return;
        }

        using RangeGate.Ticket held = Hold(0, long.MaxValue);
        int result;
        do
        {
            result = Libc.Ftruncate(_fd, length);
        }
        while (result != 0 && Libc.LastErrno == Errno.EINTR);
        if (result != 0)
            throw Failed(Libc.LastErrno, "set length", length, -1);
        Volatile.Write(ref _length, length);
    }

    /// <inheritdoc/>
    public void Sync()
    {
        lock (_syncLock)
        {
            // F2
            if (_syncFailure == Errno.None && Libc.Fdatasync(_fd) != 0)
                _syncFailure = Libc.LastErrno;
            if (_syncFailure != Errno.None)
                throw new StorageException(_syncFailure, "sync", Name);
        }
    }

    /// <summary>Closes the file, which drops its locks. Nothing is synced.</summary>
    public void Dispose()
    {
        if (IsHeld)
            return;
        // Closing alone is not enough: a process that was forked at this moment holds the description, and with it the locks, until
        // it executes its program.
        if (HoldsLocks && !_handle.IsClosed)
            QemuLocks.Release(this);
        _handle.Dispose();
        if (_uncached.IsValueCreated)
            _uncached.Value?.Dispose();
    }

    // fallocate over the sectors that lie wholly in the range and zeros written over the ragged ends. Where the file system cannot,
    // zeros are written over all of it and the answer is false (F3).
    private bool TryFallocate(int mode, string operation, long offset, long length)
    {
        long end = offset + length;
        long start = (offset + _sectorSize - 1) / _sectorSize * _sectorSize;
        long stop = end / _sectorSize * _sectorSize;
        if (start >= stop)
        {
            WriteZeroBytes(offset, length);
            return true;
        }
        Errno result;
        using (Hold(start, stop))
        {
            result = Fallocate(mode, start, stop - start);
            if (result == Errno.None && (mode & Libc.FALLOC_FL_KEEP_SIZE) == 0)
                DirectIo.Raise(ref _length, stop);
        }
        if (result is Errno.EOPNOTSUPP or Errno.ENOSYS)
        {
            WriteZeroBytes(offset, length);
            return false;
        }
        if (result != Errno.None)
            throw Failed(result, operation, offset, length);
        WriteZeroBytes(offset, start - offset);
        WriteZeroBytes(stop, end - stop);
        return true;
    }

    private void WriteZeroBytes(long offset, long length)
    {
        while (length > 0)
        {
            int count = (int)Math.Min(length, Zeroes.Length);
            Write(offset, Zeroes.Span[..count]);
            offset += count;
            length -= count;
        }
    }

    // Through its descriptor, so that it is the same file whatever became of its name.
    private SafeFileHandle? OpenUncached()
    {
        int fd = Libc.Open($"/proc/self/fd/{_fd}", Libc.O_WRONLY | Libc.O_DIRECT | Libc.O_CLOEXEC, 0);
        return fd < 0 ? null : new SafeFileHandle(fd, ownsHandle: true);
    }

    private Errno Fallocate(int mode, long offset, long length)
    {
        while (Libc.Fallocate(_fd, mode, offset, length) != 0)
        {
            if (Libc.LastErrno != Errno.EINTR)
                return Libc.LastErrno;
        }
        return Errno.None;
    }

    // tmpfs would fill a reservation with pages of memory, which costs more than the writes that it is for: there the space is only
    // looked for.
    private Errno ReserveInMemory(long offset, long length)
    {
        if (Libc.Fstatfs(_fd, out StatFsData facts) != 0)
            return Libc.LastErrno;
        if (facts.AvailableBlocks < length / facts.BlockSize)
            return Errno.ENOSPC;
        if (offset + length <= Length)
            return Errno.None;
        while (Libc.Ftruncate(_fd, offset + length) != 0)
        {
            if (Libc.LastErrno != Errno.EINTR)
                return Libc.LastErrno;
        }

        return Errno.None;
    }

    private RangeGate.Ticket Hold(long start, long end) => _direct?.Hold(start, end) ?? default;

    // A failed change may have extended the file in part, so the length is learned anew.
    private StorageException Failed(Errno errno, string operation, long offset, long length)
    {
        Volatile.Write(ref _length, CurrentLength(Stat(Libc.STATX_BASIC_STATS)));
        return new StorageException(errno, operation, Name, offset, length);
    }

    private void CheckWritable(string operation, long offset, long length)
    {
        if (IsReadOnly)
            throw new StorageException(Errno.EROFS, operation, Name, offset, length);
    }

    // F4
    private void RequireOnDevice(string operation, long offset, long length)
    {
        if (offset + length > Length)
            throw new StorageException(Errno.ENOSPC, operation, Name, offset, length);
    }

    private static void CheckRange(long offset, long length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(length, long.MaxValue - offset);
    }

    private StatxData Stat(uint mask)
    {
        return Libc.Statx(_fd, mask, out StatxData facts) == 0 ? facts : throw new StorageException(Libc.LastErrno, "stat", Name);
    }

    private long CurrentLength(in StatxData facts)
    {
        if (!_isBlockDevice)
            return (long)facts.Size;
        long end = Libc.Lseek(_fd, 0, Libc.SEEK_END);
        return end >= 0 ? end : throw new StorageException(Libc.LastErrno, "seek", Name);
    }

    private int QuerySectorSize()
    {
        return Libc.BlockDeviceSectorSize(_fd, out int size) == 0
            ? size
            : throw new StorageException(Libc.LastErrno, "query sector size", Name);
    }

    private DirectIo OpenDirect(in StatxData facts)
    {
        if (_isBlockDevice)
            return new DirectIo(_fd, _sectorSize, _sectorSize);
        if ((facts.Mask & Libc.STATX_DIOALIGN) == 0)
        {
            int unit = ProbeAlignment();
            return new DirectIo(_fd, unit, unit);
        }
        // The file system says that it would go through the page cache all the same (encryption, data journaling).
        if (facts.DirectOffsetAlignment == 0)
            throw new StorageException(Errno.EOPNOTSUPP, "direct I/O", Name);
        return new DirectIo(_fd, (int)facts.DirectOffsetAlignment, (int)Math.Max(facts.DirectMemoryAlignment, 1));
    }

    // Before Linux 6.1: the smallest block that a read accepts. An empty file accepts any, so it gets the one that is always right.
    private int ProbeAlignment()
    {
        if (_length == 0)
            return AlignedBuffer.PageSize;
        AlignedBuffer bounce = BouncePool.Rent();
        try
        {
            return FileTransfer.Read(_fd, bounce.Span[..512], 0, unit: 512, out _) == Errno.None ? 512 : AlignedBuffer.PageSize;
        }
        finally
        {
            BouncePool.Return(bounce);
        }
    }

    private static UInt128 ReadBootId()
    {
        try
        {
            string text = File.ReadAllText("/proc/sys/kernel/random/boot_id").Trim().Replace("-", "", StringComparison.Ordinal);
            return UInt128.TryParse(text, System.Globalization.NumberStyles.HexNumber, System.Globalization.CultureInfo.InvariantCulture, out UInt128 id)
                ? id : UInt128.Zero;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return UInt128.Zero;
        }
    }
}
