// The image that the user named and everything below it, opened and checked but not yet presented as disks.
//   N1. A chain ends: a file that is in it already, by device and inode or by path, is refused, and so is a chain that is too long.
//   N2. Files are opened from the top down, disks are made from the bottom up; whatever fails, every file is closed.
//   N3. A data file that is an image itself is the top of a chain of its own: what it names passes the same gate and counts for N1.
using QcowFs.Images.Dedup;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>The files of one chain. Used by one thread. Owns its files until <see cref="Open"/>.</summary>
internal sealed class ImageChain : IDisposable
{
    /// <summary>Ours: each image of a chain costs a descriptor and a metadata cache, and every read of unallocated space passes
    /// all of them. Chains in use are shorter by far.</summary>
    public const int MaxDepth = 256;

    private const string Raw = "raw";

    /// <summary>The least metadata cache that an image of a chain gets.</summary>
    private const long MinCacheSize = 1 << 20;

    private readonly IHostFiles _files;
    private readonly ReferenceGate _gate;
    private readonly OpenOptions _options;
    private bool _isJournaled = true;
    private readonly ImageChain? _user; // whose data file this chain presents (N3)
    private readonly List<Link> _links = [];

    private ImageChain(IHostFiles files, ReferenceGate gate, OpenOptions options, ImageChain? user = null)
    {
        _files = files;
        _gate = gate;
        _options = options;
        _user = user;
    }

    /// <summary>Opens all files of the chain. Faults: <see cref="ImageFormatException"/>, <see cref="ImageInUseException"/>,
    /// <see cref="StorageException"/>.</summary>
    public static ImageChain Walk(IHostFiles files, string path, OpenOptions options) => Walk(files, path, options, writesBacking: false);

    /// <summary>The same for a commit: the image that the user named and the one below it are open for writing.</summary>
    public static ImageChain WalkToCommit(IHostFiles files, string path, OpenOptions options) =>
        Walk(files, path, options with { Writable = true }, writesBacking: true);

    private static ImageChain Walk(IHostFiles files, string path, OpenOptions options, bool writesBacking)
    {
        if (options.Snapshot is not null && options.Writable)
            throw new ArgumentException("A snapshot is opened for reading only.", nameof(options));
        ImageChain chain = new(files, new ReferenceGate(files, options.References, path), options);
        try
        {
            HostAccess access = !options.Lock && !options.Writable ? HostAccess.Inspect
                : options.Writable ? HostAccess.Write : HostAccess.Read;
            chain.AddSource(files.Open(path, access, options.DirectIo));
            chain.WalkBacking(writesBacking);
            return chain;
        }
        catch
        {
            chain.Dispose();
            throw;
        }
    }

    /// <summary>Reads what describes an image, by the format that the user states or by its magic number.</summary>
    public static IImageLayer ReadSource(IStorage file, string? format)
    {
        if (format is not null)
        {
            return (ImageFormats.Find(format) ?? throw new ImageFormatException(file.Name, "format", -1,
                $"{Printable.Quote(format)} is not known", $"use one of {string.Join(", ", ImageFormats.All.Select(f => f.Name))}"))
                .Read(file);
        }

        // Raw is never guessed here: a guest can write any magic number into its raw disk.
        IImageFormat? probed = ImageFormats.Probe(file);
        return probed is not null ? probed.Read(file) : throw new ImageFormatException(file.Name, "format", -1,
            file.Length == 0 ? "the file is empty" : "no image format was recognised", "if it is a raw disk, state that with -f raw");
    }

    /// <summary>Reads what describes an image that another names: by the stated format, else by its magic number, else raw.</summary>
    public static IImageLayer ReadNamed(IStorage file, string image, NamedReference reference)
    {
        if (reference.Format is null)
            return (ImageFormats.Probe(file) ?? ImageFormats.Find(Raw)!).Read(file);
        IImageFormat? format = ImageFormats.Find(reference.Format);
        return format is not null ? format.Read(file) : throw new ImageFormatException(image, StructureOf(reference.Kind), -1,
            $"its format is stated as {Printable.Quote(reference.Format)}, which cannot be opened", "convert it with qemu-img convert");
    }

