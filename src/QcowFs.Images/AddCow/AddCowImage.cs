// Puts an add-cow image together.
using QcowFs.Images.Engine;
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

/// <summary>Everything opened, locked and checked. The image made from it owns it, also when making it fails.</summary>
/// <param name="Header">The header of <paramref name="File"/>.</param>
/// <param name="File">The add-cow file.</param>
/// <param name="Data">The image file: a raw one as it is, another as a disk image.</param>
/// <param name="Backing">The backing image, read-only, or null.</param>
/// <param name="Options">How the image is to be opened.</param>
internal sealed record AddCowParts(AddCowHeader Header, IStorage File, IStorage Data, IDiskImage? Backing, OpenOptions Options);

/// <summary>Opens add-cow images.</summary>
internal static class AddCowImage
{
    /// <summary>Presents the parts as a disk image.</summary>
    public static IDiskImage Open(AddCowParts parts)
    {
        try
        {
            return Build(parts);
        }
        catch
        {
            parts.Backing?.Dispose();
            parts.Data.Dispose();
            parts.File.Dispose();
            throw;
        }
    }

    private static CowImage Build(AddCowParts parts)
    {
        OpenOptions options = parts.Options;
        AddCowHeader header = parts.Header;

        // Trust begins with a sync: a process that died may have left bytes that could still vanish (I8). Data before bits (A1).
        if (options.Writable)
        {
            parts.Data.Sync();
            parts.File.Sync();
        }

        long size = parts.Data.Length;
        new AddCowGeometry(header, size).Require(parts.File, header.ImageName);
        string? recovery = null;
        if (options.Writable && header.IsResizing)
        {
            header = AddCowResize.Finish(parts.File, new AddCowGeometry(header, size));
            recovery = $"a change of the disk's size was interrupted; the disk has {size} bytes";
            options.Log?.Invoke($"{parts.File.Name}: {recovery}");
        }

        FailureLatch latch = new(options.Log);
        IStorage file = new LatchedStorage(parts.File, latch);
        IStorage data = new LatchedStorage(parts.Data, latch);
        AddCowBitmap bitmap = new(file, new AddCowGeometry(header, size), options.CacheSize);
        AddCowCommit commit = new(file, data, bitmap, options.Log);
        AddCowBlockMap map = new(bitmap, commit, data);
        ImageInfo info = new()
        {
            Path = parts.File.Name,
            DataPath = parts.Data.Name,
            Format = AddCowFormat.FormatName,
            VirtualSize = size,
            BlockSize = header.ClusterSize,
            BackingName = header.BackingName,
            BackingFormat = header.BackingFormat,
            Backing = parts.Backing?.Info,
            Recovery = recovery,
        };
        return new CowImage(new CowImageParts(map, data, [file, data], parts.Backing, latch, new ReaderEpoch()), info, options);
    }
}
