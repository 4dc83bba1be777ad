// A file of facts: its content is made when it is opened and stays the same for that open.
using System.Collections.Concurrent;
using QcowFs.Fuse;
using QcowFs.Native;

namespace QcowFs.FileSystem;

/// <summary>A read-only file whose content <paramref name="make"/> produces at each open.</summary>
internal sealed class FactsNode(byte[] name, TreeSettings settings, TimeProvider time, Func<byte[]> make) : Node(name)
{
    private readonly ConcurrentDictionary<ulong, byte[]> _contents = new();
    private ulong _lastHandle;
    private volatile byte[]? _newest;

    public int Opens => _contents.Count;

    /// <summary>The size is that of the handle's content. fstat(2) reaches FUSE without a handle: then it is the content made last,
    /// which is the caller's own unless another open came between; reading to the end is right in any case.</summary>
    public override FuseAttributes GetAttributes(ulong handle)
    {
        byte[]? content = _contents.TryGetValue(handle, out byte[]? own) ? own : _newest;
        DateTimeOffset now = time.GetUtcNow();
        return new FuseAttributes
        {
            Inode = Number,
            Mode = FileType.Regular | (settings.FileMode & 0x124), // 0444
            Links = 1,
            Uid = settings.Uid,
            Gid = settings.Gid,
            Size = content?.Length ?? 0,
            Blocks = 0,
            BlockSize = 4096,
            AccessTime = now,
            ModifyTime = now,
            ChangeTime = now,
        };
    }

    public override Errno Open(int flags, out FuseOpenResult result)
    {
        result = default;
        if (IsGone) return Errno.ESTALE;
        if ((flags & OpenFlags.AccessMask) != OpenFlags.ReadOnly) return Errno.EACCES;
        byte[] content = make();
        ulong handle = Interlocked.Increment(ref _lastHandle);
        _contents[handle] = content;
        _newest = content;
        // Direct, so that the kernel does not cut reads at a size it believes from another open.
        result = new FuseOpenResult { Handle = handle, Flags = FuseOpenFlags.DirectIo };
        return Errno.None;
    }

    public override void Release(ulong handle, Action<ulong>? attributesEnd)
    {
        _contents.TryRemove(handle, out _);
        if (_contents.IsEmpty) _newest = null;
    }

    public override Errno Read(ulong handle, long offset, Span<byte> destination, out int count)
    {
        count = 0;
        if (!_contents.TryGetValue(handle, out byte[]? content)) return Errno.EBADF;
        if (offset < 0 || offset >= content.Length) return Errno.None;
        ReadOnlySpan<byte> rest = content.AsSpan((int)offset);
        count = Math.Min(rest.Length, destination.Length);
        rest[..count].CopyTo(destination);
        return Errno.None;
    }

    public override Errno Seek(ulong handle, long offset, int whence, out long result)
    {
        result = offset;
        if (!_contents.TryGetValue(handle, out byte[]? content)) return Errno.EBADF;
        if (offset < 0 || offset >= content.Length) return Errno.ENXIO;
        if (whence == Whence.Hole) result = content.Length;
        return whence is Whence.Data or Whence.Hole ? Errno.None : Errno.EINVAL;
    }
}
