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
}
