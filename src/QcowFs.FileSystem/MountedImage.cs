// An image as a mount holds it: opened at its first use and closed at its last, or open as long as the mount; edited while files are
// open; closed with an account of what was done.
//
// L1. The image's file is open and locked while anybody uses a file of it. Disks over it are exchanged without the lock being let go.
// L2. A request uses the disk only inside the gate; who exchanges the disk holds everybody first. No request inside the gate waits
//     for _life.
// L3. What is exchanged is complete on stable storage: closing a disk commits it. Where that fails the image takes no more requests,
//     and the receipt says so.
using QcowFs.FileSystem.Partitions;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.FileSystem;

/// <summary>How a mount treats an image.</summary>
public sealed record MountedImageOptions
{
    /// <summary>The image's file name without directories (<see cref="HostText"/>); the tree names its files after it.</summary>
    public required string Name { get; init; }

    /// <summary>Whether it may be changed.</summary>
    public bool Writable { get; init; }

    /// <summary>Whether the disk takes the size that a file of it is given, or written to.</summary>
    public bool Growable { get; init; }

    /// <summary>Opened with the mount and closed with it; else opened when it is first used, closed when it is last.</summary>
    public bool StaysOpen { get; init; }

    /// <summary>Whether its partitions are looked for.</summary>
    public bool ShowsPartitions { get; init; } = true;

    /// <summary>Told one line for each thing a person may want to know.</summary>
    public Action<string> Log { get; init; } = static _ => { };

    /// <summary>One line for a fault, for error.txt.</summary>
    public Func<Exception, string> Describe { get; init; } = static fault => fault.Message;

    /// <summary>Facts of the image's file while it is not open; null where it has gone.</summary>
    public Func<HostFileFacts?> WhenClosed { get; init; } = static () => null;

    /// <summary>How long an edit waits for files that have just been closed: RELEASE reaches us some time after close(2) has returned.
    /// </summary>
    public TimeSpan ReleasePatience { get; init; } = TimeSpan.FromSeconds(2);

    /// <summary>The clock.</summary>
    public TimeProvider Time { get; init; } = TimeProvider.System;
}

/// <summary>An image that a mount shows. Thread-safe except <see cref="Close"/>, which the owner calls once, when no request can
/// arrive any more.</summary>
public sealed partial class MountedImage
{
    private static readonly TimeSpan ClockDoubt = TimeSpan.FromSeconds(2);

    private readonly MountedImageOptions _options;
    private readonly Func<IImageHold> _acquire;
    private readonly object _life = new(); // a plain object, since edits wait on it for releases; guards what follows up to the gate
    private IImageHold? _hold;
    private ImageTotals _past;
    private string? _recovery;
    private string? _failure;
    private bool _frozen;
    private int _diskUses;
    private readonly RequestGate _gate = new();
    private volatile IDiskImage? _disk; // changed under _life and the gate
    private volatile ImageShape? _shape;
    private volatile string? _error;
    private volatile bool _changed;
    private int _table = TableIsStale;
    private int _uses; // changed under _life
    private ulong _version; // changed under _life
    private HostFileFacts? _closedFile; // the file as it was when it was last let go, where that tells it from every other

    /// <summary>An image that nobody has opened yet; with <see cref="MountedImageOptions.StaysOpen"/> it is opened here.</summary>
    /// <param name="options">How it is treated.</param>
    /// <param name="acquire">Makes a hold on it; called again each time that it is opened anew.</param>
    public MountedImage(MountedImageOptions options, Func<IImageHold> acquire)
    {
        _options = options;
        _acquire = acquire;
        if (!options.StaysOpen) return;
        lock (_life) OpenNow();
    }

    /// <summary>The image's file name.</summary>
    public string Name => _options.Name;

    /// <summary>Whether its active disk may be changed.</summary>
    public bool IsWritable => _options.Writable;

    /// <summary>Whether writing past the end of its active disk, and cutting it, gives it another size.</summary>
    internal bool IsGrowable => _options.Growable && IsWritable;

    /// <summary>Whether its file is open and locked now.</summary>
    public bool IsOpen => Volatile.Read(ref _hold) is not null;

    /// <summary>How many opens of the image's files have not been released.</summary>
    public int Opens => Volatile.Read(ref _uses) - (_isPinned ? 1 : 0);

    /// <summary>Whether it stays open as long as the mount, though nobody has a file of it open (W5).</summary>
    internal bool IsPinned => _isPinned;

