// The raw file of a disk. Behaves as a block device does where a plain file would change its size.
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;

namespace QcowFs.FileSystem;

/// <summary>A whole disk as a file.</summary>
internal sealed class DiskNode : Node
{
    // The disk's files keep no state per open; the number only has to differ from 0, which means "no handle".
    private const ulong Handle = 1;

    // Where bytes cannot change, neither can attributes: a reader holds the image's lock against writers.
    private static readonly TimeSpan ReadOnlyAttributesValid = TimeSpan.FromHours(1);

    private readonly MountedImage _image;
    private readonly IDiskImage _disk;
    private readonly TreeSettings _settings;
    private readonly FuseOpenFlags _openFlags;

    public DiskNode(string name, MountedImage image, TreeSettings settings)
        : base(name)
    {
        _image = image;
        _disk = image.Disk;
        _settings = settings;
        // One choice for the node's life: the kernel does not allow two ways of opening one inode at the same time.
        _openFlags = !_disk.IsReadOnly || settings.AlwaysDirect
            ? FuseOpenFlags.DirectIo | FuseOpenFlags.ParallelDirectWrites
            : FuseOpenFlags.KeepCache;
    }

    public MountedImage Image => _image;

    public override TimeSpan AttributesValid => _disk.IsReadOnly ? ReadOnlyAttributesValid : TimeSpan.Zero;

    public override FuseAttributes GetAttributes(ulong handle)
    {
        HostFileFacts host = _image.HostFile;
        return new FuseAttributes
        {
            Inode = Number,
            Mode = FileType.Regular | _settings.FileMode,
            Links = 1,
            Uid = _settings.Uid,
            Gid = _settings.Gid,
            Size = _disk.Length,
            Blocks = host.Blocks,
            BlockSize = PreferredTransfer(_disk.Info.BlockSize),
            AccessTime = host.ModifyTime,
            ModifyTime = host.ModifyTime,
            ChangeTime = host.ModifyTime,
        };
    }

    public override Errno Open(int flags, out FuseOpenResult result)
    {
        result = default;
        if (_disk.IsReadOnly && (flags & OpenFlags.AccessMask) != OpenFlags.ReadOnly) return Errno.EROFS;
        _image.AddOpen();
        result = new FuseOpenResult { Handle = Handle, Flags = _openFlags };
        return Errno.None;
    }

    public override void Release(ulong handle) => _image.RemoveOpen();

    public override Errno Read(ulong handle, long offset, Span<byte> destination, out int count)
    {
        count = (int)Clip(offset, destination.Length);
        if (count > 0) _disk.Read(offset, destination[..count]);
        return Errno.None;
    }

    public override Errno Write(long offset, ReadOnlySpan<byte> source, int openFlags, out int count)
    {
        count = 0;
        if (_disk.IsReadOnly) return Errno.EBADF;
        int length = (int)Clip(offset, source.Length);
        if (length == 0) return source.IsEmpty ? Errno.None : Errno.ENOSPC; // at the end, as a block device
        _image.MarkChanged();
        _disk.Write(offset, source[..length]);
        // With direct I/O the kernel sends no FSYNC for these flags: the reply itself is the promise.
        if ((openFlags & OpenFlags.DataSync) != 0) _disk.Sync();
        count = length;
        return Errno.None;
    }

    public override Errno Sync()
    {
        _image.Sync();
        return Errno.None;
    }

    public override Errno Allocate(long offset, long length, int mode)
    {
        if (_disk.IsReadOnly) return Errno.EBADF;
        if (offset < 0 || length <= 0) return Errno.EINVAL;
        bool keepsSize = (mode & AllocateMode.KeepSize) != 0;
        int action = mode & ~AllocateMode.KeepSize;
        if (action is not (AllocateMode.Reserve or AllocateMode.ZeroRange) && mode != (AllocateMode.PunchHole | AllocateMode.KeepSize))
            return Errno.EOPNOTSUPP; // collapse, insert, unshare: a disk cannot
        long inside = Clip(offset, length);
        if (inside < length && !keepsSize) return Errno.ENOSPC; // it would grow the disk
        if (inside == 0) return Errno.None;
        _image.MarkChanged();
        if (action == AllocateMode.PunchHole) _disk.Discard(offset, inside);
        else if (action == AllocateMode.ZeroRange) _disk.WriteZeroes(offset, inside);
        else _disk.Reserve(offset, inside);
        return Errno.None;
    }

    public override Errno Seek(ulong handle, long offset, int whence, out long result)
    {
        result = offset;
        long size = _disk.Length;
        if (whence is not (Whence.Data or Whence.Hole)) return Errno.EINVAL;
        if (offset < 0 || offset >= size) return Errno.ENXIO;
        while (result < size)
        {
            Extent extent = _disk.QueryExtent(result, size - result);
            bool isData = extent.Kind is ExtentKind.Data or ExtentKind.Compressed;
            if (isData == (whence == Whence.Data)) return Errno.None;
            result += extent.Length;
        }
        result = size; // the end of the file is a hole, but no data
        return whence == Whence.Hole ? Errno.None : Errno.ENXIO;
    }

    public override Errno SetSize(ulong handle, long size)
    {
        if (size == _disk.Length) return Errno.None;
        if (_disk.IsReadOnly) return Errno.EROFS;
        // What O_TRUNC sends: ignored as on a block device, so that `cp` and `dd` onto the file work.
        return handle == 0 && size == 0 ? Errno.None : Errno.EPERM;
    }

    /// <summary>How many of <paramref name="length"/> bytes from <paramref name="offset"/> on lie inside the disk.</summary>
    private long Clip(long offset, long length) =>
        offset < 0 ? 0 : Math.Clamp(_disk.Length - offset, 0, length);

    // st_blksize is what cp and dd take as their buffer: a mapping block avoids copy-on-write, within bounds that make sense.
    private static uint PreferredTransfer(long blockSize) => (uint)Math.Clamp(blockSize, 4096, 1 << 20);
}
