// The copy-on-write engine: moves all guest data of all formats that have a block map.
//
// Invariants (the architecture's I1 to I11, as far as this file keeps them):
// I1. A block is published only after its data has been written; the map's commit syncs data before it writes mappings.
// I4. Sync returns after a commit that began after every acknowledged write.
// I5. A read returns the guest's bytes, the backing's, or zeros: a block that is only partly written is filled first.
// I6. Every read and write runs inside the reader epoch from its lookup to its last byte.
// I7. Every change of a file passes a LatchedStorage.
// I9, I10. BeginUse comes before the first change.
//
// Locks, in this order: range lock (held across I/O), then the map's own. A thread holds no lock and is outside
// the epoch when it commits, since a commit waits for the epoch.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Engine;

/// <summary>What an image is built from. The image owns all of it and disposes it.</summary>
/// <param name="Map">Where blocks live.</param>
/// <param name="Data">The file that holds guest data.</param>
/// <param name="Files">Every host file of the image.</param>
/// <param name="Backing">Supplies unallocated blocks; null: zeros.</param>
/// <param name="Latch">The failure latch that the files share.</param>
/// <param name="Epoch">The epoch that the map's commit waits for before it frees blocks.</param>
/// <param name="Changes">Is told of every change of the disk, or null.</param>
internal sealed record CowImageParts(
    IBlockMap Map, IStorage Data, IReadOnlyList<IStorage> Files, IDiskImage? Backing, FailureLatch Latch, ReaderEpoch Epoch,
    IChangeTracker? Changes = null);

/// <summary>A disk image over a block map.</summary>
internal sealed partial class CowImage : IDiskImage
{
    private static readonly TimeSpan ConfirmDelay = TimeSpan.FromMilliseconds(100);

    private readonly CowImageParts _parts;
    private readonly IBlockMap _map;
    private readonly ICompressingMap? _compressing;
    private readonly IWriteGuard? _guard;
    private readonly IWriteGuard? _dataGuard;
    private readonly IStorage _data;
    private readonly IDiskImage? _dataImage; // what is under _data where that is a disk image itself
    private readonly BackgroundFill? _fill;
    private readonly ReaderEpoch _epoch;
    private readonly RangeGate _ranges = new();
    private readonly GroupCommit _commits;
    private readonly ITimer? _commitTimer;
    private readonly ITimer? _confirmTimer;
    private readonly TimeSpan _commitInterval;
    private readonly long _blockMask;
    private readonly int _blockBits;
    private readonly Action<string>? _log;
    private readonly Thread? _recovery;
    private volatile bool _isWrittenOutside;
    private IDiskImage? _backing; // taken away by a commit once it is not needed; used inside the epoch only
    private int _timerArmed;
    private int _confirmArmed;
    private long _commitsAtConfirm;
    private volatile bool _dataDirty;
    private volatile bool _inUse;
    private volatile bool _closed;

