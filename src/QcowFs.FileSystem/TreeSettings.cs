// Who may do what with the files of a mount. Frozen when the mount is made.
namespace QcowFs.FileSystem;

/// <summary>How the tree presents its files.</summary>
public sealed record TreeSettings
{
    /// <summary>Owner of every node.</summary>
    public required uint Uid { get; init; }

    /// <summary>Group of every node.</summary>
    public required uint Gid { get; init; }

    /// <summary>Permission bits of the disks; directories have the same plus x wherever r is set, fact files never a w.</summary>
    public required uint FileMode { get; init; }

    /// <summary>Whether reads of disks that cannot change also bypass the kernel's page cache (--direct-io=on). Disks that can
    /// change always do: their files are different inodes over the same bytes, and cached pages of one would go stale.</summary>
    public bool AlwaysDirect { get; init; }

    /// <summary>Which disks the kernel serves by itself.</summary>
    public Passthrough Passthrough { get; init; } = Passthrough.None;

    /// <summary>Whether partitions have files.</summary>
    public bool ShowsPartitions { get; init; } = true;

    /// <summary>Whether internal snapshots have files.</summary>
    public bool ShowsSnapshots { get; init; } = true;
}
