// The facts of stat(2) that a disk's file takes from the host file behind it.
using QcowFs.Storage;

namespace QcowFs.FileSystem;

/// <summary>Facts of the host file behind a disk.</summary>
/// <param name="Blocks">Allocated space in units of 512 bytes.</param>
/// <param name="ModifyTime">Last change of the content.</param>
public readonly record struct HostFileFacts(long Blocks, DateTimeOffset ModifyTime)
{
    /// <summary>The unit of <see cref="Blocks"/>.</summary>
    public const int BytesPerBlock = 512;

    /// <summary>The device that holds the file; 0 where it is not known.</summary>
    public ulong Device { get; init; }

    /// <summary>The file's inode number; 0 where it is not known.</summary>
    public ulong Inode { get; init; }

    /// <summary>From all facts of a file.</summary>
    public static HostFileFacts From(in FileFacts facts)
    {
        const int nanosecondsPerTick = 100;
        DateTimeOffset changed;
        try
        {
            changed = DateTimeOffset.FromUnixTimeSeconds(facts.ModifiedSeconds).AddTicks(facts.ModifiedNanoseconds / nanosecondsPerTick);
        }
        catch (ArgumentOutOfRangeException)
        {
            changed = DateTimeOffset.UnixEpoch; // a file may bear a date that no calendar has
        }
        return new HostFileFacts(facts.AllocatedBytes / BytesPerBlock, changed) { Device = facts.Device, Inode = facts.Inode };
    }
}
