// A directory of images: which files in it are images, and what each of them shows before it is opened.
//
// E1. A file is looked at again only when its inode, size or time differ from the last look; then it is opened briefly, for reading,
//     without locks, and closed. Between looks nothing is held but the directory itself.
// E2. What another process writes at the moment is not read beyond its header: its tables may be half written.
// E3. An image that another one there needs (as backing or data file) is never shown writable.
using QcowFs.FileSystem.Partitions;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.FileSystem;

/// <summary>How images in a directory are treated.</summary>
public sealed record ImageDirectoryOptions
{
    /// <summary>How each is opened.</summary>
    public required OpenOptions Open { get; init; }

    /// <summary>Whether disks take the size that a file of them is given, or written to.</summary>
    public bool Growable { get; init; }

    /// <summary>Whether partitions are looked for.</summary>
    public bool ShowsPartitions { get; init; } = true;

    /// <summary>Told one line for each thing a person may want to know.</summary>
    public Action<string> Log { get; init; } = static _ => { };

    /// <summary>One line for a fault, for error.txt.</summary>
    public Func<Exception, string> Describe { get; init; } = static fault => fault.Message;
}

/// <summary>The images of a directory. <see cref="Scan"/> is called by one thread at a time.</summary>
public sealed class ImageDirectory : IDisposable
{
    private const long ProbeCacheSize = 1 << 20;

    // An image that is busy or broken is looked at again after this: its owner may let go without changing it, a file that it needs
    // may come back.
    private static readonly TimeSpan DoubtfulValid = TimeSpan.FromSeconds(2);

    private readonly HostDirectory _directory;
    private readonly DirectoryFiles _files;
    private readonly ImageDirectoryOptions _options;
    private readonly string _prefix;
    private Dictionary<string, Found> _known = [];

    /// <summary>Opens a directory. Faults: <see cref="StorageException"/>.</summary>
    public ImageDirectory(string path, ImageDirectoryOptions options)
    {
        _directory = new HostDirectory(path, options.Open.References switch
        {
            ReferencePolicy.None => LinkPolicy.None,
            ReferencePolicy.All => LinkPolicy.Any,
            _ => LinkPolicy.Beneath,
        });
        _files = new DirectoryFiles(_directory);
        _options = options;
        _prefix = path.TrimEnd('/') + "/";
    }

    /// <summary>The images that are there now, in the order of their names. An image stays the same object as long as its file does.</summary>
    internal IReadOnlyList<MountedImage> Scan()
    {
        Dictionary<string, Found> found = [];
        foreach (HostEntry entry in _directory.List())
        {
            if (_directory.TryQuery(entry) is not { } facts) continue;
            Found? known = _known.GetValueOrDefault(entry.Name);
            FileVersion version = FileVersion.Of(facts);
            bool isOpen = known?.Image is { IsOpen: true } && known.Version.IsSameFile(version);
            if (isOpen || (known is not null && known.Version == version && !IsOutdated(known))) found.Add(entry.Name, known!);
            else if (Probe(entry, version) is { } probed) found.Add(entry.Name, probed with { Image = known?.Image, ImageVersion = known?.ImageVersion ?? default });
        }
        HashSet<(ulong Device, ulong Inode)> needed = NeededByOthers(found.Values);
        foreach (Found image in found.Values) image.Image = ImageOf(image, isNeeded: needed.Contains(image.Version.File));
        _known = found;
        return [.. found.Values.Where(static f => f.Image is not null).OrderBy(static f => f.NameBytes, NameComparer.Instance).Select(static f => f.Image!)];
    }

    /// <inheritdoc/>
    public void Dispose() => _directory.Dispose();

    private bool IsOutdated(Found known) =>
        (known.IsBusy || known.Error is not null) && _options.Open.Time.GetElapsedTime(known.ProbedAt) > DoubtfulValid;

    private static HashSet<(ulong Device, ulong Inode)> NeededByOthers(IEnumerable<Found> all)
    {
        HashSet<(ulong Device, ulong Inode)> needed = [];
        foreach (Found image in all) needed.UnionWith(image.Needs.Where(n => n != image.Version.File));
        return needed;
    }

