// A VHDX file understood: headers, log, regions, metadata. Nothing but the headers is believed before the log has been replayed,
// in memory where the file must not change.
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>What describes one file.</summary>
/// <param name="Headers">The pair of headers.</param>
/// <param name="Log">The entries that must be replayed, or null where the log is empty.</param>
/// <param name="View">The file as it is after the replay: the file itself where the log is empty. Never disposes the file.</param>
/// <param name="Regions">Where the regions are.</param>
/// <param name="Metadata">The disk.</param>
/// <param name="Geometry">Its block allocation table.</param>
internal sealed record VhdxLayout(
    VhdxHeaders Headers, ActiveLog? Log, IStorage View, RegionTable Regions, VhdxMetadata Metadata, BatGeometry Geometry)
{
    public static ReadOnlySpan<byte> Magic => "vhdxfile"u8;

    /// <summary>Where the log is; of no length where there is none.</summary>
    public Region LogRegion => LogRegionOf(Headers.Current);

    /// <summary>Reads what describes a file without changing it. Faults: <see cref="ImageFormatException"/>,
    /// <see cref="StorageException"/>.</summary>
    public static VhdxLayout Read(IStorage file)
    {
        RequireMagic(file);
        VhdxHeaders headers = VhdxHeaders.Read(file);
        ActiveLog? log = headers.Current.LogGuid == Guid.Empty ? null : VhdxLogReader.Find(file, headers.Current);
        IStorage view = log is null ? file : new ReplayedView(file, log);
        return Read(headers, log, view);
    }

    /// <summary>Throws <see cref="ImageFormatException"/> where the file can only be read.</summary>
    public void RequireWritable(IStorage file)
    {
        if (LogRegion.Length == 0)
        {
            throw new ImageFormatException(file.Name, "header", Headers.CurrentOffset + VhdxHeader.LogLengthAt,
                "the file has no log, without which it cannot be written safely",
                $"run qcowfs check --repair {file.Name}, or mount it without -w");
        }

        if (file.Length > VhdxLimits.MaxFileSize)
        {
            throw new ImageFormatException(file.Name, "file", VhdxLimits.MaxFileSize,
                $"it has {file.Length} bytes, more than a disk of 64 TiB can need", "mount it without -w");
        }
    }

    public static Region LogRegionOf(VhdxHeader header) => header.LogLength == 0 ? default : new Region((long)header.LogOffset, header.LogLength);

    private static VhdxLayout Read(VhdxHeaders headers, ActiveLog? log, IStorage view)
    {
        RegionTable regions = RegionTable.Read(view, LogRegionOf(headers.Current));
        VhdxMetadata metadata = VhdxMetadata.Read(view, regions.Metadata);
        BatGeometry geometry = new(metadata.VirtualSize, metadata.BlockSize, metadata.LogicalSectorSize, metadata.Parent is not null);
        if (geometry.TableLength > regions.Bat.Length)
        {
            throw new ImageFormatException(view.Name, "BAT", regions.Bat.Offset,
                $"a disk of {metadata.VirtualSize} bytes needs {geometry.EntryCount} entries, the region has room for {regions.Bat.Length / BatEntry.Size}",
                "restore the file from a copy");
        }

        return new VhdxLayout(headers, log, view, regions, metadata, geometry);
    }

    private static void RequireMagic(IStorage file)
    {
        Span<byte> start = stackalloc byte[Magic.Length];
        file.Read(0, start);
        if (!start.SequenceEqual(Magic))
            throw new ImageFormatException(file.Name, "file identifier", 0, "the file does not begin with \"vhdxfile\"", "state its true format");
    }
}
