// Raw images: the file is the disk. There is no magic number, so raw is only what a user or an image states, or what is left for a
// backing file that states no format.
using QcowFs.Storage;

namespace QcowFs.Images.Raw;

internal sealed class RawFormat : IImageFormat
{
    public const string FormatName = "raw";

    public string Name => FormatName;

    public bool Recognises(ReadOnlySpan<byte> start) => false;

    public IImageLayer Read(IStorage file) => new RawLayer(file);

    public IImageBlueprint Design(ImageRequest request, CreateOptions options)
    {
        if (request.BackingName is not null)
            throw new ImageOptionException("--backing", "a raw image has no backing file");
        return new RawBlueprint(request.Size, options.TakePreallocation(withMetadata: false));
    }

    private sealed class RawBlueprint(long size, Preallocation preallocation) : IImageBlueprint
    {
        public string? DataFileName => null;

        public void Build(IStorage file, IStorage? dataFile)
        {
            file.SetLength(size);
            PreallocatedSpace.Fill(file, 0, size, preallocation);
            file.Sync();
        }
    }

    private sealed class RawLayer(IStorage file) : IImageLayer
    {
        public IReadOnlyList<NamedReference> References => [];

        public IImageLayer AtSnapshot(string name, bool isId) => throw NoSnapshots();

        public void EditSnapshot(SnapshotAction action, string name, DateTimeOffset now) => throw NoSnapshots();

        public void RequireOpenable(bool writable)
        {
            // Every file is a raw disk.
        }

        public IDiskImage Open(IStorage? dataFile, IDiskImage? backing, OpenOptions options) => new RawImage(file, options);

        public void Resize(long size, IStorage? dataFile, IDiskImage? backing)
        {
            if (file is FileStorage hostFile && hostFile.QueryFacts().IsBlockDevice) // F4: to cut it does nothing
                throw new ImageFormatException(file.Name, "size", -1, $"a block device keeps its {file.Length} bytes", "change its size where it was made");
            file.SetLength(size);
            file.Sync();
        }

        public ImageFileFacts Describe() => new() { Path = file.Name, Format = FormatName, VirtualSize = file.Length };

        public CheckReport Check() => new() { Format = FormatName };

        public CheckReport Repair(RepairMode mode) => Check();

        private ImageFormatException NoSnapshots() =>
            new(file.Name, "snapshot", -1, "a raw image cannot have snapshots", "use a qcow2 image");
    }
}
