// Puts a VHDX image together from its parts. For writing, the log is replayed first; for reading, in memory.
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>What an image is opened from.</summary>
/// <param name="Layout">What describes the file.</param>
/// <param name="File">The file.</param>
/// <param name="Backing">The parent, or null.</param>
/// <param name="Options">How to open it.</param>
internal sealed record VhdxParts(VhdxLayout Layout, IStorage File, IDiskImage? Backing, OpenOptions Options)
{
    /// <summary>Where new GUIDs come from.</summary>
    public GuidSource Guids { get; init; } = GuidSource.System;

    /// <summary>Where in the ring the session's first entry is put; tests bring the ring's end near.</summary>
    public long LogStart { get; init; }
}

/// <summary>Opens VHDX images.</summary>
internal static class VhdxImage
{
    /// <summary>Presents the parts as a disk image, which owns them from here on, also when this throws.</summary>
    public static CowImage Open(VhdxParts parts)
    {
        try
        {
            return Build(parts);
        }
        catch
        {
            parts.Backing?.Dispose();
            parts.File.Dispose();
            throw;
        }
    }

    private static CowImage Build(VhdxParts parts)
    {
        OpenOptions options = parts.Options;
        string? replayed = parts.Layout.Log is { } log && !options.Writable
            ? $"the last writer did not end properly; {log.Summary} were replayed in memory, the file is unchanged" : null;
        VhdxLayout layout = parts.Layout;
        if (options.Writable)
        {
            replayed = VhdxReplay.Run(parts.File, parts.Guids);
            layout = VhdxLayout.Read(parts.File);
            layout.RequireWritable(parts.File);
        }

        if (replayed is not null)
            options.Log?.Invoke($"{parts.File.Name}: {replayed}");
        FailureLatch latch = new(options.Log);
        IStorage file = new LatchedStorage(parts.File, latch);
        IStorage data = layout.Log is null ? file : layout.View;
        MetadataCache cache = new(data, VhdxLimits.SectorSize, options.CacheSize);
        VhdxState state = new()
        {
            Layout = layout,
            File = data,
            Cache = cache,
            Epoch = new ReaderEpoch(),
            Latch = latch,
            Space = options.Writable ? VhdxSpace.Scan(layout, file) : null,
            Guids = parts.Guids,
            DurableLength = data.Length,
        };
        VhdxBlockMap map = new(state, new VhdxCommit(state, parts.LogStart));
        CowImageParts image = new(map, data, [file], parts.Backing, latch, state.Epoch);
        return new CowImage(image, InfoOf(parts, layout, replayed), options);
    }

    private static ImageInfo InfoOf(VhdxParts parts, VhdxLayout layout, string? replayed)
    {
        NamedReference? parent = layout.Metadata.Parent is { } locator ? ParentPath.Candidates(locator)[0] : null;
        return new ImageInfo
        {
            Path = parts.File.Name,
            Format = VhdxFormat.FormatName,
            VirtualSize = layout.Metadata.VirtualSize,
            SizeUnit = layout.Metadata.LogicalSectorSize,
            BlockSize = layout.Metadata.BlockSize,
            BackingName = parent?.Name,
            BackingFormat = parent?.Format,
            Backing = parts.Backing?.Info,
            Recovery = replayed,
        };
    }
}
