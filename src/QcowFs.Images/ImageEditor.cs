// Changes of a whole image that nobody else has open: its size, its internal snapshots, what it holds over its base.
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>What becomes of a disk's size.</summary>
/// <param name="Bytes">The new size, or the difference.</param>
/// <param name="Sign">+1: it grows by so much; -1: it shrinks by so much; 0: it becomes so much.</param>
public readonly record struct SizeChange(long Bytes, int Sign = 0);

/// <summary>What becomes of an internal snapshot.</summary>
public enum SnapshotAction
{
    /// <summary>The active disk is kept as a new snapshot.</summary>
    Create,
    /// <summary>The active disk becomes what it was when the snapshot was made, its size included; the snapshot stays.</summary>
    Apply,
    /// <summary>The snapshot goes.</summary>
    Delete,
}

/// <summary>
/// Edits images. Thread-safe. When a member returns, the change is complete and durable; a crash in it leaves the image as before or
/// as after, with leaked clusters at worst. Faults: <see cref="ImageFormatException"/> (refused, nothing changed),
/// <see cref="ImageInUseException"/>, <see cref="StorageException"/>.
/// </summary>
/// <param name="files">The host's files.</param>
/// <param name="time">The clock that dates snapshots.</param>
public sealed class ImageEditor(IHostFiles files, TimeProvider time)
{
    /// <summary>Gives a disk another size. New bytes read as zeros.</summary>
    /// <param name="path">The image.</param>
    /// <param name="options">Format and references; the image is opened for writing whatever they say.</param>
    /// <param name="change">The new size.</param>
    /// <param name="mayShrink">Whether what lies past the new end may be lost.</param>
    /// <returns>The new size in bytes.</returns>
    public long Resize(string path, OpenOptions options, SizeChange change, bool mayShrink)
    {
        using ImageChain chain = ImageChain.Walk(files, path, options with { Writable = true });
        IStorage file = chain.Source;
        long old = chain.DiskSize;
        if (change.Sign > 0 && change.Bytes > long.MaxValue - old)
            throw new ImageFormatException(file.Name, "size", -1, $"the disk's {old} bytes cannot grow by {change.Bytes}", "give less");
        if (change.Sign < 0 && change.Bytes > old)
            throw new ImageFormatException(file.Name, "size", -1, $"the disk has only {old} bytes", "give less");
        long size = change.Sign == 0 ? change.Bytes : old + change.Sign * change.Bytes;
        if (size < old && !mayShrink)
        {
            throw new ImageFormatException(file.Name, "size", -1,
                $"{size} bytes are less than the disk's {old}, and what lies past them would be lost", "give --shrink if that is meant");
        }

        chain.Resize(size);
        return size;
    }

    /// <summary>Makes, applies or deletes an internal snapshot.</summary>
    /// <param name="path">The image.</param>
    /// <param name="format">The format that the user states, or null to probe.</param>
    /// <param name="action">What to do.</param>
    /// <param name="name">The snapshot's name; one that exists is also found by its id.</param>
    public void EditSnapshot(string path, string? format, SnapshotAction action, string name)
    {
        using IStorage file = files.Open(path, HostAccess.Write, directIo: false);
        IImageLayer layer = ImageChain.ReadSource(file, format);
        layer.RequireOpenable(writable: true);
        layer.EditSnapshot(action, name, time.GetUtcNow());
    }

    /// <summary>Writes all that an image holds into the image below it and empties it. A crash leaves the two reading the same together,
    /// and the commit can be run again.</summary>
    /// <param name="path">The image whose content is to go down.</param>
    /// <param name="options">Format and references; the image and the one below it are opened for writing whatever they say.</param>
    /// <param name="progress">Told the bytes of the disk that are done and all of them, now and then; may be null.</param>
    public CommitResult Commit(string path, OpenOptions options, Action<long, long>? progress) =>
        OverlayCommit.Run(files, path, options, progress);
}
