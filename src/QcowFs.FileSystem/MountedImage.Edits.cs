// What is done to an image as a whole while it is mounted: snapshots, size, check, freeze; and what the tree and the fact files want
// to know of it.
using QcowFs.FileSystem.Partitions;
using QcowFs.Images;
using QcowFs.Storage;

namespace QcowFs.FileSystem;

/// <summary>A request that cannot be granted as things are. The message is one line: what is wrong; what to do.</summary>
public sealed class ImageBusyException(string problem, string advice) : Exception($"{problem}; {advice}")
{
    /// <summary>What is wrong.</summary>
    public string Problem { get; } = problem;

    /// <summary>What to do.</summary>
    public string Advice { get; } = advice;
}

public sealed partial class MountedImage
{
    // A listing does not wait longer for an edit; it shows what was known.
    private static readonly TimeSpan GatePatience = TimeSpan.FromSeconds(2);

    private readonly List<SnapshotView> _views = []; // those in the tree and those in use; guarded by _life

    /// <summary>Makes, applies or deletes an internal snapshot. Requests wait meanwhile, and files of other snapshots stay open. Durable
    /// when it returns; a crash leaves the image as before or as after. Faults: <see cref="ImageBusyException"/> where an open file is
    /// in the way, and those of <see cref="ImageEditor"/>.</summary>
    public void EditSnapshot(SnapshotAction action, string name)
    {
        lock (_life)
        {
            RequireChangeable();
            RequireNotLent();
            if (action == SnapshotAction.Apply)
            {
                WaitForReleases(() => _diskUses > 0);
                if (_diskUses > 0)
                    throw new ImageBusyException("its disk is open, and would become another under whoever reads it", "close what is open first");
            }
            if (action == SnapshotAction.Delete)
            {
                WaitForReleases(() => _views.Exists(IsMeant));
                if (_views.Exists(IsMeant)) throw new ImageBusyException($"the file of snapshot \"{name}\" is open", "close what is open first");
            }
            WithDiskClosed(hold => hold.EditSnapshot(action, name));
        }

        bool IsMeant(SnapshotView view) => view.IsUsed && (view.Facts.Name == name || view.Facts.Id == name);
    }

    /// <summary>Gives the disk another size; gives the new one. Requests wait meanwhile. Faults as <see cref="EditSnapshot"/>.</summary>
    public long Resize(SizeChange change, bool mayShrink)
    {
        lock (_life)
        {
            RequireChangeable();
            RequireNotLent();
            long size = 0;
            WithDiskClosed(hold => size = hold.Resize(change, mayShrink));
            return size;
        }
    }

    /// <summary>Gives the disk the size that a file of it was given, also a smaller one; false where the image cannot have it, which the log
    /// tells. A disk that is its file changes at once; any other is closed for it, and then the change is durable. Faults as
    /// <see cref="EditSnapshot"/>.</summary>
    internal bool TrySetSize(long size)
    {
        lock (_life)
        {
            if (size == Length) return true;
            RequireChangeable();
            return SetSizeNow(size);
        }
    }

    /// <summary>Makes the disk at least so large, for a write that ends there. False where it cannot be; null where it is frozen now.</summary>
    internal bool? TryGrow(long size)
    {
        lock (_life)
        {
            if (size <= Length) return true;
            if (_frozen) return null;
            if (_disk is null) return false;
            long unit = _disk.Info.SizeUnit;
            return size <= long.MaxValue - unit && SetSizeNow((size + unit - 1) / unit * unit);
        }
    }

    /// <summary>Under _life.</summary>
    private bool SetSizeNow(long size)
    {
        MarkChanged();
        _gate.HoldEverybody();
        try
        {
            // In place, which costs no commit, where the image can.
            if (_disk is { } disk && (disk.TrySetFileLength(size) || (size % disk.Info.SizeUnit == 0 && disk.TryGrow(size))))
            {
                if (_shape is { } shape) _shape = shape with { VirtualSize = size };
                return true;
            }
        }
        catch (StorageException tooLarge) when (tooLarge.Errno is Native.Errno.EFBIG or Native.Errno.EINVAL)
        {
            _options.Log(_options.Describe(tooLarge));
            return false;
        }
        finally
        {
            _gate.LetGo(HeldNow);
        }
        RequireNotLent(isOfOpenFile: true);
        try
        {
            WithDiskClosed(hold => hold.SetSize(size));
            return true;
        }
        catch (ImageFormatException refused)
        {
            _options.Log(_options.Describe(refused));
            return false;
        }
    }

