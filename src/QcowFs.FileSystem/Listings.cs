// Open directories. Each open sees the children of its moment, so positions stay true while the tree changes.
using System.Collections.Concurrent;
using System.Diagnostics.CodeAnalysis;

namespace QcowFs.FileSystem;

/// <summary>One open directory.</summary>
internal sealed class Listing(DirectoryNode directory)
{
    /// <summary>"." and ".." come first.</summary>
    public const int DotEntries = 2;

    private readonly Node[] _children = directory.Children;

    public long Count => DotEntries + _children.Length;

    /// <summary>The entry at a position below <see cref="Count"/>.</summary>
    public Node NodeAt(long position, out ReadOnlySpan<byte> name)
    {
        Node node = position switch
        {
            0 => directory,
            1 => directory.Parent,
            _ => _children[position - DotEntries],
        };
        name = position switch { 0 => "."u8, 1 => ".."u8, _ => node.NameBytes };
        return node;
    }
}

/// <summary>All open directories by handle. Thread-safe.</summary>
internal sealed class Listings
{
    private readonly ConcurrentDictionary<ulong, Listing> _open = new();
    private ulong _lastHandle;

    public ulong Open(DirectoryNode directory)
    {
        ulong handle = Interlocked.Increment(ref _lastHandle);
        _open[handle] = new Listing(directory);
        return handle;
    }

    public bool TryGet(ulong handle, [NotNullWhen(true)] out Listing? listing) => _open.TryGetValue(handle, out listing);

    public void Close(ulong handle) => _open.TryRemove(handle, out _);
}