    /// <summary>Bytes of the active disk.</summary>
    public long Length => _disk?.Length ?? _shape?.VirtualSize ?? 0;

    /// <summary>The format's name, or null where it is not known.</summary>
    public string? Format => _disk?.Info.Format ?? _shape?.Format;

    /// <summary>Why the image is of no use, or null.</summary>
    public string? Error => _error;

    /// <summary>Why the open image takes no more changes, or null.</summary>
    public string? Failure => _disk?.Failure ?? _failure;

    /// <summary>Facts of the image's file now, which say which file it is; null where it has gone.</summary>
    public HostFileFacts? FileNow => HostFile;

    internal bool StaysOpen => _options.StaysOpen;

    internal ImageShape? Shape => _shape;

    internal long BlockSize => _disk?.Info.BlockSize ?? _shape?.BlockSize ?? 0;

    /// <summary>Differs from before wherever somebody else may have changed the image, so that what is cached of it is of no use.</summary>
    internal ulong Version => Volatile.Read(ref _version);

    internal ImageLoad Load { get; } = new();

    /// <summary>Facts of the file now; null where it has gone.</summary>
    internal HostFileFacts? HostFile
    {
        get
        {
            int slot = _gate.Enter(changes: false);
            try
            {
                // The hold ends only when everybody is out (L2).
                return Volatile.Read(ref _hold) is { } hold ? WithData(hold.HostFile) : _options.WhenClosed();
            }
            finally
            {
                _gate.Exit(slot);
            }
        }
    }

    /// <summary>Begins a request. Ends with <see cref="Exit"/>, also when using the disk fails. Faults: <see cref="StorageException"/>
    /// where the image could not be opened again after an edit.</summary>
    internal int Enter(bool changes, SnapshotView? snapshot, out IDiskImage disk)
    {
        int slot = _gate.Enter(changes);
        if ((snapshot is null ? _disk : snapshot.Disk) is { } current)
        {
            disk = current;
            return slot;
        }
        _gate.Exit(slot);
        throw new StorageException(Errno.EIO, "use after it could not be opened again", Name);
    }

    internal void Exit(int slot) => _gate.Exit(slot);

    /// <summary>Begins a use: the first opens the image. Faults as <see cref="ImageOpener.Open"/>.</summary>
    internal void AddUse(SnapshotView? snapshot)
    {
        lock (_life)
        {
            if (_hold is null) OpenNow();
            try
            {
                snapshot?.Open(_hold!);
            }
            catch
            {
                if (_uses == 0 && !_options.StaysOpen) CloseNow();
                throw;
            }
            if (snapshot is null) _diskUses++;
            _uses++;
        }
    }

    /// <summary>Ends a use. The last one commits without being asked, and closes the image unless it stays open.</summary>
    internal void RemoveUse(SnapshotView? snapshot)
    {
        lock (_life)
        {
            if (snapshot is null) _diskUses--;
            else snapshot.Close();
            Monitor.PulseAll(_life);
            if (--_uses > (_isPinned ? 1 : 0)) return;
            if (!_options.StaysOpen && !_isPinned)
            {
                if (CloseNow() is { } failure) throw new StorageException(Errno.EIO, failure, Name);
                return;
            }
        }
        if (_changed) Sync();
    }

    /// <summary>Notes that the disk's content was changed through this mount.</summary>
    internal void MarkChanged()
    {
        // Read first: the line stays shared between the channels' processors.
        if (!_changed) _changed = true;
        if (Volatile.Read(ref _table) != TableIsStale) Volatile.Write(ref _table, TableIsStale);
    }

    /// <summary>Commits and makes durable without closing. What cannot change, or is not open, is durable.</summary>
    public void Sync()
    {
        if (!IsOpen) return;
        int slot = _gate.Enter(changes: false);
        try
        {
            if (_disk is not { IsReadOnly: false } disk) return;
            if (_isLent) MarkChanged(); // W4
            // Cleared before, so that a change meanwhile is not taken for synced; set again where the sync fails.
            _changed = false;
            bool done = false;
            try
            {
                disk.Sync();
                done = true;
            }
            finally
            {
                if (!done) _changed = true;
            }
        }
        finally
        {
            _gate.Exit(slot);
        }
    }

