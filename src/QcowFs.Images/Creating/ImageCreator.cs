// Makes new images: decides everything first, then makes the files, then their names durable; a failure leaves no file behind.
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
        return request with { BackingFormat = format, Size = request.Size >= 0 ? request.Size : layer.Describe().VirtualSize };
    }

    private void Build(ImageRequest request, IImageBlueprint blueprint)
    {
        string? dataPath = blueprint.DataFileName is null ? null
            : ReferenceGate.Resolve(request.Path, blueprint.DataFileName)
                ?? throw new ImageOptionException("data_file",
                    $"{Printable.Quote(blueprint.DataFileName)} is not the name of a local file");
        List<string> made = [];
        try
        {
            using IStorage? dataFile = dataPath is null ? null : Make(dataPath, made);
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

    private IStorage Make(string path, List<string> made)
    {
        IStorage file = files.Open(path, HostAccess.Create, directIo: false);
        made.Add(path);
        return file;
    }
}
