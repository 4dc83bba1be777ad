// The raw file of a disk, of a partition of it, or of a snapshot. Behaves as a block device does where a plain file would change its
// size.
using Microsoft.Win32.SafeHandles;
using QcowFs.FileSystem.Partitions;
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.FileSystem;

/// <summary>A range of a disk as a file: all of it, or a partition.</summary>
internal sealed class DiskNode : Node
{
    // These files keep no state per open; the number only has to differ from 0, which means "no handle".
    private const ulong Handle = 1;
    private const uint WriteBits = 0x92; // 0222

    // Where bytes cannot change, neither can attributes: a reader holds the image's lock against writers as long as it is open. Without
    // this the kernel asks for them before each read of a file that it caches.
    private static readonly TimeSpan ReadOnlyAttributesValid = TimeSpan.FromHours(1);

    [ThreadStatic]
    private static ImageLoad? Asked; // whose request this thread serves, until it is counted

    private readonly MountedImage _image;
    private readonly SnapshotView? _snapshot;
    private readonly TreeSettings _settings;
    private readonly long _start;
    private readonly long _most; // the range's length; a disk may end before
    private readonly bool _isWritable;
    private readonly bool _isDirect;
    private readonly Lock _opening = new(); // guards what follows; held while a view is made
    private int _opens;
    private DataPath _path; // W2
    private int _backingId;
    private ulong _cachedVersion; // of the image whose bytes the kernel may have in its cache

    /// <summary>The active disk.</summary>
    public DiskNode(byte[] name, MountedImage image, TreeSettings settings)
        : this(name, image, null, null, settings)
    {
    }

    /// <param name="name">Name in the parent.</param>
    /// <param name="image">The image.</param>
    /// <param name="snapshot">The snapshot, or null for the active disk.</param>
    /// <param name="partition">The range, or null for all.</param>
    /// <param name="settings">Owner and mode.</param>
    public DiskNode(byte[] name, MountedImage image, SnapshotView? snapshot, Partition? partition, TreeSettings settings)
        : base(name)
    {
        _image = image;
        _snapshot = snapshot;
        _settings = settings;
        _start = partition?.Offset ?? 0;
        _most = partition?.Length ?? long.MaxValue;
        Partition = partition;
        _isWritable = snapshot is null && image.IsWritable;
        // One choice for the node's life: the kernel does not allow two ways of opening one inode at the same time.
        _isDirect = _isWritable || settings.AlwaysDirect;
        _cachedVersion = image.Version;
    }

    public MountedImage Image => _image;

    public SnapshotView? Snapshot => _snapshot;

    public Partition? Partition { get; }

    // An image that is closed after its last use belongs to whoever wants it then.
    private TimeSpan AttributesValid => !_isWritable && (_image.StaysOpen || Volatile.Read(ref _opens) > 0) ? ReadOnlyAttributesValid : TimeSpan.Zero;

    public long Length => Math.Clamp((_snapshot?.Length ?? _image.Length) - _start, 0, _most);

    /// <summary>Takes whose request this thread has just served, if it was one of a disk.</summary>
    public static ImageLoad? TakeAsked()
    {
        ImageLoad? asked = Asked;
        if (asked is not null) Asked = null;
        return asked;
    }

    public override FuseAttributes GetAttributes(ulong handle)
    {
        HostFileFacts host = _image.HostFile ?? default;
        long length = Length;
        long blocks = host.Blocks;
        if (_snapshot is not null || Partition is not null)
            blocks = Math.Min(blocks, (length / HostFileFacts.BytesPerBlock) + (length % HostFileFacts.BytesPerBlock == 0 ? 0 : 1));
        return new FuseAttributes
        {
            Inode = Number,
            Mode = FileType.Regular | (_isWritable ? _settings.FileMode : _settings.FileMode & ~WriteBits),
            Links = 1,
            Uid = _settings.Uid,
            Gid = _settings.Gid,
            Size = length,
            Blocks = blocks,
            BlockSize = PreferredTransfer(_image.BlockSize),
            AccessTime = host.ModifyTime,
            ModifyTime = host.ModifyTime,
            ChangeTime = host.ModifyTime,
            Valid = AttributesValid,
        };
    }

