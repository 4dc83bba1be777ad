// A directory of the tree. A listing works on the children that were there when the directory was opened.
using System.Diagnostics.CodeAnalysis;
using QcowFs.Fuse;

namespace QcowFs.FileSystem;

/// <summary>A directory.</summary>
internal sealed class DirectoryNode : Node
{
    private readonly TreeSettings _settings;
    private readonly DateTimeOffset _made;
    private volatile Node[] _children = []; // replaced, never changed, by the one who builds the tree

    /// <param name="name">Name in the parent.</param>
    /// <param name="parent">The parent, or null for the root.</param>
    /// <param name="settings">Owner and mode.</param>
    /// <param name="made">The directory's times.</param>
    public DirectoryNode(string name, DirectoryNode? parent, TreeSettings settings, DateTimeOffset made)
        : base(name)
    {
        _settings = settings;
        _made = made;
        Parent = parent ?? this;
    }

    /// <summary>The parent; the root's is itself.</summary>
    public DirectoryNode Parent { get; }

    /// <summary>The children now. The array never changes.</summary>
    public Node[] Children => _children;

    public void Add(Node child) => _children = [.. _children, child];

    public bool TryFind(ReadOnlySpan<byte> name, [NotNullWhen(true)] out Node? child)
    {
        foreach (Node candidate in _children)
        {
            if (!name.SequenceEqual(candidate.NameBytes)) continue;
            child = candidate;
            return true;
        }
        child = null;
        return false;
    }

    public override FuseAttributes GetAttributes(ulong handle)
    {
        uint links = 2;
        foreach (Node child in _children)
            if (child is DirectoryNode) links++;
        uint readable = _settings.FileMode & 0x124; // 0444: who may read may also search
        return new FuseAttributes
        {
            Inode = Number,
            Mode = FileType.Directory | _settings.FileMode | (readable >> 2),
            Links = links,
            Uid = _settings.Uid,
            Gid = _settings.Gid,
            BlockSize = 4096,
            AccessTime = _made,
            ModifyTime = _made,
            ChangeTime = _made,
        };
    }
}