    /// <summary>Checks the image as it is now, everything acknowledged included. Requests wait meanwhile.</summary>
    public CheckReport Check()
    {
        lock (_life)
        {
            RequireNotLent();
            CheckReport? report = null;
            WithDiskClosed(hold => report = hold.Check());
            return report!;
        }
    }

    /// <summary>Completes the image file and keeps it so: requests that would change it wait until <see cref="Thaw"/>, others go on.
    /// The file is as after an unmount. Faults: <see cref="StorageException"/>; then it is not frozen.</summary>
    public void Freeze()
    {
        lock (_life)
        {
            if (_frozen || !IsWritable) return;
            RequireNotLent();
            _frozen = true;
            try
            {
                Exchange(static _ => { });
            }
            catch
            {
                _frozen = false;
                _gate.LetGo(HeldNow);
                throw;
            }
        }
    }

    /// <summary>Lets changes pass again.</summary>
    public void Thaw()
    {
        lock (_life)
        {
            if (!_frozen) return;
            _frozen = false;
            Exchange(static _ => { });
        }
    }

    /// <summary>Under _life: runs what wants the disk closed, on an image that is open or is opened for it.</summary>
    private void WithDiskClosed(Action<IImageHold> work)
    {
        bool isTemporary = _hold is null;
        if (isTemporary) OpenNow();
        try
        {
            if (_disk is null) throw new ImageBusyException($"it has failed: {_failure}", "unmount it and check it");
            Exchange(work);
        }
        finally
        {
            if (isTemporary) CloseNow();
        }
    }

    /// <summary>Under _life: closes the disk, works, opens it again (L2, L3).</summary>
    private void Exchange(Action<IImageHold> work)
    {
        _gate.HoldEverybody();
        try
        {
            if (_hold is not { } hold || _disk is null) return;
            if (CloseDisk() is { } failure) throw new StorageException(Native.Errno.EIO, $"completion ({failure})", Name);
            try
            {
                work(hold);
            }
            finally
            {
                Reopen(hold);
            }
        }
        finally
        {
            _gate.LetGo(HeldNow);
        }
    }

    private void Reopen(IImageHold hold)
    {
        try
        {
            OpenDisk(hold);
        }
        catch (Exception fault)
        {
            _disk?.Dispose();
            _disk = null;
            _failure ??= $"it could not be opened again: {fault.Message}";
            _error = _failure;
            _options.Log($"{Name}: {_failure}");
            throw;
        }
    }

    private void RequireChangeable()
    {
        if (!IsWritable) throw new ImageBusyException("it is mounted read-only", "mount it with -w, or unmount it first");
        if (_frozen) throw new ImageBusyException("the mount is frozen", "run \"qcowfs sync --thaw\" first");
    }

    private void WaitForReleases(Func<bool> isInTheWay)
    {
        long started = _options.Time.GetTimestamp();
        while (isInTheWay())
        {
            TimeSpan left = _options.ReleasePatience - _options.Time.GetElapsedTime(started);
            if (left <= TimeSpan.Zero || !Monitor.Wait(_life, left)) return;
        }
    }

    /// <summary>The view of a snapshot, remembered so that its open files are known.</summary>
    internal SnapshotView AddView(SnapshotFacts facts, string key, bool keyIsId)
    {
        SnapshotView view = new(facts, key, keyIsId, Length);
        lock (_life) _views.Add(view);
        return view;
    }

    /// <summary>The tree no longer shows a snapshot.</summary>
    internal void RemoveView(SnapshotView view)
    {
        lock (_life)
        {
            if (view.IsUsed) return;
            _views.Remove(view);
            if (_shadows.Remove(view, out FileStorage? shadow)) shadow?.Dispose();
        }
    }

