// What a repair does about a finding, in words; the same words tell the repair what to do.
namespace QcowFs.Images.Qcow2;

internal static class RepairText
{
    /// <summary>Nothing can be done without guessing. What the broken structure refers to may be unknown.</summary>
    public const string None = "none";
    public const string LowerCount = "lowers the count";
    public const string RaiseCount = "raises the count";
    public const string Rebuild = "rebuilds the refcount structures";
    public const string ClearFlag = "clears the flag";
    public const string SetFlag = "sets the flag";
    public const string PlainZero = "makes it a plain zero cluster";
    public const string CompleteSnapshot = "completes the entry with the disk's present size";

    /// <summary>Why refcount structures cannot be rebuilt; nothing else is mended then, since all else relies on counts.</summary>
    public const string NoRebuildOutside =
        "none: the refcount structures cannot be rebuilt, since something refers to space past the end of the file, which they would take";
    public const string NoRebuildSize = "none: rebuilt refcount structures would be larger than what can be opened";

    /// <summary>Findings as they are to be told when nothing that relies on counts is mended.</summary>
    public static IReadOnlyList<CheckFinding> Without(IReadOnlyList<CheckFinding> findings, string reason) =>
        [.. findings.Select(finding => finding.Repair is Rebuild or RaiseCount or LowerCount or ClearFlag or SetFlag or PlainZero or CompleteSnapshot
            ? finding with { Repair = reason } : finding)];
}
