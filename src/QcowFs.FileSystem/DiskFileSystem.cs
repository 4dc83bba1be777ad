// The tree that a mount shows (PRODUCT section 3), served to the kernel: finds the node, lets it answer.
using QcowFs.Fuse;
using QcowFs.Native;

namespace QcowFs.FileSystem;

/// <summary>
/// The file system of one mount. Does not own the images: whoever opened them closes them when the session has ended.
/// Thread-safe. Faults of a disk pass through as exceptions; <see cref="ErrorMap"/> says what the kernel is told.
/// </summary>
public sealed class DiskFileSystem : IFuseFileSystem
{
    // Names do not change while a mount lives.
    private static readonly TimeSpan EntryValid = TimeSpan.FromHours(1);

    private readonly NodeTable _nodes = new();
    private readonly Node _root;
    private readonly MountedImage[] _images;
    private readonly Listings _listings = new();
    private readonly List<FactsNode> _facts = [];

    private DiskFileSystem(MountedImage[] images, Func<DiskFileSystem, Node> makeRoot)
    {
        _images = images;
        _root = makeRoot(this);
    }

    /// <summary>The images of the mount.</summary>
    public IReadOnlyList<MountedImage> Images => _images;

    /// <summary>Whether the root is the disk itself: the mount covers a regular file.</summary>
    public bool RootIsFile => _root is DiskNode;

    /// <summary>How many opens of files have not been released.</summary>
    public int Opens
    {
        get
        {
            int opens = 0;
            foreach (MountedImage image in _images) opens += image.Opens;
            foreach (FactsNode facts in _facts) opens += facts.Opens;
            return opens;
        }
    }

    /// <summary>A directory with the image's disk and its facts.</summary>
    public static DiskFileSystem ForDirectory(MountedImage image, TreeSettings settings, TimeProvider time) =>
        new([image], system => system.BuildTree(image, settings, time));

    /// <summary>A single file, which is the disk.</summary>
    public static DiskFileSystem ForFile(MountedImage image, TreeSettings settings) =>
        new([image], system => system._nodes.Add(new DiskNode("", image, settings)));

    internal ulong ReferencesTo(ulong node) => _nodes.ReferencesTo(node);

    private DirectoryNode BuildTree(MountedImage image, TreeSettings settings, TimeProvider time)
    {
        DateTimeOffset now = time.GetUtcNow();
        DirectoryNode root = _nodes.Add(new DirectoryNode("", null, settings, now));
        root.Add(_nodes.Add(new DiskNode(image.Name + ".raw", image, settings)));
        DirectoryNode control = _nodes.Add(new DirectoryNode(".qcowfs", root, settings, now));
        root.Add(control);
        DirectoryNode facts = _nodes.Add(new DirectoryNode(image.Name, control, settings, now));
        control.Add(facts);
        AddFacts("info.json", image.WriteInfo);
        AddFacts("map.json", image.WriteMap);
        AddFacts("stats.json", image.WriteStatistics);
        return root;

        void AddFacts(string name, Func<byte[]> make)
        {
            FactsNode node = _nodes.Add(new FactsNode(name, settings, time, make));
            facts.Add(node);
            _facts.Add(node);
        }
    }

    /// <inheritdoc/>
    public Errno Lookup(ulong parent, ReadOnlySpan<byte> name, out FuseEntry entry)
    {
        entry = default;
        if (!_nodes.TryGet(parent, out Node? node)) return Errno.ESTALE;
        if (node is not DirectoryNode directory) return Errno.ENOTDIR;
        if (!directory.TryFind(name, out Node? child) || !_nodes.TryReference(child.Number)) return Errno.ENOENT;
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
        return change.Size is long size ? found.SetSize(change.Handle, size) : Errno.None;
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
        if (_nodes.TryGet(node, out Node? found)) found.Release(handle);
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
        foreach (MountedImage image in _images) image.Sync(); // SYNCFS: everything
        return Errno.None;
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
        foreach (MountedImage image in _images)
        {
            unit = Math.Max(unit, image.Disk.Info.BlockSize);
            bytes += image.Disk.Length;
        }
        ulong blocks = (ulong)((bytes + unit - 1) / unit);
        result = new FuseStatFs
        {
            BlockSize = (uint)unit, // a loop device on the disk takes it as its discard granularity
            FragmentSize = (uint)unit,
            Blocks = blocks,
            Files = (ulong)_nodes.Count,
            NameLength = 255,
        };
        return Errno.None;
    }

    private static FuseEntry EntryFor(Node node) => new()
    {
        Node = node.Number,
        EntryValid = EntryValid,
        AttributesValid = node.AttributesValid,
        Attributes = node.GetAttributes(0),
    };
}