    /// <summary>Closes the image and says how everything went. Never throws: whatever goes wrong here is what the receipt is for.</summary>
    /// <param name="check">Checks the image after the close, its files still locked, and gives the outcome in words; called only where
    /// something was changed and nothing went wrong.</param>
    public ImageReceipt Close(Func<IImageHold, string>? check = null)
    {
        lock (_life)
        {
            string outcome = "not run";
            IImageHold? hold = _hold;
            if (_disk is not null) CloseDisk();
            if (check is not null && _failure is null && _past.BytesWritten + _past.BytesDiscarded > 0)
                outcome = CheckAfterClose(hold, check);
            Release();
            return new ImageReceipt(Name, _recovery, _past.BytesWritten, _past.BytesDiscarded, _past.BytesShared, outcome, _failure)
            {
                WrittenByKernel = _wasLent,
            };
        }
    }

    /// <summary>Whether there is anything to account for.</summary>
    internal bool WasUsed
    {
        get
        {
            lock (_life) return _hold is not null || _failure is not null || _recovery is not null || _past != default;
        }
    }

    /// <summary>What was done so far.</summary>
    internal ImageTotals Totals(out string? recovery)
    {
        lock (_life)
        {
            recovery = _recovery ?? _disk?.Info.Recovery;
            return _disk is { } disk ? _past.Plus(disk.Statistics) : _past;
        }
    }

    private string CheckAfterClose(IImageHold? hold, Func<IImageHold, string> check)
    {
        try
        {
            if (hold is not null) return check(hold);
            using IImageHold again = _acquire();
            return check(again);
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException or ImageInUseException)
        {
            _options.Log($"check after the close: {_options.Describe(fault)}"); // somebody else has it already, most likely
            return "not run";
        }
    }

    /// <summary>Under _life.</summary>
    private void OpenNow()
    {
        IImageHold hold = _acquire();
        try
        {
            OpenDisk(hold);
            _hold = hold;
            _error = null;
        }
        catch (Exception fault)
        {
            _disk?.Dispose();
            _disk = null;
            hold.Dispose();
            if (fault is ImageFormatException or StorageException or ImageInUseException) _error = _options.Describe(fault);
            throw;
        }
    }

    /// <summary>Under _life, nobody inside the gate or nobody there yet.</summary>
    private void OpenDisk(IImageHold hold)
    {
        // Frozen, the disk is opened for reading, so that not even a recovery writes.
        IDiskImage disk = hold.OpenDisk(_options.Writable && !_frozen);
        _disk = disk;
        if (hold.HostFile != _closedFile) Volatile.Write(ref _version, _version + 1);
        Volatile.Write(ref _table, TableIsStale);
        _shape = new ImageShape(
            disk.Info.Format, disk.Length, disk.Info.BlockSize, hold.ReadFacts().Snapshots, _shape?.Partitions ?? PartitionTable.None);
    }

    /// <summary>Under _life, where nobody uses the image. Gives what went wrong, or null.</summary>
    private string? CloseNow()
    {
        _gate.HoldEverybody();
        try
        {
            ReadTable();
            string? failure = CloseDisk();
            RememberFile();
            Release();
            return failure;
        }
        finally
        {
            _gate.LetGo(HeldNow);
        }
    }

    // A file's time is as coarse as the host's clock tick: only one that is older than that tells the next change apart.
    private void RememberFile()
    {
        HostFileFacts file = _hold?.HostFile ?? default;
        _closedFile = file.ModifyTime < _options.Time.GetUtcNow() - ClockDoubt ? file : null;
    }

    private GateHold HeldNow => _frozen ? GateHold.Changes : GateHold.Nobody;

    /// <summary>Closes the disk and keeps its account. Under _life; everybody is out. Never throws; gives what went wrong, or null.</summary>
    private string? CloseDisk()
    {
        if (_disk is not { } disk) return null;
        _disk = null;
        string? failure = null;
        try
        {
            disk.Close();
        }
        catch (Exception fault)
        {
            failure = fault.Message;
        }
        failure = disk.Failure ?? failure; // the first failure is the cause; that of the close is its consequence
        _past = _past.Plus(disk.Statistics);
        _recovery ??= disk.Info.Recovery;
        _changed = failure is not null;
        if (failure is not null)
        {
            _failure ??= failure;
            _error = failure;
            _options.Log($"{Name}: {failure}");
        }
        disk.Dispose();
        return failure;
    }

    private void Release()
    {
        DropViews();
        _hold?.Dispose();
        _hold = null;
    }
}
