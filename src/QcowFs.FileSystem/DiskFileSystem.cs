// The tree that a mount shows (PRODUCT section 3), served to the kernel: finds the node, lets it answer.
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;

namespace QcowFs.FileSystem;

/// <summary>
/// The file system of one mount. Thread-safe. Faults of a disk pass through as exceptions; <see cref="ErrorMap"/> says what the kernel
/// is told. <see cref="Close"/> is called once, when the session has ended.
/// </summary>
public sealed class DiskFileSystem : IFuseFileSystem
{
    // Names that do not change while a mount lives.
    private static readonly TimeSpan FixedEntryValid = TimeSpan.FromHours(1);

    private readonly NodeTable _nodes = new();
    private readonly Listings _listings = new();
    private readonly MountedImage? _single;
    private readonly ImageTree? _tree;
    private readonly Passthrough _passthrough;

    private DiskFileSystem(MountedImage? single, TreeSettings settings, Func<DiskFileSystem, ImageTree?> makeTree)
    {
        _passthrough = settings.Passthrough;
        _single = single;
        _tree = makeTree(this);
    }

    /// <summary>The images of the mount, those that have left a directory while files of theirs are open included.</summary>
    public IReadOnlyList<MountedImage> Images => _single is not null ? [_single] : [.. _tree!.AllBranches.Select(static b => b.Image)];

    /// <summary>Whether the root is the disk itself: the mount covers a regular file.</summary>
    public bool RootIsFile => _tree is null;

    /// <summary>How many opens of files have not been released.</summary>
    public int Opens => _tree is null ? _single!.Opens : _tree.AllBranches.Sum(static b => b.Image.Opens + b.FactOpens);

    /// <summary>Tells the kernel that a name in the root has gone, and that a node's attributes have changed; set when the session has
    /// begun. Called only by <see cref="Refresh"/>.</summary>
    public Action<ReadOnlyMemory<byte>>? NameLeft { get; set; }

    /// <summary>Tells the kernel that a node's attributes have changed.</summary>
    public Action<ulong>? NodeChanged { get; set; }

    /// <summary>A directory with the image's disk, partitions, snapshots and facts.</summary>
    public static DiskFileSystem ForImage(MountedImage image, TreeSettings settings, TimeProvider time, Action<string> log) =>
        new(image, settings, system => new ImageTree(system._nodes, image, null, settings, time, log));

    /// <summary>A directory with everything of all images of a directory.</summary>
    public static DiskFileSystem ForDirectory(ImageDirectory directory, TreeSettings settings, TimeProvider time, Action<string> log) =>
        new(null, settings, system => new ImageTree(system._nodes, null, directory, settings, time, log));

    /// <summary>A single file, which is the disk.</summary>
    public static DiskFileSystem ForFile(MountedImage image, TreeSettings settings) => new(image, settings, system =>
    {
        system._nodes.Add(new DiskNode([], image, settings));
        return null;
    });

    internal ulong ReferencesTo(ulong node) => _nodes.ReferencesTo(node);

    /// <summary>Makes the tree agree with what is there now, and tells the kernel. Called when an image was changed as a whole; never by
    /// a thread that serves a request, since the kernel waits for the directory that such a request holds.</summary>
    public void Refresh()
    {
        if (_tree is null)
        {
            NodeChanged?.Invoke(IFuseFileSystem.RootNode);
            return;
        }
        foreach (Node node in _tree.Refresh()) NameLeft?.Invoke(node.NameBytes);
        foreach (ImageBranch branch in _tree.Branches)
        {
            NodeChanged?.Invoke(branch.Disk.Number);
            foreach (DiskNode partition in branch.Partitions) NodeChanged?.Invoke(partition.Number);
        }
    }

    /// <summary>Counts a request that the session has served on this thread.</summary>
    public static void Served(FuseOpcode opcode, TimeSpan duration)
    {
        if (DiskNode.TakeAsked() is not { } load) return;
        load.Add(
            opcode switch
            {
                FuseOpcode.Read => LoadKind.Read,
                FuseOpcode.Write => LoadKind.Write,
                FuseOpcode.FAllocate => LoadKind.Discard,
                _ => LoadKind.Sync,
            },
            duration);
    }

