// How an image is to be opened. Frozen at the start; no option changes on an open image.
namespace QcowFs.Images;

/// <summary>Which files named inside an image may be opened.</summary>
public enum ReferencePolicy
{
    /// <summary>Files in the image's own directory and below.</summary>
    Directory,
    /// <summary>No file.</summary>
    None,
    /// <summary>Any file.</summary>
    All,
}

/// <summary>How an image is to be opened.</summary>
public sealed record OpenOptions
{
    /// <summary>The format that the user states, or null to probe. Raw is never guessed.</summary>
    public string? Format { get; init; }

    /// <summary>Whether the image may be changed. Otherwise no byte of any file changes, not even to recover.</summary>
    public bool Writable { get; init; }

    /// <summary>The internal snapshot, by name or id, whose disk is opened instead of the active one; then the image cannot be
    /// writable. Null: the active disk.</summary>
    public string? Snapshot { get; init; }

    /// <summary><see cref="Snapshot"/> is an id and never a name.</summary>
    public bool SnapshotIsId { get; init; }

    /// <summary>Which files named inside the image may be opened.</summary>
    public ReferencePolicy References { get; init; }

    /// <summary>Metadata cache per image in bytes.</summary>
    public long CacheSize { get; init; } = 32L << 20;

    /// <summary>Host files are opened with O_DIRECT.</summary>
    public bool DirectIo { get; init; }

    /// <summary>Whether the host files are locked as QEMU does. `info` and `inspect` do not lock.</summary>
    public bool Lock { get; init; } = true;

    /// <summary>Whole blocks that are written where the image has none yet are stored compressed, in the image's own way, unless that
    /// makes them no smaller. Refused for images that cannot hold compressed blocks.</summary>
    public bool Compress { get; init; }

    /// <summary>The journal that a writable qcow2 image is to be written with, or null: ordered commits. Refused where the image cannot
    /// have one.</summary>
    public JournalOptions? Journal { get; init; }

    /// <summary>The clock; replaced in tests.</summary>
    public TimeProvider Time { get; init; } = TimeProvider.System;

    /// <summary>How long metadata may stay dirty before a background thread commits it; zero: no background commit.</summary>
    public TimeSpan CommitInterval { get; init; } = TimeSpan.FromSeconds(5);

    /// <summary>Whether what a crash left is put right by a background thread; tests run it themselves.</summary>
    public bool BackgroundRecovery { get; init; } = true;

    /// <summary>How writes are deduplicated, or null: not. Needs <see cref="Writable"/>, and an image that can share blocks.</summary>
    public DedupSettings? Dedup { get; init; }

    /// <summary>Whether this open puts an end to sharing: flags are put right, and the mark of an index is not left.</summary>
    internal bool EndsSharing { get; init; }

    /// <summary>The open index of the image; set on the way to the format.</summary>
    internal Dedup.AttachedIndex? AttachedIndex { get; init; }

    /// <summary>Whether there is an index file beside the image; set on the way to the format.</summary>
    internal bool HasDedupIndex { get; init; }

    /// <summary>Bytes per second at which a background thread copies what the image does not hold itself from its backing image, for
    /// formats that can do without one afterwards; null: it does not. Only for a writable image.</summary>
    public long? StreamRate { get; init; }

    /// <summary>Told one line for each thing a person may want to know (recovery, leaks collected, failure); may be null.</summary>
    public Action<string>? Log { get; init; }
}
