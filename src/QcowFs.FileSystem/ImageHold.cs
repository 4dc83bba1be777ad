// The hold on an image of the host.
using QcowFs.Images;
using QcowFs.Storage;

namespace QcowFs.FileSystem;

/// <summary>Holds the files of an image and of everything below it.</summary>
/// <param name="files">Where files are opened.</param>
/// <param name="path">The image.</param>
/// <param name="options">How it is opened; whether for writing is said at each open.</param>
/// <param name="beside">The directory in which views are made, opened before a mount could cover it; null: none are made. It stays the
/// caller's.</param>
public sealed class ImageHold(IHostFiles files, string path, OpenOptions options, HostDirectory? beside = null) : IImageHold
{
    // Snapshots are read beside the disk, and there may be many.
    private const long SnapshotCacheSize = 4 << 20;

    private readonly HeldFiles _held = new(files);

    /// <inheritdoc/>
    public HostFileFacts HostFile => _held.TryQuery(path) is { } facts ? HostFileFacts.From(facts) : default;

    /// <inheritdoc/>
    public IDiskImage OpenDisk(bool writable) => new ImageOpener(_held).Open(path, options with { Writable = writable });

    /// <inheritdoc/>
    public IDiskImage OpenSnapshot(string nameOrId, bool isId) => new ImageOpener(_held).Open(path, options with
    {
        Writable = false,
        Snapshot = nameOrId,
        SnapshotIsId = isId,
        CacheSize = Math.Min(options.CacheSize, SnapshotCacheSize),
    });

    /// <inheritdoc/>
    public FileStorage? CreateView() => beside?.CreateUnnamed($"a view of {path}");

    /// <inheritdoc/>
    public ImageFileFacts ReadFacts() => new ImageOpener(_held).ReadInfo(path, options.Format);

    /// <inheritdoc/>
    public void EditSnapshot(SnapshotAction action, string name) =>
        new ImageEditor(_held, options.Time).EditSnapshot(path, options.Format, action, name);

    /// <inheritdoc/>
    public long Resize(SizeChange change, bool mayShrink) =>
        new ImageEditor(_held, options.Time).Resize(path, options, change, mayShrink);

    /// <inheritdoc/>
    public CheckReport Check() => new ImageOpener(_held).Check(path, options.Format, options.References);

    /// <inheritdoc/>
    public void Dispose() => _held.Dispose();
}
