// The tree of a mount and how it follows what it shows: images that come and go, partitions and snapshots that change.
//
// R1. A refresh never waits for another for long: whoever does not get its turn in time works with the names as they are. So a
//     refresh that reaches, through a symbolic link, into this very mount cannot wait for itself for ever.
// R2. Names are replaced as a whole. A node that leaves the tree stays usable for whoever has it open.
// R3. Where two want the same name, images' disks come first, then partitions and snapshots in the order of images; the later is left
//     out and the log says so.
using QcowFs.Native;

namespace QcowFs.FileSystem;

/// <summary>The nodes of a mount. Thread-safe.</summary>
internal sealed class ImageTree
{
    private const int MostWarningsKept = 1000;

    /// <summary>How old names may be before a lookup makes them anew, and how long the kernel may believe what a lookup gave it. Together
    /// less than the second within which a change shows.</summary>
    public static readonly TimeSpan NamesValid = TimeSpan.FromMilliseconds(400);

    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(2); // R1

    private readonly NodeTable _nodes;
    private readonly TreeSettings _settings;
    private readonly TimeProvider _time;
    private readonly Action<string> _log;
    private readonly ImageDirectory? _directory;
    private readonly Lock _refreshing = new(); // guards what follows
    private readonly HashSet<string> _told = [];
    private readonly List<ImageBranch> _leaving = [];
    private readonly List<ImageReceipt> _receipts = [];
    private readonly List<Node> _left = [];
    private bool _isBuilt;
    private volatile ImageBranch[] _branches = [];
    private long _refreshed; // timestamp; by Volatile

    /// <summary>A tree over one image or over a directory of them.</summary>
    public ImageTree(NodeTable nodes, MountedImage? image, ImageDirectory? directory, TreeSettings settings, TimeProvider time, Action<string> log)
    {
        _nodes = nodes;
        _directory = directory;
        _settings = settings;
        _time = time;
        _log = log;
        DateTimeOffset now = time.GetUtcNow();
        Root = nodes.Add(new DirectoryNode([], null, settings, now));
        Control = nodes.Add(new DirectoryNode(".qcowfs"u8.ToArray(), Root, settings, now));
        if (image is not null) _branches = [MakeBranch(image)];
        Publish();
    }

    public DirectoryNode Root { get; }

    /// <summary>.qcowfs</summary>
    public DirectoryNode Control { get; }

    public IReadOnlyList<ImageBranch> Branches => _branches;

    /// <summary>All branches, those included that have left the tree and of which files are still open.</summary>
    public IReadOnlyList<ImageBranch> AllBranches
    {
        get { lock (_refreshing) return [.. _branches, .. _leaving]; }
    }

    /// <summary>The accounts of images that have left and are closed.</summary>
    public IReadOnlyList<ImageReceipt> Receipts
    {
        get { lock (_refreshing) return [.. _receipts]; }
    }

    public bool FollowsDirectory => _directory is not null;

    /// <summary>Whether names are older than they may be.</summary>
    public bool IsStale => !_isBuilt || _time.GetElapsedTime(Volatile.Read(ref _refreshed)) > NamesValid;

    /// <summary>Makes the tree agree with what is there now, and gives the nodes that left it. Faults are told to the log: the names as
    /// they were remain.</summary>
    public IReadOnlyList<Node> Refresh()
    {
        if (!_refreshing.TryEnter(Patience)) return []; // R1
        try
        {
            bool changed = !_isBuilt;
            if (_directory is not null) changed |= Follow(_directory);
            foreach (ImageBranch branch in _branches) changed |= branch.Update(Warn);
            if (changed) Publish();
            _isBuilt = true;
            Volatile.Write(ref _refreshed, _time.GetTimestamp());
            return [.. _left];
        }
        catch (Exception fault) when (fault is Storage.StorageException or Images.ImageFormatException)
        {
            Warn(fault.Message);
            return [];
        }
        finally
        {
            _left.Clear();
            _refreshing.Exit();
        }
    }

    private ImageBranch MakeBranch(MountedImage image) => new(image, _nodes, Control, _settings, _time) { Removed = _left.Add };

    private bool Follow(ImageDirectory directory)
    {
        IReadOnlyList<MountedImage> images = directory.Scan();
        Dictionary<MountedImage, ImageBranch> known = _branches.ToDictionary(static b => b.Image);
        bool changed = images.Count != known.Count;
        List<ImageBranch> branches = new(images.Count);
        foreach (MountedImage image in images)
        {
            if (known.Remove(image, out ImageBranch? branch))
            {
                branches.Add(branch);
                continue;
            }
            branches.Add(MakeBranch(image));
            changed = true;
        }
        CloseAccounts();
        foreach (ImageBranch gone in known.Values)
        {
            gone.Leave();
            _leaving.Add(gone);
            changed = true;
        }
        if (changed) _branches = [.. branches];
        return changed;
    }

    /// <summary>Images that have left and are closed are only remembered by their receipts.</summary>
    private void CloseAccounts()
    {
        for (int i = _leaving.Count - 1; i >= 0; i--)
        {
            ImageBranch branch = _leaving[i];
            if (branch.Image.Opens > 0 || branch.Image.IsPinned || branch.FactOpens > 0) continue;
            if (branch.Image.WasUsed) _receipts.Add(branch.Image.Close());
            _leaving.RemoveAt(i);
        }
    }

    /// <summary>R2, R3.</summary>
    private void Publish()
    {
        ImageBranch[] branches = _branches;
        HashSet<byte[]> names = new(NameComparer.Instance) { Control.NameBytes };
        HashSet<Node> shown = [];
        foreach (ImageBranch branch in branches) Offer(branch.Disk);
        foreach (ImageBranch branch in branches)
        {
            foreach (Node partition in branch.Partitions) Offer(partition);
            foreach (Node snapshot in branch.Snapshots) Offer(snapshot);
        }
        List<Node> children = new(shown.Count + 1);
        foreach (ImageBranch branch in branches)
        {
            children.AddRange(((IEnumerable<Node>)[branch.Disk, .. branch.Partitions, .. branch.Snapshots]).Where(shown.Contains));
        }
        children.Add(Control);
        DateTimeOffset now = _time.GetUtcNow();
        Root.SetChildren(children, now);
        List<Node> facts = [.. branches.Select(static b => b.Facts)];
        if (!Control.Children.SequenceEqual(facts)) Control.SetChildren(facts, now);

        void Offer(Node node)
        {
            if (names.Add(node.NameBytes)) shown.Add(node);
            else Warn($"\"{HostText.Show(HostText.Decode(node.NameBytes))}\": another file has this name already; the later one is left out");
        }
    }

    /// <summary>Says a thing once.</summary>
    private void Warn(string sentence)
    {
        if (_told.Count < MostWarningsKept && _told.Add(sentence)) _log(sentence);
    }
}
