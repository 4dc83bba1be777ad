// A type of its own for host offsets, so that a guest offset does not compile in their place.
namespace QcowFs.Images;

/// <summary>A byte offset in the file that holds the guest's data.</summary>
internal readonly record struct HostOffset(long Value)
{
    public static HostOffset operator +(HostOffset offset, long length) => new(offset.Value + length);

    public static long operator -(HostOffset left, HostOffset right) => left.Value - right.Value;
}