    /// <summary>Closes every image and gives the accounts of those that were used.</summary>
    /// <param name="check">As for <see cref="MountedImage.Close"/>.</param>
    public IReadOnlyList<ImageReceipt> Close(Func<IImageHold, string>? check = null)
    {
        if (_single is not null) return [_single.Close(check)];
        IReadOnlyList<ImageReceipt> earlier = _tree!.Receipts;
        return [.. earlier, .. Images.Where(static i => i.WasUsed).Select(i => i.Close(check))];
    }

    /// <inheritdoc/>
    public void Connected(IBackingFiles? backing) => _passthrough.Connect(backing);

    /// <inheritdoc/>
    public Errno Lookup(ulong parent, ReadOnlySpan<byte> name, out FuseEntry entry)
    {
        entry = default;
        if (!_nodes.TryGet(parent, out Node? node)) return Errno.ESTALE;
        if (node is not DirectoryNode directory) return Errno.ENOTDIR;
        bool found = directory.TryFind(name, out Node? child);
        if (!found || (!IsFixed(child!) && (_tree!.IsStale || child is DiskNode { Image.IsShapeStale: true })))
        {
            _tree!.Refresh();
            found = directory.TryFind(name, out child);
        }
        if (!found || !_nodes.TryReference(child!.Number)) return Errno.ENOENT;
        entry = EntryFor(child);
        return Errno.None;
    }

    /// <inheritdoc/>
    public void Forget(ulong node, ulong count) => _nodes.Forget(node, count);

    /// <inheritdoc/>
    public Errno GetAttributes(ulong node, ulong handle, out FuseAttributes attributes)
    {
        attributes = default;
        if (!_nodes.TryGet(node, out Node? found)) return Errno.ESTALE;
        attributes = found.GetAttributes(handle);
        return Errno.None;
    }

    /// <inheritdoc/>
    public Errno SetAttributes(ulong node, in FuseSetAttributes change, out FuseAttributes attributes)
    {
        attributes = default;
        if (!_nodes.TryGet(node, out Node? found)) return Errno.ESTALE;
        attributes = found.GetAttributes(change.Handle);
        const uint permissions = 0xFFF; // 07777
        bool keepsAccess = (change.Mode is not uint mode || (mode & permissions) == (attributes.Mode & permissions))
            && (change.Uid ?? attributes.Uid) == attributes.Uid
            && (change.Gid ?? attributes.Gid) == attributes.Gid;
        if (!keepsAccess) return Errno.EPERM; // stated at mount time
        // Times are the host file's: setting them succeeds, so that `cp -p` and `touch` do, and changes nothing.
        if (change.Size is not long size) return Errno.None;
        Errno errno = found.SetSize(change.Handle, size);
        attributes = found.GetAttributes(change.Handle);
        return errno;
    }

    /// <inheritdoc/>
    public Errno Open(ulong node, int flags, out FuseOpenResult result)
    {
        result = default;
        return _nodes.TryGet(node, out Node? found) ? found.Open(flags, out result) : Errno.ESTALE;
    }

    /// <inheritdoc/>
    public void Release(ulong node, ulong handle)
    {
        if (_nodes.TryGet(node, out Node? found)) found.Release(handle, NodeChanged);
    }

    /// <inheritdoc/>
    public Errno Read(ulong node, ulong handle, long offset, Span<byte> destination, out int count)
    {
        count = 0;
        return _nodes.TryGet(node, out Node? found) ? found.Read(handle, offset, destination, out count) : Errno.ESTALE;
    }

    /// <inheritdoc/>
    public Errno Write(ulong node, ulong handle, long offset, ReadOnlySpan<byte> source, int openFlags, out int count)
    {
        count = 0;
        return _nodes.TryGet(node, out Node? found) ? found.Write(offset, source, openFlags, out count) : Errno.ESTALE;
    }

    /// <inheritdoc/>
    public Errno Flush(ulong node, ulong handle) => Errno.None; // a close asks for nothing

    /// <inheritdoc/>
    public Errno Sync(ulong node, ulong handle, bool dataOnly)
    {
        if (!_nodes.TryGet(node, out Node? found)) return Errno.ESTALE;
        if (node != IFuseFileSystem.RootNode || handle != 0) return found.Sync();
        SyncAll(); // SYNCFS
        return Errno.None;
    }

    /// <summary>Makes everything durable. Every image is tried; the first fault is thrown.</summary>
    public void SyncAll() => ForEachImage(static image => image.Sync());

