// The map of a disk: which ranges hold data, and where (`qcowfs map`, map.json).
using System.Text.Json;
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>One range of a disk's map.</summary>
/// <param name="Offset">Guest offset in bytes.</param>
/// <param name="Length">Length in bytes.</param>
/// <param name="Kind">data, zero, compressed, or hole: no layer holds anything.</param>
/// <param name="HostOffset">Where the bytes are in <paramref name="File"/>, or -1.</param>
/// <param name="Depth">0: the image itself, 1: its backing image, and so on.</param>
/// <param name="File">The layer's path where it holds bytes, else null.</param>
public readonly record struct MapEntry(long Offset, long Length, string Kind, long HostOffset, int Depth, string? File);

/// <summary>Walks the map of a disk.</summary>
public static class DiskMap
{
    /// <summary>All ranges in order, neighbours of one kind merged; compressed blocks stay single, since each has its own place.</summary>
    public static IEnumerable<MapEntry> Entries(IDiskImage disk)
    {
        MapEntry pending = default;
        for (long offset = 0; offset < disk.Length;)
        {
            Extent extent = disk.QueryExtent(offset, disk.Length - offset);
            MapEntry next = new(offset, extent.Length, KindName(extent.Kind), extent.Host, extent.Depth, FileOf(disk.Info, extent));
            offset += extent.Length;
            if (Continues(pending, next))
            {
                pending = pending with { Length = pending.Length + next.Length };
                continue;
            }
            if (pending.Length > 0) yield return pending;
            pending = next;
        }
        if (pending.Length > 0) yield return pending;
    }

    /// <summary>Writes one entry with the keys of PRODUCT section 2.</summary>
    public static void Write(Utf8JsonWriter json, in MapEntry entry)
    {
        json.WriteStartObject();
        WriteFacts(json, entry);
        json.WriteEndObject();
    }

    internal static void WriteFacts(Utf8JsonWriter json, in MapEntry entry)
    {
        json.WriteNumber("offset", entry.Offset);
        json.WriteNumber("length", entry.Length);
        json.WriteString("kind", entry.Kind);
        if (entry.HostOffset >= 0) json.WriteNumber("host-offset", entry.HostOffset);
        else json.WriteNull("host-offset");
        json.WriteNumber("depth", entry.Depth);
        json.WriteString("file", entry.File);
    }

    private static bool Continues(in MapEntry last, in MapEntry next) =>
        last.Length > 0 && last.Kind == next.Kind && last.Depth == next.Depth && next.Kind != KindName(ExtentKind.Compressed)
        && (next.HostOffset < 0 || last.HostOffset + last.Length == next.HostOffset);

    private static string KindName(ExtentKind kind) => kind switch
    {
        ExtentKind.Data => "data",
        ExtentKind.Zero => "zero",
        ExtentKind.Compressed => "compressed",
        _ => "hole",
    };

    private static string? FileOf(ImageInfo info, in Extent extent)
    {
        if (extent.Host < 0) return null;
        ImageInfo? layer = info;
        for (int depth = 0; depth < extent.Depth && layer is not null; depth++) layer = layer.Backing;
        return layer?.DataPath ?? layer?.Path;
    }
}