    /// <summary>Opens what the last image that is open names, and so on to the end of the chain.</summary>
    /// <param name="writable">Whether the image below the one that the user named is to be written.</param>
    public void WalkBacking(bool writable)
    {
        while (AddBacking(writable && _links.Count == 1))
        {
        }
    }

    /// <summary>Makes the disk images and gives the top one, which owns all others.</summary>
    public IDiskImage Open() => Present(0, _options.Writable, CacheShare);

    /// <summary>Makes disk images of all but the top image and gives their top one, which owns them. The chain keeps the top image;
    /// <see cref="WalkBacking"/> opens the others anew.</summary>
    public IDiskImage OpenBacking(bool writable) => Present(1, writable, CacheShare);

    /// <summary>Size of the disk of the image that the user named, or of its snapshot that is opened.</summary>
    public long DiskSize => SizeOf(_links[0]);

    /// <summary>Size of the disk below it.</summary>
    public long BackingSize => SizeOf(_links[1]);

    /// <summary>Format of the image that the user named.</summary>
    public string Format => SourceLayer.Describe().Format;

    /// <summary>Whether the image that the user named lies over another.</summary>
    public bool HasBacking => _links.Count > 1;

    /// <summary>The image below the one that the user named.</summary>
    public IImageLayer BackingLayer => _links[1].Layer;

    /// <summary>The files of all images but the first <paramref name="skip"/>, from the top down.</summary>
    public IEnumerable<IStorage> Files(int skip)
    {
        foreach (Link link in _links.Skip(skip))
        {
            yield return link.File;
            if (link.DataFile is not null)
                yield return link.DataFile;
            foreach (IStorage file in link.DataChain?.Files(0) ?? [])
                yield return file;
        }
    }

    /// <summary>The top image's disk for reading, without what lies below it; the files stay the chain's.</summary>
    public IDiskImage OpenSourceAlone()
    {
        Link top = _links[0];
        return ReadSource(new BorrowedStorage(top.File), _options.Format)
            .Open(top.DataFile is null ? null : new BorrowedStorage(top.DataFile), backing: null, _options with { Writable = false });
    }

    // Of each image's metadata cache.
    private long CacheShare => Math.Max(_options.CacheSize / Math.Max(Count, 1), Math.Min(MinCacheSize, _options.CacheSize));

    // Disks of all links but the first few, which stay.
    private IDiskImage Present(int kept, bool writable, long cacheSize)
    {
        IDiskImage? disk = null;
        while (_links.Count > kept)
        {
            Link link = _links[^1];
            _links.RemoveAt(_links.Count - 1);
            bool top = _links.Count == kept;
            // G4: only the image that the user named is ever writable, and the one below it in a commit; and what it keeps its data in.
            OpenOptions options = _options with
            {
                Writable = writable && top,
                CacheSize = cacheSize,
                Journal = top && _isJournaled ? _options.Journal : null,
                StreamRate = top && _user is null ? _options.StreamRate : null,
            };
            IStorage? dataFile = PresentData(link, disk, options);
            if (top && writable)
                options = WithIndex(options, link);
            bool opened = false;
            try
            {
                disk = link.Layer.Open(dataFile, disk, options);
                opened = true;
            }
            finally
            {
                if (!opened)
                    options.AttachedIndex?.Dispose();
            }
        }

        return disk!;
    }

    /// <summary>Opens the dedup index where one is wanted, and says whether there is one where it is not.</summary>
    private OpenOptions WithIndex(OpenOptions options, Link link)
    {
        if (options.Dedup is null || link.Layer.SharingObstacle is not null)
            return options with { HasDedupIndex = link.Layer.SharingObstacle is null && AttachedIndex.Exists(_files, link.File.Name) };
        try
        {
            return options with { AttachedIndex = AttachedIndex.Open(_files, link.File, link.Layer.BlockSize, options.Dedup, options.Log) };
        }
        catch (StorageException exception) when (exception.IsOutOfSpace)
        {
            options.Log?.Invoke($"{exception.Message}; deduplication pauses until the next mount");
            return options with { HasDedupIndex = true };
        }
    }

