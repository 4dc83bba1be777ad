// What can be told about an image from its own file alone, for `info`: nothing that the image names is opened for it.
namespace QcowFs.Images;

/// <summary>Facts about an image file. Immutable.</summary>
public sealed record ImageFileFacts
{
    /// <summary>Path of the image file as the user gave it.</summary>
    public required string Path { get; init; }

    /// <summary>Format name: raw, qcow2, add-cow, vhdx.</summary>
    public required string Format { get; init; }

    /// <summary>Size of the guest disk in bytes, or null where only a file that the image names could tell.</summary>
    public required long? VirtualSize { get; init; }

    /// <summary>Host space that the file takes in bytes, or null where the host cannot tell.</summary>
    public long? ActualSize { get; init; }

    /// <summary>Unit of mapping in bytes, or null where the format has none.</summary>
    public long? ClusterSize { get; init; }

    /// <summary>Backing file name exactly as the image states it, or null.</summary>
    public string? BackingName { get; init; }

    /// <summary>Where that name leads, seen from the image's directory; null where it is no file name.</summary>
    public string? FullBackingName { get; init; }

    /// <summary>Backing format as the image states it, or null.</summary>
    public string? BackingFormat { get; init; }

    /// <summary>External data file name as the image states it, or null.</summary>
    public string? DataFileName { get; init; }

    /// <summary>Internal snapshots in table order.</summary>
    public IReadOnlyList<SnapshotFacts> Snapshots { get; init; } = [];

    /// <summary>What only this format has, under the keys of `qemu-img info --output=json`.</summary>
    public IReadOnlyList<FormatFact> FormatSpecific { get; init; } = [];

    /// <summary>The image says of itself that it was not closed properly and needs repair before writing.</summary>
    public bool IsDirty { get; init; }

    /// <summary>State of the format's log or journal in words, or null where there is none.</summary>
    public string? Log { get; init; }

    /// <summary>Who has the file open now, or null.</summary>
    public LockFacts? Lock { get; init; }
}

/// <summary>Facts about one internal snapshot.</summary>
/// <param name="Id">Its identifier as the image states it.</param>
/// <param name="Name">Its name as the image states it; may be empty or hold any character.</param>
/// <param name="VmStateSize">Bytes of saved machine state.</param>
/// <param name="DateSeconds">When it was made, in seconds since 1970 UTC.</param>
/// <param name="DateNanoseconds">Nanoseconds on top of that.</param>
/// <param name="VmClockNanoseconds">Run time of the guest at that moment.</param>
/// <param name="Icount">Instruction count of the guest, or null.</param>
/// <param name="VirtualSize">Size of the disk at that moment in bytes, or null where the image does not state it.</param>
public sealed record SnapshotFacts(string Id, string Name, ulong VmStateSize, long DateSeconds, long DateNanoseconds,
    ulong VmClockNanoseconds, ulong? Icount, long? VirtualSize)
{
    /// <summary>The bytes of <see cref="Name"/> as the image holds them, where it can hold bytes that are not UTF-8.</summary>
    public ReadOnlyMemory<byte> RawName { get; init; } = System.Text.Encoding.UTF8.GetBytes(Name);
}

/// <summary>One fact that only a certain format has.</summary>
/// <param name="Key">Its key in JSON.</param>
/// <param name="Value">A string, a bool, a long, a double, a list of strings, a list of facts (an object), or a list of such lists.</param>
public readonly record struct FormatFact(string Key, object Value);

/// <summary>Who uses an image file, by QEMU's locks.</summary>
/// <param name="Holder">The process in words.</param>
/// <param name="Writes">Whether it writes, or only keeps others from writing.</param>
public sealed record LockFacts(string Holder, bool Writes);
