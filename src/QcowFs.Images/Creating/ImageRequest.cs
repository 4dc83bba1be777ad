// A new image as the user asks for it.
namespace QcowFs.Images;

/// <summary>What a new image is to be.</summary>
public sealed record ImageRequest
{
    /// <summary>Path of the new image; nothing may be there yet.</summary>
    public required string Path { get; init; }

    /// <summary>Format name.</summary>
    public required string Format { get; init; }

    /// <summary>Size of the disk in bytes, or -1 to take the backing image's.</summary>
    public long Size { get; init; } = -1;

    /// <summary>Backing file, seen from the new image's directory, stored as it is written here; or null.</summary>
    public string? BackingName { get; init; }

    /// <summary>Its format, or null to find it by its magic number; raw is never found.</summary>
    public string? BackingFormat { get; init; }

    /// <summary>Further options under qemu-img's names, in the order given; a later one wins.</summary>
    public IReadOnlyList<KeyValuePair<string, string>> Options { get; init; } = [];

    /// <summary>For an overlay: what it is to remember of its base.</summary>
    internal BaseIdentity? Base { get; init; }
}
