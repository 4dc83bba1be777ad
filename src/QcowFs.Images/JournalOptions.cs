// How a journal is to be made where an image is opened with one.
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>A journal that an image is to be written with.</summary>
public sealed record JournalOptions
{
    /// <summary>The smallest journal in bytes.</summary>
    public const long MinBytes = 1L << 20;

    /// <summary>The largest journal in bytes.</summary>
    public const long MaxBytes = JournalLayout.MaxRingBytes;

    /// <summary>The size where none is stated.</summary>
    public const long DefaultBytes = JournalLayout.DefaultRingBytes;

    /// <summary>Bytes for records.</summary>
    public long RingBytes { get; init; } = DefaultBytes;

    /// <summary>Makes the id of a new journal, random, so that nobody can guess it.</summary>
    public required Func<UInt128> NewId { get; init; }

    /// <summary>Whether host space is written with zeros ahead of its use while many syncs come.</summary>
    public bool WritesAhead { get; init; }

    /// <summary>Images that cannot have a journal are opened without one, which the log says; else they are refused.</summary>
    public bool IsOptional { get; init; }

    /// <summary>Where the image's file is; set when it is opened.</summary>
    internal StorageIdentity Host { get; init; }
}