    public override Errno Open(int flags, out FuseOpenResult result)
    {
        result = default;
        if (IsGone) return Errno.ESTALE; // the kernel looks the name up again
        if (!_isWritable && (flags & OpenFlags.AccessMask) != OpenFlags.ReadOnly) return Errno.EROFS;
        _image.AddUse(_snapshot);
        bool isOpen = false;
        try
        {
            lock (_opening)
            {
                if (_opens == 0) ChoosePath();
                _opens++;
                isOpen = true;
                result = new FuseOpenResult { Handle = Handle, Flags = FlagsOfOpen(), BackingId = _backingId };
            }
        }
        finally
        {
            if (!isOpen) _image.RemoveUse(_snapshot);
        }
        return Errno.None;
    }

    public override void Release(ulong handle, Action<ulong>? attributesEnd)
    {
        try
        {
            lock (_opening)
                if (--_opens == 0) LeavePath();
            // Before the image's lock goes, and with it the reason to believe them. What is on its way to the kernel it drops too.
            if (!_isWritable && AttributesValid == TimeSpan.Zero) attributesEnd?.Invoke(Number);
        }
        finally
        {
            _image.RemoveUse(_snapshot);
        }
    }

    public override Errno Read(ulong handle, long offset, Span<byte> destination, out int count)
    {
        Asked = _image.Load;
        int slot = _image.Enter(changes: false, _snapshot, out IDiskImage disk);
        try
        {
            count = (int)Clip(disk, offset, destination.Length);
            if (count > 0) disk.Read(_start + offset, destination[..count]);
            return Errno.None;
        }
        finally
        {
            _image.Exit(slot);
        }
    }

    public override Errno Write(long offset, ReadOnlySpan<byte> source, int openFlags, out int count)
    {
        count = 0;
        if (!_isWritable) return Errno.EBADF;
        Asked = _image.Load;
        int slot = EnterToWrite(offset, source.Length, out IDiskImage disk);
        try
        {
            int length = (int)Clip(disk, offset, source.Length);
            // At the end, as a block device, or as a file that cannot be larger.
            if (length == 0) return source.IsEmpty ? Errno.None : Grows ? Errno.EFBIG : Errno.ENOSPC;
            _image.MarkChanged();
            disk.Write(_start + offset, source[..length]);
            // With direct I/O the kernel sends no FSYNC for these flags: the reply itself is the promise.
            if ((openFlags & OpenFlags.DataSync) != 0) disk.Sync();
            count = length;
            return Errno.None;
        }
        finally
        {
            _image.Exit(slot);
        }
    }

    public override Errno Sync()
    {
        if (!_isWritable) return Errno.None;
        Asked = _image.Load;
        _image.Sync();
        return Errno.None;
    }

    public override Errno Allocate(long offset, long length, int mode)
    {
        if (!_isWritable) return Errno.EBADF;
        if (offset < 0 || length <= 0) return Errno.EINVAL;
        bool keepsSize = (mode & AllocateMode.KeepSize) != 0;
        int action = mode & ~AllocateMode.KeepSize;
        if (action is not (AllocateMode.Reserve or AllocateMode.ZeroRange) && mode != (AllocateMode.PunchHole | AllocateMode.KeepSize))
            return Errno.EOPNOTSUPP; // collapse, insert, unshare: a disk cannot
        Asked = _image.Load;
        int slot = EnterToWrite(offset, keepsSize ? 0 : length, out IDiskImage disk);
        try
        {
            long inside = Clip(disk, offset, length);
            if (inside < length && !keepsSize) return Grows ? Errno.EFBIG : Errno.ENOSPC; // it would grow the disk
            if (inside == 0) return Errno.None;
            _image.MarkChanged();
            if (action == AllocateMode.PunchHole) disk.Discard(_start + offset, inside);
            else if (action == AllocateMode.ZeroRange) disk.WriteZeroes(_start + offset, inside);
            else disk.Reserve(_start + offset, inside);
            return Errno.None;
        }
        finally
        {
            _image.Exit(slot);
        }
    }

    public override Errno Seek(ulong handle, long offset, int whence, out long result)
    {
        result = offset;
        if (whence is not (Whence.Data or Whence.Hole)) return Errno.EINVAL;
        int slot = _image.Enter(changes: false, _snapshot, out IDiskImage disk);
        try
        {
            long size = Math.Clamp(disk.Length - _start, 0, _most);
            if (offset < 0 || offset >= size) return Errno.ENXIO;
            while (result < size)
            {
                Extent extent = disk.QueryExtent(_start + result, size - result);
                bool isData = extent.Kind is ExtentKind.Data or ExtentKind.Compressed;
                if (isData == (whence == Whence.Data)) return Errno.None;
                result += extent.Length;
            }
            result = size; // the end of the file is a hole, but no data
            return whence == Whence.Hole ? Errno.None : Errno.ENXIO;
        }
        finally
        {
            _image.Exit(slot);
        }
    }

