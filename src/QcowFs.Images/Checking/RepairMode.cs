// How much a repair may change.
namespace QcowFs.Images;

/// <summary>What a repair is asked to mend. Neither gives up anything that something refers to.</summary>
public enum RepairMode
{
    /// <summary>Space that is lost: reference counts that are too high.</summary>
    Leaks,
    /// <summary>Everything that can be mended without guessing.</summary>
    All,
}