    // N2
    private static IStorage? PresentData(Link link, IDiskImage? below, OpenOptions options)
    {
        if (link.DataChain is null)
            return link.DataFile;
        try
        {
            return link.DataChain.Present(0, options.Writable, options.CacheSize);
        }
        catch
        {
            link.DataChain.Dispose();
            link.File.Dispose();
            below?.Dispose();
            throw;
        }
    }

    /// <summary>The file of the image that the user named.</summary>
    public IStorage Source => _links[0].File;

    /// <summary>The image that the user named.</summary>
    public IImageLayer SourceLayer => _links[0].Layer;

    /// <summary>Whether the file is one of the chain's.</summary>
    public bool Contains(IStorage file)
    {
        string identity = Identity(file);
        return _links.Exists(link => Identity(link.File) == identity || (link.DataFile is { } data && Identity(data) == identity)
            || link.DataChain?.Contains(file) == true);
    }

    /// <summary>Gives the top image's disk another size.</summary>
    public void Resize(long size) => Resize(0, size);

    /// <summary>Gives the disk below the top image another size. The chain keeps the top image; <see cref="WalkBacking"/> opens the
    /// others anew.</summary>
    public void ResizeBacking(long size) => Resize(1, size);

    private void Resize(int index, long size)
    {
        Link link = _links[index];
        _links.RemoveAt(index);
        IStorage? dataFile = link.DataFile;
        try
        {
            dataFile ??= link.DataChain?.Present(0, writable: true, CacheShare);

            // What is left below is all backing.
            link.Layer.Resize(size, dataFile, _links.Count > index ? Present(index, writable: false, CacheShare) : null);
        }
        finally
        {
            link.File.Dispose();
            dataFile?.Dispose();
            link.DataChain?.Dispose();
        }
    }

    /// <summary>What identifies a file on the host: device and inode, or the name where there is no host.</summary>
    public static string Identity(IStorage file) =>
        file is FileStorage hostFile && hostFile.QueryFacts() is var facts ? $"{facts.Device}:{facts.Inode}" : file.Name;

    public void Dispose()
    {
        foreach (Link link in _links)
        {
            link.File.Dispose();
            link.DataFile?.Dispose();
            link.DataChain?.Dispose();
        }

        _links.Clear();
    }

    private void AddSource(IStorage file)
    {
        Link link = new(file);
        _links.Add(link);
        link.Layer = ReadSource(file, _options.Format);
        if (_options.Snapshot is not null)
            link.Layer = link.Layer.AtSnapshot(_options.Snapshot, _options.SnapshotIsId);
        link.Layer.RequireOpenable(_options.Writable);
        if (_options is { Writable: true, Dedup.IsOptional: false } && link.Layer.SharingObstacle is { } obstacle)
        {
            throw new ImageFormatException(file.Name, "dedup", -1, $"blocks cannot be shared: {obstacle}",
                "convert it to qcow2 (version 3, no external data file) with qemu-img convert, or mount it without --dedup");
        }

        if (_options is { Writable: true, Compress: true } && link.Layer.WhyNotCompressed is { } reason)
            throw new ImageFormatException(file.Name, "format", -1, reason, "write it without compression");
        if (_options is { Writable: true, Journal: { } journal } && link.Layer.WhyNoJournal is { } hindrance)
        {
            if (!journal.IsOptional)
                throw new ImageFormatException(file.Name, "journal", -1, hindrance.Problem, hindrance.Advice);
            _options.Log?.Invoke($"{file.Name}: {hindrance.Problem}; it is written without one");
            _isJournaled = false;
        }

        OpenDataFile(link, _options.Writable);
    }

    // N3
    private static void WalkData(ImageChain user, Link from, NamedReference reference, IStorage file, bool writable)
    {
        ImageChain chain = new(user._files, user._gate, user._options, user);
        Link link = new(file);
        chain._links.Add(link);
        from.DataChain = chain; // owned, and counted for N1, from here on
        link.Layer = ReadNamed(file, from.File.Name, reference);
        link.Layer.RequireOpenable(writable);
        chain.OpenDataFile(link, writable);
        chain.WalkBacking(writable: false);
    }