    /// <summary>Presents the parts as an image.</summary>
    public CowImage(CowImageParts parts, ImageInfo info, OpenOptions options)
    {
        _parts = parts;
        _map = parts.Map;
        _compressing = options is { Compress: true, Writable: true } ? parts.Map as ICompressingMap : null;
        _guard = parts.Map.Guard;
        _dataGuard = _guard is { ListsData: true } ? _guard : null;
        _data = parts.Data;
        _dataImage = (parts.Data is LatchedStorage latched ? latched.Inner : parts.Data) as IDiskImage;
        _backing = parts.Backing;
        _epoch = parts.Epoch;
        _log = options.Log;
        Info = info;
        Statistics = new ImageStatistics(() => _map.MetadataReads);
        Length = info.VirtualSize;
        IsReadOnly = !options.Writable;
        _blockMask = _map.Traits.BlockSize - 1L;
        _blockBits = System.Numerics.BitOperations.Log2((uint)_map.Traits.BlockSize);
        _commits = new GroupCommit(CommitOnce);
        _attached = Attach(options.AttachedIndex);
        _commitInterval = options.CommitInterval;
        if (options.Writable && _commitInterval > TimeSpan.Zero)
            _commitTimer = options.Time.CreateTimer(_ => CommitInBackground(), null, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        if (_commitTimer is not null && _guard is not null)
            _confirmTimer = options.Time.CreateTimer(_ => ConfirmInBackground(), null, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        if (options.BackgroundRecovery && _map.Recovery is not null)
        {
            _recovery = new Thread(RecoverInBackground) { IsBackground = true, Name = "recovery" };
            _recovery.Start();
        }

        if (options.Writable && options.StreamRate is { } rate && _map.Traits.IsIdentity)
            _fill = new BackgroundFill(this, rate, options);
    }

    public string Name => Info.Path;

    public long Length { get; }

    public bool IsReadOnly { get; }

    public ImageInfo Info { get; }

    public ImageStatistics Statistics { get; }

    public string? Failure => _parts.Latch.Reason ?? _dataImage?.Failure;

    public FileFacts? DataFile => Info.DataPath is null ? null
        : _dataImage is not null ? _dataImage.DataFile
        : _data is LatchedStorage { Inner: FileStorage hostFile } ? hostFile.QueryFacts() : null;

    public FillProgress? Fill => _fill?.Progress;

    public IReadOnlyList<FormatFact> CurrentFacts
    {
        get
        {
            int slot = _epoch.Enter();
            try
            {
                return _map.CurrentFacts;
            }
            finally
            {
                _epoch.Exit(slot);
            }
        }
    }

    /// <summary>The block map, for the format's own commands and for tests.</summary>
    internal IBlockMap Map => _map;

    private bool IsDirty => _dataDirty || _map.IsDirty;

    public void Read(long offset, Span<byte> destination)
    {
        Statistics.AddRead(destination.Length);
        int slot = _epoch.Enter();
        try
        {
            ReadGuest(offset, destination);
        }
        finally
        {
            _epoch.Exit(slot);
        }
    }

    public Extent QueryExtent(long offset, long length)
    {
        length = Math.Min(length, Length - offset);
        if (length <= 0)
            return new Extent(ExtentKind.Backing, 0);
        int slot = _epoch.Enter();
        try
        {
            Extent extent = _map.Lookup(offset, length);
            return extent.Kind switch
            {
                ExtentKind.Backing => QueryBacking(offset, extent.Length),
                ExtentKind.Compressed => extent with { Host = -1 },
                ExtentKind.Data when _map.Traits.IsIdentity => QueryData(extent),
                _ => extent,
            };
        }
        finally
        {
            _epoch.Exit(slot);
        }
    }

    public void Sync()
    {
        if (IsReadOnly)
            return;
        Statistics.AddSync();
        NoteOutsideWrites();

        // A commit in progress has already cleared the marks of what it is about to make durable, and sets them again before it
        // ends when it fails: so the marks are read before and after.
        if (IsDirty || _commits.IsRunning || IsDirty)
            _commits.Run();
        ThrowIfFailed("sync");
    }

    public void Close()
    {
        if (_closed)
            return;
        _closed = true;
        _commitTimer?.Dispose();
        _confirmTimer?.Dispose();
        _fill?.Dispose();
        StopRecovery();
        try
        {
            EndIdleSweeps();
            NoteOutsideWrites();
            if (_attached is not null && Failure is null)
                SweepAndCommit();
            if (_inUse)
            {
                _parts.Changes?.Store();
                CommitAll();
                SweepAndCommit();
                SealIndex();
                ThrowIfFailed("close");
                _map.EndUse();
                _attached?.Bind();
            }

            ThrowIfFailed("close");
            _dataImage?.Close();
        }
        finally
        {
            Dispose();
        }
    }

    public void Dispose()
    {
        _closed = true;
        _commitTimer?.Dispose();
        _confirmTimer?.Dispose();
        _fill?.Dispose();
        StopRecovery();
        _map.Dispose();
        _attached?.Dispose();
        foreach (IStorage file in _parts.Files)
            file.Dispose();
        _backing?.Dispose();
    }

    private Extent QueryBacking(long offset, long length)
    {
        IDiskImage? backing = Volatile.Read(ref _backing);
        if (backing is null || offset >= backing.Length)
            return new Extent(ExtentKind.Backing, length);
        Extent extent = backing.QueryExtent(offset, Math.Min(length, backing.Length - offset));
        return extent with { Depth = extent.Depth + 1, Writable = false };
    }

    /// <summary>What the data file itself knows of a range that this image maps to it: a hole there reads as zeros.</summary>
    private Extent QueryData(in Extent extent)
    {
        if (_dataImage is not null)
        {
            Extent inner = _dataImage.QueryExtent(extent.Host, extent.Length);
            return inner.Kind == ExtentKind.Backing ? new Extent(ExtentKind.Zero, inner.Length) : inner with { Depth = 0 };
        }

        bool isData = DataHoles.IsData(_data, extent.Host, extent.Length, out long run);
        return isData ? extent with { Length = run } : new Extent(ExtentKind.Zero, run);
    }

    /// <summary>Reads guest bytes inside the epoch. Bytes past the end of the disk are zeros.</summary>
    private void ReadGuest(long offset, Span<byte> destination)
    {
        if (offset + destination.Length > Length)
        {
            int inside = (int)Math.Clamp(Length - offset, 0, destination.Length);
            destination[inside..].Clear();
            destination = destination[..inside];
        }

        while (destination.Length > 0)
        {
            Extent extent = _map.Lookup(offset, destination.Length);
            Span<byte> part = destination[..(int)extent.Length];
            IDiskImage? backing;
            switch (extent.Kind)
            {
                case ExtentKind.Data:
                    _data.Read(extent.Host, part);
                    break;
                case ExtentKind.Compressed:
                    _map.ReadCompressed(extent.Host, (int)(offset & _blockMask), part);
                    break;
                case ExtentKind.Backing when (backing = Volatile.Read(ref _backing)) is not null:
                    backing.Read(offset, part);
                    break;
                default:
                    part.Clear();
                    break;
            }

            offset += part.Length;
            destination = destination[part.Length..];
        }
    }

    /// <summary>The commit that callers of Sync share: metadata in order, or only the data file where no metadata is dirty.</summary>
    private void CommitOnce()
    {
        _readBack = 0;
        bool taken = false;
        bool done = false;
        try
        {
            if (_map.Commit(() => taken = TakeDataDirty()))
                Statistics.AddCommit();
            done = true;
        }
        catch (Exception exception) when (exception is not StorageException)
        {
            // What the structures say contradicts itself; what memory holds of them must not reach the disk.
            _parts.Latch.Fail($"{Name}: commit: {exception.Message}");
            throw;
        }
        finally
        {
            if (!done)
                _dataDirty |= taken;
        }

        if (_map.IsDirty)
            ArmCommitTimer();
        if (_guard is { HasUnconfirmed: true })
            ArmConfirmTimer();
        if (_map.IsComplete)
            ReleaseBacking();
    }

    /// <summary>Lets the backing image go once no block needs it: another process may write it then.</summary>
    private void ReleaseBacking()
    {
        IDiskImage? backing = Interlocked.Exchange(ref _backing, null);
        if (backing is null)
            return;
        _epoch.Synchronize();
        backing.Dispose();
    }

    /// <summary>Whether guest data was written since the last call. Cleared only where it was set: whoever set it has written, and
    /// the sync that follows covers it; who sets it from here on is owed another.</summary>
    private bool TakeDataDirty()
    {
        if (!_dataDirty)
            return false;
        _dataDirty = false;
        return true;
    }

    /// <summary>Runs the recovery on the caller's thread.</summary>
    internal void Recover(Action<Action>? run = null)
    {
        BeginChange();
        (run ?? _map.Recovery!.Run)(_commits.Run);
        _log?.Invoke($"{Name}: {_map.Recovery!.Summary}");
    }

    private void RecoverInBackground()
    {
        try
        {
            Recover();
        }
        catch (Exception exception) when (exception is StorageException or ImageFormatException)
        {
            _log?.Invoke($"recovery stopped: {exception.Message}");
        }
        catch (Exception exception)
        {
            // On a thread of its own nobody else is told, and the process has other mounts to keep.
            _parts.Latch.Fail($"{Name}: recovery stopped: {exception.Message}");
        }
    }

    private void StopRecovery()
    {
        if (_recovery is null)
            return;
        _map.Recovery!.Stop();
        _recovery.Join();
    }

    private void CommitInBackground()
    {
        Volatile.Write(ref _timerArmed, 0);
        try
        {
            if (!_closed && Failure is null)
            {
                _commits.Run();
                SweepWhenIdle();
            }
        }
        catch (StorageException exception)
        {
            // Whoever syncs next is told; without space the commit is tried again later (I7).
            _log?.Invoke($"background commit: {exception.Message}");
            if (exception.IsOutOfSpace)
                ArmCommitTimer();
        }
        catch (ObjectDisposedException) when (_closed)
        {
            // The image was abandoned while the timer fired.
            return;
        }
        catch (Exception exception)
        {
            _parts.Latch.Fail($"{Name}: background commit: {exception.Message}");
        }
    }

    private void ArmCommitTimer()
    {
        if (_commitTimer is null || Volatile.Read(ref _timerArmed) != 0 || Interlocked.Exchange(ref _timerArmed, 1) != 0)
            return;
        try
        {
            _commitTimer.Change(_commitInterval, Timeout.InfiniteTimeSpan);
        }
        catch (ObjectDisposedException) when (_closed)
        {
            // Close commits by itself.
            return;
        }
    }

    // When no commit came for a while, one confirms what is listed, so that the next overwrite need not wait for it.
    private void ConfirmInBackground()
    {
        Volatile.Write(ref _confirmArmed, 0);
        if (_guard is not { HasUnconfirmed: true } || _closed)
            return;
        if (Interlocked.Exchange(ref _commitsAtConfirm, Statistics.Commits) != Statistics.Commits)
            ArmConfirmTimer();
        else
            CommitInBackground();
    }

    private void ArmConfirmTimer()
    {
        if (_confirmTimer is null || Interlocked.Exchange(ref _confirmArmed, 1) != 0)
            return;
        try
        {
            _confirmTimer.Change(ConfirmDelay, Timeout.InfiniteTimeSpan);
        }
        catch (ObjectDisposedException) when (_closed)
        {
            // Close confirms by itself.
            return;
        }
    }

    private void ThrowIfFailed(string operation)
    {
        if (Failure is not null)
            throw new StorageException(Errno.EIO, $"{operation} after an earlier failure", Name);
    }

    private void ThrowIfReadOnly(string operation)
    {
        if (IsReadOnly)
            throw new StorageException(Errno.EROFS, operation, Name);
    }
}
