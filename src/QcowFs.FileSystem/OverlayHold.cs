// The hold on an image under an overlay. What changes is the overlay, its size included where the mount lets files grow; the image below is
// only read, and neither is edited by command while both are mounted.
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>Holds the files of an image, of everything below it, and of the overlay over it.</summary>
/// <param name="files">Where files are opened.</param>
/// <param name="path">The image.</param>
/// <param name="overlayPath">The overlay's file, or null for a temporary one, which is gone when this is disposed.</param>
/// <param name="options">How the image is opened.</param>
public sealed class OverlayHold(IHostFiles files, string path, string? overlayPath, OpenOptions options) : IImageHold
{
    private readonly HeldFiles _held = new(files);
    private readonly ImageHold _base = new(files, path, options);

    /// <summary>The disk is kept in two files; the overlay is the one that changes.</summary>
    public HostFileFacts HostFile
    {
        get
        {
            if (_held.TryQuery(path) is not { } below) return default;
            HostFileFacts image = HostFileFacts.From(below);
            return _held.TryQuery(OverlayName) is { } above
                ? HostFileFacts.From(above) with { Blocks = HostFileFacts.From(above).Blocks + image.Blocks }
                : image;
        }
    }

    private string OverlayName => overlayPath ?? OverlayOpener.TemporaryName(path);

    /// <inheritdoc/>
    public IDiskImage OpenDisk(bool writable)
    {
        OverlayOpener opener = new(_held);
        return overlayPath is null ? opener.OpenTemporary(path, options) : opener.Open(path, overlayPath, options);
    }

    /// <inheritdoc/>
    public IDiskImage OpenSnapshot(string nameOrId, bool isId) => _base.OpenSnapshot(nameOrId, isId);

    /// <inheritdoc/>
    public ImageFileFacts ReadFacts() => new ImageOpener(_held).ReadInfo(path, options.Format);

    /// <summary>Facts of the overlay's own file; the image's where the overlay is temporary.</summary>
    public ImageFileFacts ReadOverlayFacts() => overlayPath is null ? ReadFacts() : new ImageOpener(_held).ReadInfo(overlayPath);

    /// <inheritdoc/>
    public void EditSnapshot(SnapshotAction action, string name) => throw Refused();

    /// <inheritdoc/>
    public long Resize(SizeChange change, bool mayShrink) => throw Refused();

    /// <inheritdoc/>
    public void SetSize(long size) => new OverlayOpener(_held).Resize(path, overlayPath, options, size);

    /// <summary>Checks the overlay; the image where the overlay is temporary.</summary>
    public CheckReport Check() => overlayPath is null
        ? new ImageOpener(_held).Check(path, options.Format, options.References)
        : new ImageOpener(_held).Check(overlayPath, format: null, options.References);

    /// <inheritdoc/>
    public void Dispose()
    {
        _base.Dispose();
        _held.Dispose();
    }

    private ImageFormatException Refused() => new(path, "overlay", -1, "it is mounted under an overlay", "unmount it first");
}
