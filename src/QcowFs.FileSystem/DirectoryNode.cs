// A directory of the tree. A listing works on the children that were there when the directory was opened.
using System.Diagnostics.CodeAnalysis;
using QcowFs.Fuse;

namespace QcowFs.FileSystem;

/// <summary>A directory.</summary>
internal sealed class DirectoryNode : Node
{
    private readonly TreeSettings _settings;
    private volatile Content _content; // replaced, never changed, by the one who builds the tree

    /// <param name="name">Name in the parent.</param>
    /// <param name="parent">The parent, or null for the root.</param>
    /// <param name="settings">Owner and mode.</param>
    /// <param name="made">The directory's times.</param>
    public DirectoryNode(byte[] name, DirectoryNode? parent, TreeSettings settings, DateTimeOffset made)
        : base(name)
    {
        _settings = settings;
        _content = new Content([], made);
        Parent = parent ?? this;
    }

    /// <summary>The parent; the root's is itself.</summary>
    public DirectoryNode Parent { get; }

    /// <summary>The children now. The array never changes.</summary>
    public Node[] Children => _content.Children;

    /// <summary>Replaces the children, whose names differ.</summary>
    public void SetChildren(List<Node> children, DateTimeOffset now) => _content = new Content([.. children], now);

    public bool TryFind(ReadOnlySpan<byte> name, [NotNullWhen(true)] out Node? child) => _content.TryFind(name, out child);

    public override FuseAttributes GetAttributes(ulong handle)
    {
        Content content = _content;
        uint readable = _settings.FileMode & 0x124; // 0444: who may read may also search
        return new FuseAttributes
        {
            Inode = Number,
            Mode = FileType.Directory | _settings.FileMode | (readable >> 2),
            Links = 2 + content.Directories,
            Uid = _settings.Uid,
            Gid = _settings.Gid,
            BlockSize = 4096,
            AccessTime = content.Changed,
            ModifyTime = content.Changed,
            ChangeTime = content.Changed,
        };
    }

    private sealed class Content
    {
        private readonly Dictionary<byte[], Node> _byName;
        private readonly Dictionary<byte[], Node>.AlternateLookup<ReadOnlySpan<byte>> _lookup;

        public Content(Node[] children, DateTimeOffset changed)
        {
            Children = children;
            Changed = changed;
            _byName = new Dictionary<byte[], Node>(children.Length, NameComparer.Instance);
            _lookup = _byName.GetAlternateLookup<ReadOnlySpan<byte>>();
            foreach (Node child in children)
            {
                _byName.Add(child.NameBytes, child);
                if (child is DirectoryNode) Directories++;
            }
        }

        public Node[] Children { get; }

        public DateTimeOffset Changed { get; }

        public uint Directories { get; }

        public bool TryFind(ReadOnlySpan<byte> name, [NotNullWhen(true)] out Node? child) => _lookup.TryGetValue(name, out child);
    }
}

/// <summary>Compares names, which are bytes.</summary>
internal sealed class NameComparer : IEqualityComparer<byte[]>, IAlternateEqualityComparer<ReadOnlySpan<byte>, byte[]>, IComparer<byte[]>
{
    public static NameComparer Instance { get; } = new();

    public bool Equals(byte[]? x, byte[]? y) => x.AsSpan().SequenceEqual(y);

    public bool Equals(ReadOnlySpan<byte> alternate, byte[] other) => alternate.SequenceEqual(other);

    public int GetHashCode(byte[] obj) => GetHashCode(obj.AsSpan());

    public int GetHashCode(ReadOnlySpan<byte> alternate)
    {
        HashCode hash = default;
        hash.AddBytes(alternate);
        return hash.ToHashCode();
    }

    public byte[] Create(ReadOnlySpan<byte> alternate) => alternate.ToArray();

    public int Compare(byte[]? x, byte[]? y) => x.AsSpan().SequenceCompareTo(y);
}
