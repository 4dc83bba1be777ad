// What a file system implements to be served over FUSE. The library decodes and encodes; it knows nothing of what is behind.
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>
/// A file system. Members are called from several channel threads at once. Spans are valid until the call returns and must not be
/// kept; file contents are read straight into the reply and written straight from the request. Expected outcomes are returned as
/// <see cref="Errno"/>; an exception becomes EIO, is logged once by the session, and never ends the mount. A member of this
/// interface never answers <see cref="Errno.ENOSYS"/>: the kernel would remember it for the whole mount.
/// </summary>
public interface IFuseFileSystem
{
    /// <summary>The node id of the root (FUSE_ROOT_ID).</summary>
    const ulong RootNode = 1;

    /// <summary>The kernel has agreed to serve; called once, before any other member. <paramref name="backing"/> lets it serve files by
    /// itself, and is null where it cannot. It may be used until the session has ended.</summary>
    void Connected(IBackingFiles? backing)
    {
        // Who answers every request needs to know nothing of it.
    }

    /// <summary>Finds a child by name and counts one kernel reference to it.</summary>
    Errno Lookup(ulong parent, ReadOnlySpan<byte> name, out FuseEntry entry);

    /// <summary>The kernel drops <paramref name="count"/> references to a node.</summary>
    void Forget(ulong node, ulong count);

    /// <summary>Attributes of a node; <paramref name="handle"/> is 0 where the kernel gave none.</summary>
    Errno GetAttributes(ulong node, ulong handle, out FuseAttributes attributes);

    /// <summary>Changes attributes; the result is what the node has afterwards.</summary>
    Errno SetAttributes(ulong node, in FuseSetAttributes change, out FuseAttributes attributes);

    /// <summary>Opens a file. <paramref name="flags"/> are the open(2) flags.</summary>
    Errno Open(ulong node, int flags, out FuseOpenResult result);

    /// <summary>The last descriptor of one open was closed.</summary>
    void Release(ulong node, ulong handle);

    /// <summary>Reads up to <c>destination.Length</c> bytes; fewer only at the end of the file.</summary>
    Errno Read(ulong node, ulong handle, long offset, Span<byte> destination, out int count);

    /// <summary>Writes <paramref name="source"/>. <paramref name="openFlags"/> holds O_DSYNC or O_SYNC where the reply must wait for
    /// durability. Fewer bytes than given are written only at the end of the file.</summary>
    Errno Write(ulong node, ulong handle, long offset, ReadOnlySpan<byte> source, int openFlags, out int count);

    /// <summary>A descriptor was closed (one of possibly several); not a request for durability.</summary>
    Errno Flush(ulong node, ulong handle);

    /// <summary>Makes the node's content durable. <see cref="RootNode"/> with handle 0 means everything (SYNCFS, which a kernel does
    /// not send to an ordinary mount).</summary>
    Errno Sync(ulong node, ulong handle, bool dataOnly);

    /// <summary>fallocate(2) with its mode bits.</summary>
    Errno Allocate(ulong node, ulong handle, long offset, long length, int mode);

    /// <summary>lseek(2) with SEEK_DATA (3) or SEEK_HOLE (4).</summary>
    Errno Seek(ulong node, ulong handle, long offset, int whence, out long result);

    /// <summary>Opens a directory.</summary>
    Errno OpenDirectory(ulong node, out FuseOpenResult result);

    /// <summary>Adds entries from position <paramref name="offset"/> on until the writer says it is full. With
    /// <see cref="FuseDirectoryWriter.WithAttributes"/> each accepted entry other than "." and ".." counts one kernel reference;
    /// where this call ends in an error or an exception after it added entries, those references are given back by
    /// <see cref="Forget"/>.</summary>
    Errno ReadDirectory(ulong node, ulong handle, long offset, ref FuseDirectoryWriter writer);

    /// <summary>Closes a directory.</summary>
    void ReleaseDirectory(ulong node, ulong handle);

    /// <summary>statfs(2).</summary>
    Errno StatFs(ulong node, out FuseStatFs result);
}
