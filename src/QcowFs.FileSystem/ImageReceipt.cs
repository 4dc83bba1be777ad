// What unmounting tells about one image: what was done to it, and whether it is complete on stable storage.
namespace QcowFs.FileSystem;

/// <summary>The account of one image at the end of its mount. <see cref="Error"/> null means: closed, and durable.</summary>
/// <param name="Name">The image's file name.</param>
/// <param name="Replayed">What opening replayed or repaired, in words, or null.</param>
/// <param name="Written">Guest bytes written.</param>
/// <param name="Discarded">Guest bytes discarded.</param>
/// <param name="Shared">Guest bytes that deduplication stored by reference.</param>
/// <param name="Check">What a consistency check after the close found, or "not run".</param>
/// <param name="Error">Why the image is not complete, or null.</param>
public sealed record ImageReceipt(
    string Name, string? Replayed, long Written, long Discarded, long Shared, string Check, string? Error)
{
    /// <summary>What <see cref="Overlay"/> says of an overlay that is gone.</summary>
    public const string TemporaryOverlay = "temporary";

    /// <summary>Whether the kernel could write to the disk by itself (passthrough): then <see cref="Written"/> is what it did not.</summary>
    public bool WrittenByKernel { get; init; }

    /// <summary>The overlay's file to which changes went instead of the image, or <see cref="TemporaryOverlay"/>; null without one.</summary>
    public string? Overlay { get; init; }
}
