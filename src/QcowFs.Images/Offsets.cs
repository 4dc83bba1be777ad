// Distinct types for the two address spaces, so that mixing them does not compile.
namespace QcowFs.Images;

/// <summary>A byte offset in the disk as presented to the guest.</summary>
internal readonly record struct GuestOffset(long Value)
{
    public static GuestOffset operator +(GuestOffset offset, long length) => new(offset.Value + length);

    public static long operator -(GuestOffset left, GuestOffset right) => left.Value - right.Value;
}

/// <summary>A byte offset in the file that holds the guest's data.</summary>
internal readonly record struct HostOffset(long Value)
{
    public static HostOffset operator +(HostOffset offset, long length) => new(offset.Value + length);

    public static long operator -(HostOffset left, HostOffset right) => left.Value - right.Value;
}
