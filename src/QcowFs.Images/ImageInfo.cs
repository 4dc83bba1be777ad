// Facts about an opened image, for `info`, the mount tree and the receipt.
namespace QcowFs.Images;

/// <summary>Facts about an image that opening established. Immutable.</summary>
public sealed record ImageInfo
{
    /// <summary>Path of the image file as the user gave it.</summary>
    public required string Path { get; init; }

    /// <summary>Path of the file that holds the guest's data where that is another one, or null.</summary>
    public string? DataPath { get; init; }

    /// <summary>Format name: raw, qcow2, add-cow, vhdx.</summary>
    public required string Format { get; init; }

    /// <summary>Size of the guest disk in bytes.</summary>
    public required long VirtualSize { get; init; }

    /// <summary>What the format's sizes of disks are multiples of, in bytes.</summary>
    public int SizeUnit { get; init; } = 1;

    /// <summary>Unit of mapping in bytes; 0 where the format has none.</summary>
    public long BlockSize { get; init; }

    /// <summary>Backing file name exactly as the image states it, or null.</summary>
    public string? BackingName { get; init; }

    /// <summary>Backing format as the image states it, or null.</summary>
    public string? BackingFormat { get; init; }

    /// <summary>What opening replayed or repaired, in words for a person, or null.</summary>
    public string? Recovery { get; init; }

    /// <summary>A log or journal was replayed at the open; without -w into memory.</summary>
    public bool Replayed { get; init; }

    /// <summary>The backing image's facts where one was opened, else null.</summary>
    public ImageInfo? Backing { get; init; }
}
