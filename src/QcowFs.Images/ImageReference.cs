// A file or URL that an image names and that opening it would open: what `inspect` lists and the gate judges.
namespace QcowFs.Images;

/// <summary>What a named file is to the image.</summary>
public enum ReferenceKind
{
    /// <summary>Supplies what the image does not hold. Only ever read.</summary>
    Backing,
    /// <summary>Holds the image's guest data.</summary>
    DataFile,
}

/// <summary>One name found in an image, and what becomes of it.</summary>
/// <param name="Kind">What it is to the image.</param>
/// <param name="Image">Path of the image that names it.</param>
/// <param name="Name">The name exactly as the image states it; hostile until the gate allowed it.</param>
/// <param name="Format">The format that the image states for it, or null.</param>
/// <param name="Path">The path that would be opened, or null where the name is no file name.</param>
/// <param name="Refusal">Why it is not opened, in words, or null where it is allowed.</param>
/// <param name="Problem">Why an allowed file could not be opened or understood, in words, or null.</param>
public sealed record ImageReference(
    ReferenceKind Kind, string Image, string Name, string? Format, string? Path, string? Refusal, string? Problem)
{
    /// <summary>Whether the policy lets it be opened.</summary>
    public bool IsAllowed => Refusal is null;
}
