// A writable view of an image that stays as it is: changes go to a qcow2 over it, kept under a name or gone with the mount.
//
// Y1. The base is open for reading only, locked as a backing image is, by the name that the user gave; the name in the overlay is for
//     others (QEMU), and must lead to the same file.
// Y2. An overlay lies only over the base that it was made over, unchanged: BaseIdentity.
// Y3. A file that is there already is never written before it has proved to be an overlay of this base.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>Opens images under overlays. Thread-safe. Faults: <see cref="ImageFormatException"/>, <see cref="ImageInUseException"/>,
/// <see cref="StorageException"/>.</summary>
/// <param name="files">The host's files.</param>
public sealed class OverlayOpener(IHostFiles files)
{
    private const string Structure = "overlay";
    private const string OverlayFormat = "qcow2";

    /// <summary>What error messages call the temporary overlay of an image.</summary>
    public static string TemporaryName(string basePath) => $"{basePath} (temporary overlay)";

    /// <summary>Opens an image under an overlay without a name, which is gone when the disk is closed.</summary>
    /// <param name="basePath">The image.</param>
    /// <param name="options">How it is to be opened; it is never written, whatever they say.</param>
    /// <returns>The disk, which owns all files.</returns>
    public IDiskImage OpenTemporary(string basePath, OpenOptions options)
    {
        using ImageChain chain = WalkBase(basePath, options);
        IStorage file = files.CreateUnnamed(basePath, TemporaryName(basePath), options.DirectIo);
        try
        {
            // Held files outlast a disk over them, which goes on with what it finds.
            if (file.Length > 0)
                return Open(file, chain, options);
            ImageRequest request = new() { Path = file.Name, Format = OverlayFormat, Size = chain.DiskSize };
            ImageFormats.Find(OverlayFormat)!.Design(request, new CreateOptions([])).Build(file, dataFile: null);
        }
        catch
        {
            file.Dispose();
            throw;
        }

        return Open(file, chain, options);
    }

    /// <summary>Opens an image under a kept overlay, which is made where it does not exist.</summary>
    /// <param name="basePath">The image.</param>
    /// <param name="overlayPath">The overlay.</param>
    /// <param name="options">How the image is to be opened; it is never written, whatever they say.</param>
    /// <returns>The disk, which owns all files.</returns>
    public IDiskImage Open(string basePath, string overlayPath, OpenOptions options)
    {
        if (options.Snapshot is not null)
            throw Refused(overlayPath, "a kept overlay cannot lie over a snapshot", "leave out the file, or the snapshot");
        if (files.IsSameFile(basePath, overlayPath))
            throw Refused(overlayPath, "it is the image itself", "give another file, or mount the image with -w");
        using ImageChain chain = WalkBase(basePath, options);
        BaseIdentity now = BaseIdentity.Of(chain.Files(skip: 0));
        IStorage file = OpenOrMake(basePath, overlayPath, chain, now, options);
        try
        {
            RequireOurs(file, basePath, now);
        }
        catch
        {
            file.Dispose();
            throw;
        }

        return Open(file, chain, options);
    }

    /// <summary>Gives the disk of an overlay that nobody has open another size, durably; the image below keeps its own.</summary>
    /// <param name="basePath">The image.</param>
    /// <param name="overlayPath">The overlay, or null for the temporary one.</param>
    /// <param name="options">As they were given when it was opened.</param>
    /// <param name="size">The new size in bytes.</param>
    public void Resize(string basePath, string? overlayPath, OpenOptions options, long size)
    {
        using ImageChain chain = WalkBase(basePath, options);
        using IStorage file = overlayPath is null
            ? files.CreateUnnamed(basePath, TemporaryName(basePath), options.DirectIo)
            : files.Open(overlayPath, HostAccess.Write, options.DirectIo);
        IImageLayer layer = ImageChain.ReadSource(file, OverlayFormat);
        layer.RequireOpenable(writable: true);
        layer.Resize(size, dataFile: null, chain.Open());
    }

