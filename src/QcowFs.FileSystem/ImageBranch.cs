// The nodes of one image: its disk, its partitions, its snapshots, its fact files.
using System.Text;
using QcowFs.FileSystem.Partitions;
using QcowFs.Native;

namespace QcowFs.FileSystem;

/// <summary>One image in the tree. Used under the tree's lock.</summary>
internal sealed class ImageBranch
{
    private readonly NodeTable _nodes;
    private readonly TreeSettings _settings;
    private readonly TimeProvider _time;
    private readonly byte[] _name;
    private readonly FactsNode[] _healthyFacts;
    private readonly FactsNode _errorFacts;
    private readonly List<DiskNode> _partitions = [];
    private readonly List<(SnapshotNames.Named Named, DiskNode Node)> _snapshots = [];
    private ImageShape? _shown;
    private string? _shownError;
    private List<string> _warnings = [];

    public ImageBranch(MountedImage image, NodeTable nodes, DirectoryNode control, TreeSettings settings, TimeProvider time)
    {
        Image = image;
        _nodes = nodes;
        _settings = settings;
        _time = time;
        _name = HostText.Encode(image.Name);
        Disk = MakeDisk();
        Facts = nodes.Add(new DirectoryNode(_name, control, settings, time.GetUtcNow()));
        _healthyFacts = [MakeFacts("info.json"u8, image.WriteInfo), MakeFacts("map.json"u8, image.WriteMap), MakeFacts("stats.json"u8, image.WriteStatistics)];
        _errorFacts = MakeFacts("error.txt"u8, WriteError);
        ShowFacts();
    }

    public MountedImage Image { get; }

    /// <summary>The disk's file, or the broken one in its place.</summary>
    public Node Disk { get; private set; }

    public DirectoryNode Facts { get; }

    public IReadOnlyList<DiskNode> Partitions => _partitions;

    public IEnumerable<DiskNode> Snapshots => _snapshots.Select(static s => s.Node);

    /// <summary>Opens of fact files that have not been released.</summary>
    public int FactOpens => _healthyFacts.Sum(static f => f.Opens) + _errorFacts.Opens;

    public Action<Node> Removed { get; init; } = static _ => { };

    /// <summary>Makes the nodes agree with the image as it is now. Tells whether any name came or went.</summary>
    /// <param name="warn">Told once of each thing that is wrong.</param>
    public bool Update(Action<string> warn)
    {
        Image.RefreshShape();
        ImageShape? shape = Image.Shape;
        string? error = Image.Error;
        if (ReferenceEquals(shape, _shown) && error == _shownError) return false;
        bool isBroken = shape is null;
        bool changed = isBroken != Disk is BrokenNode;
        _shown = shape;
        _shownError = error;
        List<string> warnings = [];
        if (changed)
        {
            Remove(Disk);
            Disk = MakeDisk();
        }
        changed |= UpdatePartitions(shape?.Partitions ?? PartitionTable.None, warnings);
        changed |= UpdateSnapshots(shape, warnings);
        foreach (string warning in warnings.Except(_warnings)) warn($"{HostText.Show(Image.Name)}: {warning}");
        _warnings = warnings;
        ShowFacts();
        return changed;
    }

    /// <summary>Takes all nodes out of the tree. What is open stays usable.</summary>
    public void Leave()
    {
        foreach (DiskNode partition in _partitions) Remove(partition);
        foreach ((_, DiskNode node) in _snapshots) RemoveSnapshot(node);
        foreach (FactsNode facts in _healthyFacts) Remove(facts);
        Remove(_errorFacts);
        Remove(Facts);
        Remove(Disk);
    }

    private Node MakeDisk() => Image.Shape is null
        ? _nodes.Add(new BrokenNode([.. _name, .. ".raw"u8], Image, _settings))
        : _nodes.Add(new DiskNode([.. _name, .. ".raw"u8], Image, _settings));

    private FactsNode MakeFacts(ReadOnlySpan<byte> name, Func<byte[]> make) =>
        _nodes.Add(new FactsNode(name.ToArray(), _settings, _time, make));

    private byte[] WriteError()
    {
        IEnumerable<string> lines = _shownError is { } error ? [error, .. _warnings] : _warnings;
        return Encoding.UTF8.GetBytes(string.Concat(lines.Select(static l => HostText.Show(l.ReplaceLineEndings(" ")) + "\n")));
    }

    private void ShowFacts()
    {
        bool hasError = Image.Error is not null || _warnings.Count > 0;
        List<Node> wanted = Image.Shape is null ? [] : [.. _healthyFacts];
        if (hasError) wanted.Add(_errorFacts);
        if (!Facts.Children.SequenceEqual(wanted)) Facts.SetChildren(wanted, _time.GetUtcNow());
    }

    private bool UpdatePartitions(PartitionTable table, List<string> warnings)
    {
        if (!_settings.ShowsPartitions) return false;
        warnings.AddRange(table.Warnings);
        bool changed = false;
        for (int i = _partitions.Count - 1; i >= 0; i--)
        {
            if (table.Partitions.Contains(_partitions[i].Partition!.Value)) continue;
            Remove(_partitions[i]);
            _partitions.RemoveAt(i);
            changed = true;
        }
        foreach (Partition partition in table.Partitions)
        {
            if (_partitions.Exists(p => p.Partition == partition)) continue;
            byte[] name = [.. _name, .. Encoding.ASCII.GetBytes($".p{partition.Number}.raw")];
            _partitions.Add(_nodes.Add(new DiskNode(name, Image, null, partition, _settings)));
            changed = true;
        }
        _partitions.Sort(static (a, b) => a.Partition!.Value.Number.CompareTo(b.Partition!.Value.Number));
        return changed;
    }

    private bool UpdateSnapshots(ImageShape? shape, List<string> warnings)
    {
        List<SnapshotNames.Named> wanted = shape is null || !_settings.ShowsSnapshots
            ? []
            : SnapshotNames.Of(_name, shape.Snapshots, warnings.Add);
        bool changed = false;
        for (int i = _snapshots.Count - 1; i >= 0; i--)
        {
            if (wanted.Exists(w => IsSame(w, _snapshots[i].Named))) continue;
            RemoveSnapshot(_snapshots[i].Node);
            _snapshots.RemoveAt(i);
            changed = true;
        }
        foreach (SnapshotNames.Named named in wanted)
        {
            if (_snapshots.Exists(s => IsSame(named, s.Named))) continue;
            SnapshotView view = Image.AddView(named.Snapshot, named.Key, named.KeyIsId);
            _snapshots.Add((named, _nodes.Add(new DiskNode(named.FileName, Image, view, null, _settings))));
            changed = true;
        }
        return changed;
    }

    // A snapshot that was deleted and made again under the same name is another: the moment tells.
    private static bool IsSame(in SnapshotNames.Named a, in SnapshotNames.Named b) =>
        a.FileName.AsSpan().SequenceEqual(b.FileName) && a.Key == b.Key && a.KeyIsId == b.KeyIsId
        && a.Snapshot.Id == b.Snapshot.Id && a.Snapshot.DateSeconds == b.Snapshot.DateSeconds
        && a.Snapshot.DateNanoseconds == b.Snapshot.DateNanoseconds && a.Snapshot.VirtualSize == b.Snapshot.VirtualSize;

    private void RemoveSnapshot(DiskNode node)
    {
        Remove(node);
        Image.RemoveView(node.Snapshot!);
    }

    private void Remove(Node node)
    {
        _nodes.Remove(node);
        Removed(node);
    }
}