    private MountedImage? ImageOf(Found found, bool isNeeded)
    {
        if (!found.IsImage) return null;
        bool writable = _options.Open.Writable && !isNeeded; // E3
        if (found.Image is { } known && found.ImageVersion.IsSameFile(found.Version) && (known.IsOpen || known.IsWritable == writable))
        {
            if (!known.IsOpen && !ReferenceEquals(found.ShapeGiven, found.Shape ?? (object?)found.Error)) Give(found, known);
            return known;
        }
        string path = _prefix + found.Entry.Name;
        HostEntry entry = found.Entry;
        OpenOptions open = _options.Open with { Writable = writable };
        MountedImage image = new(
            new MountedImageOptions
            {
                Name = entry.Name,
                Writable = writable,
                Growable = _options.Growable,
                ShowsPartitions = _options.ShowsPartitions,
                Log = _options.Log,
                Describe = _options.Describe,
                Time = open.Time,
                WhenClosed = () => _directory.TryQuery(entry) is { } facts ? HostFileFacts.From(facts) : null,
            },
            () => new ImageHold(_files, path, open, _directory));
        found.ImageVersion = found.Version;
        Give(found, image);
        return image;
    }

    private static void Give(Found found, MountedImage image)
    {
        // Who could not open a busy image was told why; that stands while it is busy.
        image.SetShape(found.Shape, found.Error ?? (found.IsBusy ? image.Error : null));
        found.ShapeGiven = found.Shape ?? (object?)found.Error;
    }

    /// <summary>Looks at a file (E1); null where it has vanished meanwhile.</summary>
    private Found? Probe(HostEntry entry, FileVersion version)
    {
        string path = _prefix + entry.Name;
        Found found = new(entry, version, _options.Open.Time.GetTimestamp());
        using HeldFiles files = new(_files); // one descriptor for all questions
        ImageOpener opener = new(files);
        try
        {
            string? stated = _options.Open.Format;
            string? format = stated == "raw" ? stated : opener.Recognise(path);
            if (format is null || (stated is not null && stated != format)) return found;
            found.IsImage = true;
            ImageFileFacts facts = opener.ReadInfo(path, format);
            found.IsBusy = facts.Lock is { Writes: true };
            found.Shape = new ImageShape(format, facts.VirtualSize ?? 0, facts.ClusterSize ?? 0, facts.Snapshots, PartitionTable.None);
            if (!found.IsBusy) found.Shape = LookInside(opener, path, format, found.Shape); // E2
            found.Needs = files.Identities();
        }
        catch (StorageException fault) when (fault.Errno == Errno.ENOENT && !_directory.List().Exists(e => e.Name == entry.Name))
        {
            return null;
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException or ImageInUseException)
        {
            found.IsImage = true; // what cannot be read may be one
            found.Shape = null;
            found.Error = _options.Describe(fault);
        }
        return found;
    }

    private ImageShape LookInside(ImageOpener opener, string path, string format, ImageShape shape)
    {
        using IDiskImage disk = opener.Open(path, _options.Open with
        {
            Format = format,
            Writable = false,
            Lock = false,
            Log = null,
            CacheSize = Math.Min(_options.Open.CacheSize, ProbeCacheSize),
            CommitInterval = TimeSpan.Zero,
            BackgroundRecovery = false,
        });
        return shape with
        {
            VirtualSize = disk.Length,
            BlockSize = disk.Info.BlockSize,
            Partitions = _options.ShowsPartitions ? PartitionTable.Read(disk.Length, disk.Read) : PartitionTable.None,
        };
    }

    /// <summary>What tells one state of a file from another (E1).</summary>
    private readonly record struct FileVersion((ulong Device, ulong Inode) File, long Length, long Seconds, uint Nanoseconds)
    {
        public static FileVersion Of(in FileFacts facts) =>
            new((facts.Device, facts.Inode), facts.Length, facts.ModifiedSeconds, facts.ModifiedNanoseconds);

        public bool IsSameFile(in FileVersion other) => File == other.File;
    }

    /// <summary>What a look at a file told.</summary>
    private sealed record Found(HostEntry Entry, FileVersion Version, long ProbedAt)
    {
        public byte[] NameBytes { get; } = HostText.Encode(Entry.Name);

        public bool IsImage { get; set; }

        /// <summary>Another process writes it (E2).</summary>
        public bool IsBusy { get; set; }

        public ImageShape? Shape { get; set; }

        public string? Error { get; set; }

        /// <summary>The files that it consists of, itself included.</summary>
        public IReadOnlyList<(ulong Device, ulong Inode)> Needs { get; set; } = [];

        public MountedImage? Image { get; set; }

        /// <summary>The file that <see cref="Image"/> was made for.</summary>
        public FileVersion ImageVersion { get; set; }

        /// <summary>What <see cref="Image"/> was last given to show.</summary>
        public object? ShapeGiven { get; set; }
    }
}
