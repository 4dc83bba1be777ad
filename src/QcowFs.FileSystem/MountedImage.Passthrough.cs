// What an image gives the kernel so that it serves a disk by itself.
//
// W2. From the first open of a disk's file to its last close either the kernel serves it or this process does (DiskNode): the kernel
//     does not allow both ways for one file at a time.
// W3. While the kernel may write to a disk, nothing that would end the identity of disk and file is begun, no change of the image as a
//     whole and no freeze; whoever asks for one is told why (ImageBusyException).
// W4. What the kernel wrote is not seen here, so the image counts as changed at every sync and at the last close.
// W5. A memory map outlives the close of the file that it was made of (the kernel maps the host file, and releases ours), and it keeps the
//     mount. So an image that was lent once stays open, and locked, until the mount ends; and W3 holds while a process maps the file.
using System.Diagnostics.CodeAnalysis;
using Microsoft.Win32.SafeHandles;
using QcowFs.Images;
using QcowFs.Storage;

namespace QcowFs.FileSystem;

public sealed partial class MountedImage
{
    private readonly Dictionary<object, FileStorage?> _shadows = []; // views by snapshot, or by the image itself; null: there is none. Guarded by _life
    private volatile bool _isLent; // the kernel may write to the disk; changed under _life
    private volatile bool _wasLent; // it has been
    private bool _isPinned; // W5: a use of the image's own, guarded by _life
    private Func<string?>? _findMapper; // who maps the disk's file; guarded by _life

    /// <summary>Who serves the active disk's file while it is open; null while it is not.</summary>
    internal DataPath? DiskPath => _diskPath < 0 ? null : (DataPath)_diskPath;

    private volatile int _diskPath = -1;

    /// <summary>Notes who serves a disk's file from its first open on, and null at its last close.</summary>
    internal void NoteDataPath(SnapshotView? snapshot, DataPath? path)
    {
        if (snapshot is null) _diskPath = path is { } known ? (int)known : -1;
        else snapshot.DataPath = path;
    }

    /// <summary>The same of every snapshot whose file is open.</summary>
    internal IReadOnlyList<(string Name, DataPath Path)> SnapshotPaths()
    {
        lock (_life)
            return [.. _views.Where(static v => v.IsUsed && v.DataPath is not null).Select(static v => (v.Facts.Name, v.DataPath!.Value))];
    }

    /// <summary>Gives the host file that is the disk, where there is one; of a disk that can be written, for the kernel to write to
    /// (W3). The caller uses the image, and ends with <see cref="TakeBack"/>.</summary>
    /// <param name="snapshot">The snapshot, or null for the active disk.</param>
    /// <param name="mayTrail">Whether a disk whose size an image states is given to be written too.</param>
    /// <param name="findMapper">Tells which process has the disk's file mapped, or null.</param>
    /// <param name="file">The host file.</param>
    internal bool TryLend(SnapshotView? snapshot, bool mayTrail, Func<string?> findMapper, [NotNullWhen(true)] out SafeFileHandle? file)
    {
        lock (_life)
        {
            file = null;
            if ((snapshot is null ? _disk : snapshot.Disk) is not { } disk) return false;
            if (snapshot is not null || !IsWritable) return disk.TryGetIdentityFile(out file);
            // What the kernel writes past the end of a disk whose size is stated elsewhere does not make that one larger.
            if (_frozen || (!mayTrail && disk.Info.Format != "raw") || !disk.TryBeginOutsideWrites(out file)) return false;
            _isLent = true;
            _wasLent = true;
            _findMapper = findMapper;
            if (!_options.StaysOpen && !_isPinned)
            {
                _isPinned = true;
                _uses++;
            }
            MarkChanged(); // W4
            return true;
        }
    }

    /// <summary>The kernel lets go of what <see cref="TryLend"/> gave. Faults: <see cref="StorageException"/>.</summary>
    internal void TakeBack(SnapshotView? snapshot)
    {
        lock (_life)
        {
            if (snapshot is not null || !_isLent) return;
            _isLent = false;
            MarkChanged(); // W4
            Monitor.PulseAll(_life);
            if (_disk is not { } disk) return;
            disk.EndOutsideWrites();
            if (_shape is { } shape) _shape = shape with { VirtualSize = disk.Length };
        }
    }

    /// <summary>Gives the view of a read-only disk: a file without a name that shares the image's blocks. Made when it is first asked for,
    /// gone when the image is closed. The caller uses the image.</summary>
    /// <param name="snapshot">The snapshot, or null for the active disk.</param>
    /// <param name="limits">What it may cost.</param>
    /// <param name="accept">Asked before anything is put into a new file whether it is of use.</param>
    /// <param name="say">Told why there is none.</param>
    internal FileStorage? GetView(SnapshotView? snapshot, ReflinkLimits limits, Func<FileStorage, bool> accept, Action<string> say)
    {
        object key = snapshot ?? (object)this;
        lock (_life)
            if (_shadows.TryGetValue(key, out FileStorage? known)) return known is not null && accept(known) ? known : null;
        FileStorage? view = MakeView(snapshot, limits, accept, say);
        lock (_life) _shadows[key] = view; // one open of a disk's file at a time asks for it
        return view;
    }

    /// <summary>Lets a view go that nobody reads, where the image could become another meanwhile.</summary>
    internal void DropView(SnapshotView? snapshot)
    {
        lock (_life)
            if (IsWritable && _shadows.Remove(snapshot ?? (object)this, out FileStorage? view)) view?.Dispose();
    }

    private FileStorage? MakeView(SnapshotView? snapshot, ReflinkLimits limits, Func<FileStorage, bool> accept, Action<string> say)
    {
        FileStorage? view = null;
        string? obstacle;
        int slot = Enter(changes: false, snapshot, out IDiskImage disk);
        try
        {
            view = Volatile.Read(ref _hold)?.CreateView();
            if (view is null || !accept(view))
            {
                view?.Dispose();
                return null;
            }
            obstacle = ReflinkView.Fill(view, disk, limits).Obstacle;
        }
        catch (StorageException fault)
        {
            obstacle = fault.IsOutOfSpace ? "the host file system is full" : fault.Message;
        }
        catch (ImageFormatException fault)
        {
            obstacle = fault.Message;
        }
        finally
        {
            Exit(slot);
        }
        if (obstacle is null) return view;
        view?.Dispose();
        say($"reflink view of {Native.HostText.Show(Name)}: {obstacle}; it is served without one");
        return null;
    }

    /// <summary>Under _life.</summary>
    private void DropViews()
    {
        foreach (FileStorage? view in _shadows.Values) view?.Dispose();
        _shadows.Clear();
    }

    /// <summary>Under _life (W3). Waits for a file that has just been closed, unless the file that asks is open itself.</summary>
    private void RequireNotLent(bool isOfOpenFile = false)
    {
        if (!isOfOpenFile) WaitForReleases(() => _isLent);
        if (_isLent)
            throw new ImageBusyException("its disk is open, and the kernel writes to it directly (passthrough)", "close what is open first");
        if (_findMapper?.Invoke() is { } mapper)
            throw new ImageBusyException($"{mapper} has its disk mapped, and the kernel writes to it directly (passthrough)", "end that first");
    }
}