    /// <summary>States the shape of an image that is not open, or why it has none.</summary>
    internal void SetShape(ImageShape? shape, string? error)
    {
        lock (_life)
        {
            if (_hold is not null) return;
            _shape = shape;
            _error = error;
            Volatile.Write(ref _version, _version + 1);
        }
    }

    // What is known of the partition table. While it is being read it is no fresher than before: who lists names meanwhile waits.
    private const int TableIsFresh = 0, TableIsBeingRead = 1, TableIsStale = 2;

    private bool IsTableStale => Volatile.Read(ref _table) != TableIsFresh || _wasLent;

    /// <summary>Whether the open disk was changed since its partition table was read.</summary>
    internal bool IsShapeStale => IsTableStale && _options.ShowsPartitions && IsOpen;

    /// <summary>Reads the partition table anew where the open disk was changed since the last time. A failure keeps what was known.</summary>
    internal void RefreshShape()
    {
        // Who closes the disk meanwhile reads the table before (CloseNow).
        if (!IsShapeStale || !_gate.TryEnter(GatePatience, out int slot)) return;
        try
        {
            ReadTable();
        }
        finally
        {
            _gate.Exit(slot);
        }
    }

    /// <summary>By one thread at a time: inside the gate under the tree's lock, or where everybody is out.</summary>
    private void ReadTable()
    {
        if (!_options.ShowsPartitions || !IsTableStale || _disk is not { } disk || _shape is not { } shape) return;
        Volatile.Write(ref _table, TableIsBeingRead); // before the read: a change meanwhile asks for another
        try
        {
            _shape = shape with { VirtualSize = disk.Length, Partitions = PartitionTable.Read(disk.Length, disk.Read) };
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException)
        {
            _options.Log($"{Name}: its partition table cannot be read: {_options.Describe(fault)}");
        }
        Interlocked.CompareExchange(ref _table, TableIsFresh, TableIsBeingRead);
    }

    internal byte[] WriteInfo()
    {
        lock (_life)
        {
            if (_hold is { } hold) return ImageFacts.Info(FactsOf(hold));
            using IImageHold brief = _acquire();
            return ImageFacts.Info(brief.ReadFacts());
        }
    }

    private ImageFileFacts FactsOf(IImageHold hold)
    {
        ImageFileFacts facts = hold.ReadFacts();
        return facts with
        {
            VirtualSize = Length, // a snapshot's may be another than the image's
            ActualSize = WithData(hold.HostFile).Blocks * HostFileFacts.BytesPerBlock,
            Lock = new LockFacts($"qcowfs (process {Environment.ProcessId})", IsWritable),
            FormatSpecific = WithCurrent(facts.FormatSpecific, _disk?.CurrentFacts ?? []),
        };
    }

    private static IReadOnlyList<FormatFact> WithCurrent(IReadOnlyList<FormatFact> facts, IReadOnlyList<FormatFact> current) =>
        current.Count == 0 ? facts : [.. facts.Where(fact => current.All(c => c.Key != fact.Key)), .. current];

    // Where the guest's data is in a file of its own, that is the one that grows and changes.
    private HostFileFacts WithData(HostFileFacts image) => _disk?.DataFile is { } data
        ? HostFileFacts.From(data) with { Device = image.Device, Inode = image.Inode }
        : image;

    internal FillProgress? Fill => _disk?.Fill;

    /// <summary>Counters of deduplication since the disk was opened last; null where there are none.</summary>
    internal DedupStatistics? Dedup => _disk?.Statistics.Dedup;

    /// <summary>Under _life, so that neither a last close nor a first open comes between: a brief look would be in their way.</summary>
    internal byte[] WriteMap()
    {
        lock (_life)
        {
            if (_disk is { } disk) return ImageFacts.Map(disk);
            using IImageHold brief = _acquire();
            using IDiskImage read = brief.OpenDisk(writable: false);
            return ImageFacts.Map(read);
        }
    }

    internal byte[] WriteStatistics() => ImageFacts.Statistics(this);
}
