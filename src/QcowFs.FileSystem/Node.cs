// One node of the tree: what the kernel calls an inode. Kinds of node override what they can do; everything else answers as
// the kernel's own file systems would.
using QcowFs.Fuse;
using QcowFs.Native;

namespace QcowFs.FileSystem;

/// <summary>A node. Members are called from several channel threads at once.</summary>
internal abstract class Node(byte[] name)
{
    private volatile bool _isGone;

    /// <summary>Name within the parent directory as the kernel gives it; empty for the root.</summary>
    public byte[] NameBytes { get; } = name;

    /// <summary>Whether the node has left the tree. What is open stays usable; it is not opened again.</summary>
    public bool IsGone => _isGone;

    /// <summary>Node id and inode number; given by <see cref="NodeTable"/>, never used twice.</summary>
    public ulong Number { get; private set; }

    /// <summary>Attributes; the size may depend on the handle.</summary>
    public abstract FuseAttributes GetAttributes(ulong handle);

    /// <summary>Opens the node as a file. <paramref name="flags"/> are those of open(2).</summary>
    public virtual Errno Open(int flags, out FuseOpenResult result)
    {
        result = default;
        return Errno.EISDIR;
    }

    /// <summary>Ends one open. <paramref name="attributesEnd"/> makes the kernel forget the attributes of the node that it names.</summary>
    public virtual void Release(ulong handle, Action<ulong>? attributesEnd)
    {
    }

    /// <summary>Reads; short only at the end of the file.</summary>
    public virtual Errno Read(ulong handle, long offset, Span<byte> destination, out int count)
    {
        count = 0;
        return Errno.EISDIR;
    }

    /// <summary>Writes; short only at the end of the disk.</summary>
    public virtual Errno Write(long offset, ReadOnlySpan<byte> source, int openFlags, out int count)
    {
        count = 0;
        return Errno.EBADF;
    }

    /// <summary>Makes the content durable. What cannot change is durable.</summary>
    public virtual Errno Sync() => Errno.None;

    /// <summary>fallocate(2).</summary>
    public virtual Errno Allocate(long offset, long length, int mode) => Errno.EOPNOTSUPP;

    /// <summary>SEEK_DATA and SEEK_HOLE.</summary>
    public virtual Errno Seek(ulong handle, long offset, int whence, out long result)
    {
        result = 0;
        return Errno.EINVAL;
    }

    /// <summary>Whether the size may be set to <paramref name="size"/>; <paramref name="handle"/> is 0 for truncate(2) and O_TRUNC.</summary>
    public virtual Errno SetSize(ulong handle, long size) => Errno.EPERM;

    internal void Assign(ulong number) => Number = number;

    internal void LeaveTree() => _isGone = true;
}
