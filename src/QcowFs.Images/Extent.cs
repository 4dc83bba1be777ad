// A contiguous range of the guest's disk of one kind: what every format answers when asked where a block lives.
namespace QcowFs.Images;

/// <summary>What a guest range is made of.</summary>
public enum ExtentKind
{
    /// <summary>Not in this image: the backing image supplies it, or zeros where there is none.</summary>
    Backing,
    /// <summary>Bytes of the data file from <see cref="Extent.Host"/> on.</summary>
    Data,
    /// <summary>Reads as zeros by the image's own word; the backing is not asked.</summary>
    Zero,
    /// <summary>One compressed block; <see cref="Extent.Host"/> is where its compressed bytes start.</summary>
    Compressed,
}

/// <summary>A contiguous guest range of one kind.</summary>
/// <param name="Kind">What the range is made of.</param>
/// <param name="Length">Bytes from the asked offset on; at least 1 unless the asked length was 0.</param>
/// <param name="Host">Host byte offset of the first byte for <see cref="ExtentKind.Data"/>, of the compressed stream for
/// <see cref="ExtentKind.Compressed"/>, else -1.</param>
/// <param name="Writable">Data may be overwritten in place: exactly one mapping refers to it (qcow2: the COPIED flag).</param>
/// <param name="Depth">0: this image, 1: its backing image, and so on. Only <see cref="IDiskImage.QueryExtent"/> fills it.</param>
public readonly record struct Extent(ExtentKind Kind, long Length, long Host = -1, bool Writable = false, int Depth = 0);