    private ImageChain WalkBase(string path, OpenOptions options) => ImageChain.Walk(files, path, options with { Writable = false }); // Y1

    // Two disks share what one would have.
    private static IDiskImage Open(IStorage file, ImageChain chain, OpenOptions options)
    {
        try
        {
            OpenOptions half = options with { Writable = true, Snapshot = null, CacheSize = Math.Max(options.CacheSize / 2, 1) };
            IImageLayer layer = ImageChain.ReadSource(file, OverlayFormat);
            layer.RequireOpenable(writable: true);
            return layer.Open(dataFile: null, chain.Open(), half);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    private IStorage OpenOrMake(string basePath, string overlayPath, ImageChain chain, BaseIdentity identity, OpenOptions options)
    {
        try
        {
            return OpenExisting(overlayPath, options) ?? Make(basePath, overlayPath, chain, identity, options);
        }
        catch (StorageException fault) when (fault.Errno == Errno.EROFS)
        {
            throw Refused(overlayPath, "it lies on a read-only file system", "give a file elsewhere, or --overlay for a temporary one");
        }
    }

    private IStorage? OpenExisting(string path, OpenOptions options)
    {
        try
        {
            return files.Open(path, HostAccess.Write, options.DirectIo);
        }
        catch (StorageException fault) when (fault.Errno == Errno.ENOENT)
        {
            return null;
        }
    }

    private IStorage Make(string basePath, string overlayPath, ImageChain chain, BaseIdentity identity, OpenOptions options)
    {
        new ImageCreator(files).Create(new ImageRequest
        {
            Path = overlayPath,
            Format = OverlayFormat,
            Size = chain.DiskSize,
            BackingName = NameFor(basePath, overlayPath),
            BackingFormat = chain.Format,
            Base = identity,
        });
        return files.Open(overlayPath, HostAccess.Write, options.DirectIo);
    }

    /// <summary>The name by which QEMU, and we when the overlay is opened by itself, find the base: bare where both lie in one directory,
    /// so that they can be moved together; else absolute.</summary>
    internal static string NameFor(string basePath, string overlayPath)
    {
        string full = Path.GetFullPath(basePath);
        if (Path.GetDirectoryName(full) != Path.GetDirectoryName(Path.GetFullPath(overlayPath)))
            return full;
        string name = Path.GetFileName(full);
        // What stands before a colon would be taken for a protocol.
        return name.Contains(':', StringComparison.Ordinal) ? "./" + name : name;
    }

    // Y2, Y3
    private void RequireOurs(IStorage file, string basePath, BaseIdentity now)
    {
        byte[] start = new byte[Math.Min(512, file.Length)];
        file.Read(0, start);
        if (!ImageFormats.Find(OverlayFormat)!.Recognises(start))
            throw Refused(file.Name, "the file exists and is not a qcow2 image", "choose a name that is free");
        if (ImageChain.ReadSource(file, OverlayFormat) is not IOverlayLayer { Base: { } remembered } layer)
            throw Refused(file.Name, "the image exists and is no overlay that qcowfs made", "choose a name that is free");
        NamedReference backing = layer.References.FirstOrDefault(r => r.Kind == ReferenceKind.Backing);
        string? named = backing.Name is null ? null : ReferenceGate.Resolve(file.Name, backing.Name);
        if (named is null || !files.IsSameFile(named, basePath))
        {
            throw Refused(file.Name, $"it lies over {Printable.Quote(backing.Name ?? "no base")}, not over {Printable.Quote(basePath)}",
                "mount its own base, or if that was moved, tell it so with qemu-img rebase -u");
        }

        if (remembered.IsCommitting)
            throw Refused(file.Name, "a commit of it has begun and not ended", $"finish it with qcowfs commit {Printable.Quote(file.Name)}");
        if (remembered.DifferenceTo(now, basePath) is { } difference)
            throw Refused(file.Name, difference.Problem, difference.Advice);
    }

    private static ImageFormatException Refused(string file, string problem, string advice) => new(file, Structure, -1, problem, advice);
}
