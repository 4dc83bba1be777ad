// The image that the user named and everything below it, opened and checked but not yet presented as disks.
//   N1. A chain ends: a file that is in it already, by device and inode or by path, is refused, and so is a chain that is too long.
//   N2. Files are opened from the top down, disks are made from the bottom up; whatever fails, every file is closed.
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>The files of one chain. Used by one thread. Owns its files until <see cref="Open"/>.</summary>
internal sealed class ImageChain : IDisposable
{
    /// <summary>Ours: each image of a chain costs a descriptor and a metadata cache, and every read of unallocated space passes
    /// all of them. Chains in use are shorter by far.</summary>
    public const int MaxDepth = 256;

    /// <summary>The least metadata cache that an image of a chain gets.</summary>
    private const long MinCacheSize = 1 << 20;

    private readonly ReferenceGate _gate;
    private readonly OpenOptions _options;
    private readonly List<Link> _links = [];

    private ImageChain(ReferenceGate gate, OpenOptions options)
    {
        _gate = gate;
        _options = options;
    }

    /// <summary>Opens all files of the chain. Faults: <see cref="ImageFormatException"/>, <see cref="ImageInUseException"/>,
    /// <see cref="StorageException"/>.</summary>
    public static ImageChain Walk(IHostFiles files, string path, OpenOptions options)
    {
        if (options.Snapshot is not null && options.Writable)
            throw new ArgumentException("A snapshot is opened for reading only.", nameof(options));
        ImageChain chain = new(new ReferenceGate(files, options.References, path), options);
        try
        {
            HostAccess access = !options.Lock && !options.Writable ? HostAccess.Inspect
                : options.Writable ? HostAccess.Write : HostAccess.Read;
            chain.AddSource(files.Open(path, access, options.DirectIo));
            while (chain.AddBacking())
            {
            }

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

    /// <summary>Reads what describes a backing image: by the stated format, else by its magic number, else raw.</summary>
    public static IImageLayer ReadBacking(IStorage file, string image, NamedReference reference)
    {
        if (reference.Format is null)
            return (ImageFormats.Probe(file) ?? ImageFormats.Find("raw")!).Read(file);
        IImageFormat? format = ImageFormats.Find(reference.Format);
        return format is not null ? format.Read(file) : throw new ImageFormatException(image, "backing file", -1,
            $"its format is stated as {Printable.Quote(reference.Format)}, which cannot be opened", "convert it with qemu-img convert");
    }

    /// <summary>Makes the disk images and gives the top one, which owns all others.</summary>
    public IDiskImage Open() => Present(_options.Writable);

    // What is left when the top was taken is all backing.
    private IDiskImage OpenRest() => Present(writable: false);

    private IDiskImage Present(bool writable)
    {
        long cacheSize = Math.Max(_options.CacheSize / _links.Count, Math.Min(MinCacheSize, _options.CacheSize));
        IDiskImage? disk = null;
        while (_links.Count > 0)
        {
            Link link = _links[^1];
            _links.RemoveAt(_links.Count - 1);
            bool top = _links.Count == 0;
            // G4: only the image that the user named is ever writable.
            disk = link.Layer.Open(link.DataFile, disk, _options with { Writable = writable && top, CacheSize = cacheSize });
        }

        return disk!;
    }

    /// <summary>The file of the image that the user named.</summary>
    public IStorage Source => _links[0].File;

    /// <summary>The image that the user named.</summary>
    public IImageLayer SourceLayer => _links[0].Layer;

    /// <summary>Gives the top image's disk another size.</summary>
    public void Resize(long size)
    {
        Link top = _links[0];
        _links.RemoveAt(0);
        try
        {
            top.Layer.Resize(size, _links.Count > 0 ? OpenRest() : null);
        }
        finally
        {
            top.File.Dispose();
            top.DataFile?.Dispose();
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
        }

        _links.Clear();
    }

    private void AddSource(IStorage file)
    {
        Link link = new(file);
        _links.Add(link);
        link.Layer = ReadSource(file, _options.Format);
        if (_options.Snapshot is not null)
            link.Layer = link.Layer.AtSnapshot(_options.Snapshot);
        link.Layer.RequireOpenable(_options.Writable);
        if (_options is { Writable: true, Compress: true } && link.Layer.WhyNotCompressed is { } reason)
            throw new ImageFormatException(file.Name, "format", -1, reason, "write it without compression");
        if (_options is { Writable: true, Journal: not null } && link.Layer.WhyNoJournal is { } obstacle)
            throw new ImageFormatException(file.Name, "journal", -1, obstacle.Problem, obstacle.Advice);
        OpenDataFile(link, _options.Writable);
    }

    private bool AddBacking()
    {
        Link above = _links[^1];
        NamedReference reference = above.Layer.References.FirstOrDefault(r => r.Kind == ReferenceKind.Backing);
        if (reference.Name is null)
            return false;
        if (_links.Count == MaxDepth)
        {
            throw new ImageFormatException(above.File.Name, "backing file", -1,
                $"the chain has more than {MaxDepth} images", "shorten it with qemu-img rebase or qemu-img commit");
        }

        Link link = new(OpenNamed(above, reference, writable: false));
        _links.Add(link);
        link.Layer = ReadBacking(link.File, above.File.Name, reference);
        link.Layer.RequireOpenable(writable: false);
        OpenDataFile(link, writable: false);
        return true;
    }

    private void OpenDataFile(Link link, bool writable)
    {
        NamedReference reference = link.Layer.References.FirstOrDefault(r => r.Kind == ReferenceKind.DataFile);
        if (reference.Name is not null)
            link.DataFile = OpenNamed(link, reference, writable);
    }

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
        string identity = Identity(file);
        if (_links.Exists(link => Identity(link.File) == identity || (link.DataFile is { } data && Identity(data) == identity)))
        {
            bool backing = reference.Kind == ReferenceKind.Backing;
            throw new ImageFormatException(from.File.Name, backing ? "backing file" : "data file", -1,
                $"{Printable.Quote(reference.Name)} is already part of the chain, which would never end",
                backing ? "rebase the image with qemu-img rebase -u" : "the image is damaged; restore it from a copy");
        }
    }

    private sealed class Link(IStorage file)
    {
        public IStorage File { get; } = file;

        public IImageLayer Layer { get; set; } = null!;

        public IStorage? DataFile { get; set; }
    }
}