    /// <summary>Freezes every image; where one cannot be, none is. Faults: as <see cref="MountedImage.Freeze"/>.</summary>
    public void Freeze()
    {
        try
        {
            ForEachImage(static image => image.Freeze());
        }
        catch
        {
            Thaw();
            throw;
        }
    }

    /// <summary>Thaws every image.</summary>
    public void Thaw() => ForEachImage(static image => image.Thaw());

    private void ForEachImage(Action<MountedImage> act)
    {
        System.Runtime.ExceptionServices.ExceptionDispatchInfo? first = null;
        foreach (MountedImage image in Images)
        {
            try
            {
                act(image);
            }
            catch (Exception fault) when (fault is Storage.StorageException or ImageFormatException or ImageInUseException)
            {
                first ??= System.Runtime.ExceptionServices.ExceptionDispatchInfo.Capture(fault);
            }
        }
        first?.Throw();
    }

    /// <inheritdoc/>
    public Errno Allocate(ulong node, ulong handle, long offset, long length, int mode) =>
        _nodes.TryGet(node, out Node? found) ? found.Allocate(offset, length, mode) : Errno.ESTALE;

    /// <inheritdoc/>
    public Errno Seek(ulong node, ulong handle, long offset, int whence, out long result)
    {
        result = 0;
        return _nodes.TryGet(node, out Node? found) ? found.Seek(handle, offset, whence, out result) : Errno.ESTALE;
    }

    /// <inheritdoc/>
    public Errno OpenDirectory(ulong node, out FuseOpenResult result)
    {
        result = default;
        if (!_nodes.TryGet(node, out Node? found)) return Errno.ESTALE;
        if (found is not DirectoryNode directory) return Errno.ENOTDIR;
        _tree!.Refresh();
        result = new FuseOpenResult { Handle = _listings.Open(directory) };
        return Errno.None;
    }

    /// <inheritdoc/>
    public Errno ReadDirectory(ulong node, ulong handle, long offset, ref FuseDirectoryWriter writer)
    {
        if (!_listings.TryGet(handle, out Listing? listing)) return Errno.EBADF;
        if (offset < 0) return Errno.EINVAL;
        while (offset < listing.Count)
        {
            Node child = listing.NodeAt(offset, out ReadOnlySpan<byte> name);
            bool counts = writer.WithAttributes && offset >= Listing.DotEntries;
            // Counted before it is offered: once the reply is out, the kernel may use the node at once.
            bool known = !counts || _nodes.TryReference(child.Number);
            if (known && !writer.TryAdd(name, EntryFor(child), offset + 1))
            {
                if (counts) _nodes.Forget(child.Number, 1);
                break;
            }
            offset++;
        }
        return Errno.None;
    }

    /// <inheritdoc/>
    public void ReleaseDirectory(ulong node, ulong handle) => _listings.Close(handle);

    /// <inheritdoc/>
    public Errno StatFs(ulong node, out FuseStatFs result)
    {
        long unit = 4096;
        long bytes = 0;
        // Asked of a file, it is about the image behind it: a loop device takes the unit as its discard granularity.
        _nodes.TryGet(node, out Node? asked);
        IEnumerable<MountedImage> images = asked is DiskNode disk ? [disk.Image] : Images;
        foreach (MountedImage image in images)
        {
            unit = Math.Max(unit, image.BlockSize);
            bytes = bytes > long.MaxValue - image.Length ? long.MaxValue : bytes + image.Length;
        }
        ulong blocks = ((ulong)bytes + (ulong)unit - 1) / (ulong)unit;
        result = new FuseStatFs
        {
            BlockSize = (uint)unit,
            FragmentSize = (uint)unit,
            Blocks = blocks,
            Files = (ulong)_nodes.Count,
            NameLength = 255,
        };
        return Errno.None;
    }

    /// <summary>Whether a node bears its name as long as the mount lives.</summary>
    private bool IsFixed(Node node) =>
        _tree is null || node == _tree.Control
        || (!_tree.FollowsDirectory && node is (DirectoryNode or DiskNode { Partition: null, Snapshot: null }));

    private FuseEntry EntryFor(Node node) => new()
    {
        Node = node.Number,
        EntryValid = IsFixed(node) ? FixedEntryValid
            : node is DiskNode { Partition: not null } or DiskNode { Snapshot: not null } ? TimeSpan.Zero // what they show may change with a write
            : ImageTree.NamesValid,
        Attributes = node.GetAttributes(0),
    };
}
