// Facts about an add-cow image for `info`. The disk's size is the image file's, which `info` does not open: it is told the size.
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

internal static class AddCowDescription
{
    /// <summary>Reads the bitmap too. Faults: <see cref="StorageException"/>.</summary>
    public static ImageFileFacts Of(AddCowHeader header, IStorage file, long? size)
    {
        List<FormatFact> facts =
        [
            new("layout", header.Layout == AddCowLayout.Final ? "final" : "march-2012"),
            new("image-file", header.ImageName),
            new("image-format", header.ImageFormat),
        ];
        if (size is { } length)
        {
            AddCowGeometry geometry = new(header, length);
            long allocated = header.IsAllAllocated ? geometry.Clusters : BitmapFile.CountAllocated(file, geometry);
            facts.AddRange(Progress(header.IsAllAllocated, allocated, geometry.Clusters));
        }
        else
        {
            facts.Add(new("all-allocated", header.IsAllAllocated));
        }

        return new ImageFileFacts
        {
            Path = file.Name,
            Format = AddCowFormat.FormatName,
            VirtualSize = size,
            ClusterSize = header.ClusterSize,
            BackingName = header.BackingName,
            FullBackingName = header.BackingName is null ? null : ReferenceGate.Resolve(file.Name, header.BackingName),
            BackingFormat = header.BackingFormat,
            DataFileName = header.ImageName,
            FormatSpecific = facts,
            Log = header.IsResizing ? "a change of the disk's size was interrupted" : null,
        };
    }

    /// <summary>How far the image has come on its way to needing no backing file. 100 percent is said of a complete disk only.</summary>
    public static IReadOnlyList<FormatFact> Progress(bool isMarked, long allocated, long clusters) =>
    [
        new("all-allocated", isMarked),
        new("allocated-clusters", allocated),
        new("total-clusters", clusters),
        new("allocated-percent", clusters == 0 ? 100.0 : Math.Floor(1000.0 * allocated / clusters) / 10),
    ];
}
