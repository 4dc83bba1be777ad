// What a mount is made with.
namespace QcowFs.Fuse;

/// <summary>Settings of a mount. default_permissions is always on: the kernel checks modes, and the file system need not.</summary>
public sealed record FuseMountOptions
{
    /// <summary>Where: an existing directory or regular file. The root node must be of the same kind.</summary>
    public required string MountPoint { get; init; }

    /// <summary>What is shown as the source of the mount (fsname); any characters but NUL.</summary>
    public required string Source { get; init; }

    /// <summary>The type is shown as "fuse." and this.</summary>
    public string Subtype { get; init; } = "qcowfs";

    /// <summary>Whether users other than the mounting one may enter.</summary>
    public bool AllowOther { get; init; }

    /// <summary>ro: the kernel refuses every change.</summary>
    public bool ReadOnly { get; init; }

    /// <summary>nosuid. An ordinary user's mount always has it.</summary>
    public bool NoSuid { get; init; } = true;

    /// <summary>nodev. An ordinary user's mount always has it.</summary>
    public bool NoDev { get; init; } = true;

    /// <summary>noexec.</summary>
    public bool NoExec { get; init; }

    /// <summary>noatime.</summary>
    public bool NoAccessTime { get; init; }

    /// <summary>Largest READ in bytes, or null for as large as the session allows.</summary>
    public int? MaxRead { get; init; }
}
