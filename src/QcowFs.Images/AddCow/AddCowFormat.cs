// add-cow as the opener sees it: copy-on-write for a plain file, which in the end is a plain file. A small sidecar names the image file
// and the backing file, and holds a bit for each cluster that says which of them has it.
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

internal sealed class AddCowFormat : IImageFormat
{
    public const string FormatName = "add-cow";

    public string Name => FormatName;

    public bool Recognises(ReadOnlySpan<byte> start) => AddCowHeader.HasMagic(start);

    public IImageLayer Read(IStorage file) => new AddCowLayer(AddCowHeaderReader.Read(file), file);

    public IImageBlueprint Design(ImageRequest request, CreateOptions options) => AddCowBlueprint.Design(request, options);

    /// <summary>What opening opens, the image file first. A backing file that is not needed any more is not opened.</summary>
    public static IReadOnlyList<NamedReference> ReferencesOf(AddCowHeader header)
    {
        NamedReference image = new(ReferenceKind.DataFile, header.ImageName, header.ImageFormat);
        return header.BackingName is null || header.IsAllAllocated ? [image]
            : [image, new NamedReference(ReferenceKind.Backing, header.BackingName, header.BackingFormat)];
    }

    private sealed class AddCowLayer(AddCowHeader header, IStorage file) : IImageLayer
    {
        public IReadOnlyList<NamedReference> References { get; } = ReferencesOf(header);

        public IImageLayer AtSnapshot(string name, bool isId) => throw NoSnapshots();

        public void EditSnapshot(SnapshotAction action, string name, DateTimeOffset now) => throw NoSnapshots();

        public void RequireOpenable(bool writable)
        {
            // A header that can be read can be used; its bitmap is judged beside the image file.
        }

        public IDiskImage Open(IStorage? dataFile, IDiskImage? backing, OpenOptions options) =>
            AddCowImage.Open(new AddCowParts(header, file, dataFile!, backing, options));

        public void Resize(long size, IStorage? dataFile, IDiskImage? backing) => AddCowResize.Run(header, file, dataFile!, backing, size);

        public ImageFileFacts Describe() => AddCowDescription.Of(header, file, null);

        public ImageFileFacts Describe(long? dataSize) => AddCowDescription.Of(header, file, dataSize);

        public CheckReport Check() => throw Unreached();

        public CheckReport Check(Func<NamedReference, NamedDisk> look) => new AddCowChecker(file, look).Check();

        public CheckReport Repair(RepairMode mode) => throw Unreached();

        public CheckReport Repair(RepairMode mode, Func<NamedReference, NamedDisk> look) => AddCowChecker.Repair(file, mode, look);

        private static InvariantException Unreached() => new("an add-cow image is checked with the files that it names");

        private ImageFormatException NoSnapshots() =>
            new(file.Name, "snapshot", -1, "an add-cow image cannot have snapshots", "use a qcow2 image");
    }
}
