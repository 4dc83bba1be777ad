// VHDX as the opener sees it: what may be opened how, the parent's names, facts, check.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

internal sealed class VhdxFormat : IImageFormat
{
    public const string FormatName = "vhdx";

    public string Name => FormatName;

    public bool Recognises(ReadOnlySpan<byte> start) => start.StartsWith(VhdxLayout.Magic);

    public IImageLayer Read(IStorage file) => new VhdxLayer(VhdxLayout.Read(file), file);

    public IImageBlueprint Design(ImageRequest request, CreateOptions options) =>
        new VhdxBlueprint(VhdxCreateOptions.Parse(request, options, (options.Backing as VhdxLayer)?.Layout));

    private sealed class VhdxLayer(VhdxLayout layout, IStorage file) : IImageLayer
    {
        public VhdxLayout Layout => layout;

        public IReadOnlyList<NamedReference> References { get; } =
            layout.Metadata.Parent is { } parent ? ParentPath.Candidates(parent) : [];

        public IImageLayer AtSnapshot(string name, bool isId) => throw NoSnapshots();

        public void EditSnapshot(SnapshotAction action, string name, DateTimeOffset now) => throw NoSnapshots();

        public void RequireOpenable(bool writable)
        {
            if (writable)
                layout.RequireWritable(file);
        }

        public void RequireBacking(IImageLayer backing, string name)
        {
            if (layout.Metadata.Parent is { } parent)
                ParentLink.Require(layout, parent, (backing as VhdxLayer)?.Layout, file.Name, name);
        }

        public IDiskImage Open(IStorage? dataFile, IDiskImage? backing, OpenOptions options) =>
            VhdxImage.Open(new VhdxParts(layout, file, backing, options));

        public void Resize(long size, IStorage? dataFile, IDiskImage? backing)
        {
            backing?.Dispose();
            VhdxResize.Run(layout, file, size, GuidSource.System);
        }

        public ImageFileFacts Describe() => VhdxDescription.Of(layout, file);

        public CheckReport Check() => VhdxChecker.Check(file);

        public CheckReport Repair(RepairMode mode) => VhdxRepair.Run(file, mode, GuidSource.System);

        private ImageFormatException NoSnapshots() =>
            new(file.Name, "snapshot", -1, "a VHDX image cannot have internal snapshots", "make a differencing disk over it with qcowfs create -b");
    }

    private sealed class VhdxBlueprint(VhdxCreateOptions options) : IImageBlueprint
    {
        public string? DataFileName => null;

        public void Build(IStorage file, IStorage? dataFile) => VhdxCreator.Create(file, options, GuidSource.System);
    }
}
