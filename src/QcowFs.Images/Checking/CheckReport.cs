// What a consistency check of an image found, for any format. The numbers are those of qemu-img's check; the findings are words for
// a person.
namespace QcowFs.Images;

/// <summary>How bad a finding is.</summary>
public enum CheckSeverity
{
    /// <summary>Space is lost; no data is in danger.</summary>
    Leak,
    /// <summary>Breaks the format's rules, but no data is or can come into danger (a missing COPIED flag costs one copy).</summary>
    Harmless,
    /// <summary>Data is damaged or will be by the next writer.</summary>
    Corruption,
    /// <summary>Something could not be looked at.</summary>
    Unchecked,
}

/// <summary>One thing that a check found.</summary>
/// <param name="Kind">A stable word for programs: "leak", "refcount-too-low", "copied-missing" and so on.</param>
/// <param name="Severity">How bad it is.</param>
/// <param name="Structure">The structure in the format's own words.</param>
/// <param name="Offset">Byte offset in the image file, or -1 where none applies.</param>
/// <param name="Message">What was found and expected: one sentence without the file's name.</param>
/// <param name="Repair">What a repair would do about it.</param>
public sealed record CheckFinding(string Kind, CheckSeverity Severity, string Structure, long Offset, string Message, string Repair);

/// <summary>The outcome of a check. Immutable.</summary>
public sealed record CheckReport
{
    /// <summary>Format name.</summary>
    public required string Format { get; init; }

    /// <summary>Places that could not be looked at.</summary>
    public long CheckErrors { get; init; }

    /// <summary>Rules broken, harmless ones included, as qemu-img counts them.</summary>
    public long Corruptions { get; init; }

    /// <summary>How many of <see cref="Corruptions"/> put no data in danger.</summary>
    public long HarmlessCorruptions { get; init; }

    /// <summary>Clusters whose reference count is too high.</summary>
    public long Leaks { get; init; }

    /// <summary>Corruptions that a repair removed.</summary>
    public long CorruptionsFixed { get; init; }

    /// <summary>Leaks that a repair removed.</summary>
    public long LeaksFixed { get; init; }

    /// <summary>The end of the last cluster in use, in bytes of the image file; null where the format has no such notion.</summary>
    public long? ImageEndOffset { get; init; }

    /// <summary>Clusters of the guest disk, or null.</summary>
    public long? TotalClusters { get; init; }

    /// <summary>Clusters of the guest disk that hold host space, or null.</summary>
    public long? AllocatedClusters { get; init; }

    /// <summary>Compressed clusters of the guest disk, or null.</summary>
    public long? CompressedClusters { get; init; }

    /// <summary>The findings in the order they were made; at most <see cref="FindingLimit"/>.</summary>
    public IReadOnlyList<CheckFinding> Findings { get; init; } = [];

    /// <summary>Findings beyond those listed.</summary>
    public long FindingsNotListed { get; init; }

    /// <summary>How many findings a report lists; a badly damaged image would otherwise make millions.</summary>
    public const int FindingLimit = 1000;

    /// <summary>The exit code of a check: 0 clean, 1 could not check, 2 corruption, 3 leaks only.</summary>
    public int ExitCode => CheckErrors > 0 ? 1 : Corruptions > 0 ? 2 : Leaks > 0 ? 3 : 0;
}