    private ImageChain Root => _user?.Root ?? this;

    /// <summary>Images, those that hold another's data included.</summary>
    private int Count => _links.Sum(link => 1 + (link.DataChain?.Count ?? 0));

    private static long SizeOf(Link link) => link.Layer.Describe(link.DataFile?.Length).VirtualSize
        ?? link.DataChain?.DiskSize
        ?? throw new InvalidOperationException("An image's size is known once what it names is open.");

    private bool AddBacking(bool writable)
    {
        Link above = _links[^1];
        List<NamedReference> names = [.. above.Layer.References.Where(r => r.Kind == ReferenceKind.Backing)];
        if (names.Count == 0)
            return false;
        if (Root.Count >= MaxDepth)
        {
            throw new ImageFormatException(above.File.Name, "backing file", -1,
                $"the chain has more than {MaxDepth} images", "shorten it with qemu-img rebase or qemu-img commit");
        }

        Link link = new(OpenFirst(above, names, writable, out NamedReference reference));
        _links.Add(link);
        link.Layer = ReadNamed(link.File, above.File.Name, reference);
        link.Layer.RequireOpenable(writable);
        above.Layer.RequireBacking(link.Layer, reference.HostName ?? reference.Name);
        OpenDataFile(link, writable);
        return true;
    }

    /// <summary>Opens the first of several names that leads to a file. Where none does, the first one's fault says why.</summary>
    private IStorage OpenFirst(Link above, List<NamedReference> names, bool writable, out NamedReference reference)
    {
        ImageFormatException? refused = null;
        foreach (NamedReference name in names)
        {
            try
            {
                reference = name;
                return OpenNamed(above, name, writable);
            }
            catch (ImageFormatException fault)
            {
                refused ??= fault;
            }
        }

        throw refused!;
    }

    private void OpenDataFile(Link link, bool writable)
    {
        NamedReference reference = link.Layer.References.FirstOrDefault(r => r.Kind == ReferenceKind.DataFile);
        if (reference.Name is null)
            return;
        IStorage file = OpenNamed(link, reference, writable);
        if (reference.Format is null or Raw)
        {
            link.DataFile = file;
            return;
        }

        if (Root.Count >= MaxDepth)
        {
            file.Dispose();
            throw new ImageFormatException(link.File.Name, StructureOf(reference.Kind), -1, $"the chain has more than {MaxDepth} images",
                "keep the data in a raw file");
        }

        WalkData(this, link, reference, file, writable);
    }

    private static string StructureOf(ReferenceKind kind) => kind == ReferenceKind.Backing ? "backing file" : "data file";

    // N1. A loop through an image that is open for writing meets our own lock first, so then the file is looked at without one.
    private IStorage OpenNamed(Link from, NamedReference reference, bool writable)
    {
        IStorage file;
        try
        {
            file = _gate.Open(from.File.Name, reference, writable, _options);
        }
        catch (ImageInUseException)
        {
            using IStorage unlocked = _gate.Open(from.File.Name, reference, writable: false, _options with { Lock = false });
            RequireNew(from, reference, unlocked);
            throw;
        }

        try
        {
            RequireNew(from, reference, file);
            return file;
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    private void RequireNew(Link from, NamedReference reference, IStorage file)
    {
        if (Root.Contains(file))
        {
            bool backing = reference.Kind == ReferenceKind.Backing;
            throw new ImageFormatException(from.File.Name, StructureOf(reference.Kind), -1,
                $"{Printable.Quote(reference.Name)} is already part of the chain, which would never end",
                backing && reference.Rebase is { } rebase ? $"rebase the image with {rebase} -u" : "the image is damaged; restore it from a copy");
        }
    }

    private sealed class Link(IStorage file)
    {
        public IStorage File { get; } = file;

        public IImageLayer Layer { get; set; } = null!;

        /// <summary>The raw file with its data, or null.</summary>
        public IStorage? DataFile { get; set; }

        /// <summary>The image that has its data, with all that this one names; or null.</summary>
        public ImageChain? DataChain { get; set; }
    }
}
