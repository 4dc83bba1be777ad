// Makes new images: decides everything first, then makes the files, then their names durable; a failure leaves no file behind.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>
/// Makes images. Thread-safe. Faults: <see cref="ImageOptionException"/> (wrong usage, nothing was made),
/// <see cref="ImageFormatException"/> (the backing image is bad), <see cref="StorageException"/>.
/// </summary>
/// <param name="files">The host's files.</param>
public sealed class ImageCreator(IHostFiles files)
{
    /// <summary>Makes an image. When this returns it is complete and durable, name included.</summary>
    public void Create(ImageRequest request)
    {
        IImageFormat format = ImageFormats.Find(request.Format) ?? throw new ImageOptionException("--format",
            $"{Printable.Quote(request.Format)} is not one of {string.Join(", ", ImageOpener.FormatNames)}");
        CreateOptions options = new(request.Options);
        request = WithSizeAndBacking(request, options);
        IImageBlueprint blueprint = format.Design(request, options);
        options.RequireEmpty(request.Format);
        Build(request, blueprint);
    }

    // The same facts can come as arguments or, as in qemu-img, as options.
    private ImageRequest WithSizeAndBacking(ImageRequest request, CreateOptions options)
    {
        request = request with
        {
            BackingName = options.Take("backing_file") ?? request.BackingName,
            BackingFormat = options.Take("backing_fmt") ?? request.BackingFormat,
            Size = options.TakeSize("size", request.Size),
        };
        if (request.BackingName is not null)
            request = WithBacking(request, request.BackingName, options);
        else if (request.BackingFormat is not null)
            throw new ImageOptionException("--backing-format", "there is no backing file");
        return request.Size >= 0 ? request : throw new ImageOptionException("SIZE", "state the size of the disk");
    }

    // The user named this file, so the gate for names inside images has no say. It is looked at so that the image states a true
    // format, and never raw by guess: the next to open it would serve another's container, or a guest's forgery, as a disk.
    private ImageRequest WithBacking(ImageRequest request, string name, CreateOptions options)
    {
        string path = ReferenceGate.Resolve(request.Path, name)
            ?? throw new ImageOptionException("--backing", $"{Printable.Quote(name)} is not the name of a local file");
        using IStorage file = files.Open(path, HostAccess.Inspect, directIo: false);
        string? format = request.BackingFormat ?? ImageFormats.Probe(file)?.Name;
        if (format is null)
            throw new ImageOptionException("--backing-format", "the backing file has no known magic number; state its format, raw perhaps");
        IImageLayer layer = ImageChain.ReadSource(file, format);
        options.Backing = layer;
        long size = request.Size >= 0 ? request.Size : layer.Describe().VirtualSize ?? SizeOfDisk(path, format);
        return request with { BackingFormat = format, Size = size };
    }

    // The disk's size stands in a file that the backing image names.
    private long SizeOfDisk(string path, string format)
    {
        using IDiskImage disk = new ImageOpener(files).Open(path, new OpenOptions { Format = format, Lock = false });
        return disk.Length;
    }

    private void Build(ImageRequest request, IImageBlueprint blueprint)
    {
        string? dataPath = blueprint.DataFileName is null ? null
            : ReferenceGate.Resolve(request.Path, blueprint.DataFileName)
                ?? throw new ImageOptionException(blueprint.DataFileOption,
                    $"{Printable.Quote(blueprint.DataFileName)} is not the name of a local file");
        if (dataPath is not null && Path.GetFullPath(dataPath) == Path.GetFullPath(request.Path))
            throw new ImageOptionException(blueprint.DataFileOption, $"{Printable.Quote(blueprint.DataFileName!)} is the new image itself");
        List<string> made = [];
        try
        {
            using IStorage? dataFile = dataPath is null ? null : MakeDataFile(dataPath, request, blueprint, made);
            using IStorage file = Make(request.Path, made);
            blueprint.Build(file, dataFile);
            foreach (string path in made)
                files.SyncName(path);
        }
        catch
        {
            foreach (string path in made)
                files.Delete(path);
            throw;
        }
    }

    private IStorage MakeDataFile(string path, ImageRequest request, IImageBlueprint blueprint, List<string> made)
    {
        IStorage dataFile;
        try
        {
            if (!blueprint.DataFileMayExist)
                return Make(path, made);
            RequireNotBacking(path, request, blueprint);
            dataFile = files.Open(path, HostAccess.Write, directIo: false);
        }
        catch (StorageException fault) when (fault.Errno == Errno.ENOENT && blueprint.DataFileMayExist)
        {
            return Make(path, made);
        }

        return dataFile;
    }

    // Two names may lead to one file; writing to it would change what it is to be the backing of.
    private void RequireNotBacking(string path, ImageRequest request, IImageBlueprint blueprint)
    {
        if (request.BackingName is null)
            return;
        using IStorage dataFile = files.Open(path, HostAccess.Inspect, directIo: false);
        using ImageChain backing = ImageChain.Walk(files, ReferenceGate.Resolve(request.Path, request.BackingName)!,
            new OpenOptions { Format = request.BackingFormat, Lock = false, References = ReferencePolicy.All });
        if (backing.Contains(dataFile))
        {
            throw new ImageOptionException(blueprint.DataFileOption,
                $"{Printable.Quote(blueprint.DataFileName!)} is part of the backing file {Printable.Quote(request.BackingName)}");
        }
    }

    private IStorage Make(string path, List<string> made)
    {
        IStorage file = files.Open(path, HostAccess.Create, directIo: false);
        made.Add(path);
        return file;
    }
}