    public override Errno SetSize(ulong handle, long size)
    {
        if (size == Length) return Errno.None;
        if (!_isWritable) return Errno.EROFS;
        // What O_TRUNC sends: ignored as on a block device, so that `cp` and `dd` onto the file work.
        if (handle == 0 && size == 0) return Errno.None;
        if (!Grows) return Errno.EPERM;
        try
        {
            return _image.TrySetSize(size) ? Errno.None : size > Length ? Errno.EFBIG : Errno.EINVAL;
        }
        catch (ImageBusyException)
        {
            return Errno.EBUSY; // frozen, or written by the kernel
        }
    }

    /// <summary>Whether the file's size is the disk's to change.</summary>
    private bool Grows => Partition is null && _snapshot is null && _image.IsGrowable;

    /// <summary>Begins a change of a range, for which the disk is made larger first where it may be.</summary>
    private int EnterToWrite(long offset, long length, out IDiskImage disk)
    {
        int slot = _image.Enter(changes: true, _snapshot, out disk);
        while (Grows && length > 0 && offset >= 0 && offset <= long.MaxValue - length && offset + length > disk.Length)
        {
            // Not from inside the gate: whoever changes the size waits until all are out.
            _image.Exit(slot);
            bool? isLarger = _image.TryGrow(offset + length);
            slot = _image.Enter(changes: true, _snapshot, out disk); // while it is frozen, this waits
            if (isLarger == false) break;
        }
        return slot;
    }

    /// <summary>Decides at the first open who serves the disk until the last close (W2). Never fails: what the kernel cannot serve is
    /// served here.</summary>
    private void ChoosePath()
    {
        _path = DataPath.Server;
        _backingId = 0;
        Passthrough passthrough = _settings.Passthrough;
        if (Partition is not null) return;
        try
        {
            if (passthrough.Permits(_isWritable)) Lend(passthrough);
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException)
        {
            passthrough.Say($"passthrough: {HostText.Show(_image.Name)}: {fault.Message}");
        }
        _image.NoteDataPath(_snapshot, _path);
    }

    private void Lend(Passthrough passthrough)
    {
        string? FindMapper() => passthrough.FindMapper?.Invoke(Number);
        if (_image.TryLend(_snapshot, passthrough.MayTrail, FindMapper, out SafeFileHandle? file))
        {
            if (passthrough.TryOpen(_image.Name, file, out _backingId)) _path = DataPath.Passthrough;
            else _image.TakeBack(_snapshot);
        }
        else if (!_isWritable && passthrough.Views is { } limits)
        {
            bool isTaken = false;
            FileStorage? view = _image.GetView(
                _snapshot, limits, made => isTaken = passthrough.TryOpen(_image.Name, made.Handle, out _backingId), passthrough.Say);
            if (view is not null)
            {
                _path = DataPath.ReflinkView;
                return;
            }
            if (isTaken) passthrough.Close(_backingId);
            _backingId = 0;
        }
    }

    private void LeavePath()
    {
        _image.NoteDataPath(_snapshot, null);
        if (_path == DataPath.Server) return;
        _settings.Passthrough.Close(_backingId);
        _backingId = 0;
        DataPath path = _path;
        _path = DataPath.Server;
        if (path == DataPath.Passthrough) _image.TakeBack(_snapshot);
        else _image.DropView(_snapshot);
    }

    // Pages that the kernel kept are the image's as it was when this node was last opened: of use only if nobody else had it since.
    private FuseOpenFlags FlagsOfOpen()
    {
        if (_path != DataPath.Server) return FuseOpenFlags.Passthrough;
        if (_isDirect) return FuseOpenFlags.DirectIo | FuseOpenFlags.ParallelDirectWrites;
        ulong version = _image.Version;
        return Interlocked.Exchange(ref _cachedVersion, version) == version ? FuseOpenFlags.KeepCache : FuseOpenFlags.None;
    }

    /// <summary>How many of <paramref name="length"/> bytes from <paramref name="offset"/> on lie inside the range.</summary>
    private long Clip(IDiskImage disk, long offset, long length) =>
        offset < 0 ? 0 : Math.Clamp(Math.Min(disk.Length - _start, _most) - offset, 0, length);

    // st_blksize is what cp and dd take as their buffer: a mapping block avoids copy-on-write, within bounds that make sense.
    private static uint PreferredTransfer(long blockSize) => (uint)Math.Clamp(blockSize, 4096, 1 << 20);
}
