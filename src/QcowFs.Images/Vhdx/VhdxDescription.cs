// Facts about a VHDX image for `info`.
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

internal static class VhdxDescription
{
    public static ImageFileFacts Of(VhdxLayout layout, IStorage file)
    {
        NamedReference? parent = layout.Metadata.Parent is { } locator ? ParentPath.Candidates(locator)[0] : null;
        return new ImageFileFacts
        {
            Path = file.Name,
            Format = VhdxFormat.FormatName,
            VirtualSize = layout.Metadata.VirtualSize,
            ClusterSize = layout.Metadata.BlockSize,
            BackingName = parent?.Name,
            FullBackingName = parent is null ? null : ReferenceGate.Resolve(file.Name, parent.Value.HostName!),
            BackingFormat = parent?.Format,
            FormatSpecific = DescribeFormat(layout),
            IsDirty = layout.Log is not null,
            Log = DescribeLog(layout),
        };
    }

    private static string DescribeLog(VhdxLayout layout) => layout.Log is { } log
        ? $"in use, or not closed properly: {log.Summary} must be replayed (a read-only mount does that in memory, one with -w in the file)"
        : layout.LogRegion.Length == 0 ? "none: the image can only be read" : "empty";

    private static List<FormatFact> DescribeFormat(VhdxLayout layout)
    {
        VhdxMetadata metadata = layout.Metadata;
        List<FormatFact> facts =
        [
            new("subformat", metadata.Parent is not null ? "differencing" : metadata.LeavesBlocksAllocated ? "fixed" : "dynamic"),
            new("logical-sector-size", (long)metadata.LogicalSectorSize),
            new("physical-sector-size", (long)metadata.PhysicalSectorSize),
            new("log-size", layout.LogRegion.Length),
            new("disk-id", metadata.DiskId.ToString()),
            new("data-write-guid", layout.Headers.Current.DataWriteGuid.ToString()),
        ];
        if (metadata.Parent is { } parent)
        {
            facts.Add(new("parent-linkage", parent.Linkage.ToString()));
            if (parent.SecondLinkage is { } second)
                facts.Add(new("parent-linkage2", second.ToString()));
            facts.Add(new("parent-paths", parent.Paths.ToList()));
        }

        return facts;
    }
}
