// What the host says about a file, besides its content.
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>Facts about a host file at one moment. Two names lead to the same file when device and inode are equal.</summary>
/// <param name="Device">Number of the device that holds the file, major in the upper half.</param>
/// <param name="Inode">Inode number.</param>
/// <param name="Length">Length in bytes; of a block device its size.</param>
/// <param name="AllocatedBytes">Space that the host has allocated for it; 0 for a block device.</param>
/// <param name="ModifiedSeconds">Last change of the content, whole seconds since 1970.</param>
/// <param name="ModifiedNanoseconds">Last change of the content, nanoseconds of that second.</param>
/// <param name="IsBlockDevice">Whether this is a block device rather than a regular file.</param>
/// <param name="Mode">Permission bits.</param>
/// <param name="UserId">Owner.</param>
/// <param name="GroupId">Group.</param>
public readonly record struct FileFacts(
    ulong Device,
    ulong Inode,
    long Length,
    long AllocatedBytes,
    long ModifiedSeconds,
    uint ModifiedNanoseconds,
    bool IsBlockDevice,
    int Mode,
    uint UserId,
    uint GroupId)
{
    private const int PermissionBits = 0xFFF; // 07777

    /// <summary>What statx(2) told of a regular file.</summary>
    internal static FileFacts From(in StatxData facts) => new(
        Device: ((ulong)facts.DeviceMajor << 32) | facts.DeviceMinor,
        Inode: facts.Inode,
        Length: (long)facts.Size,
        AllocatedBytes: (long)facts.Blocks * 512,
        ModifiedSeconds: facts.ModifiedSeconds,
        ModifiedNanoseconds: facts.ModifiedNanoseconds,
        IsBlockDevice: false,
        Mode: facts.Mode & PermissionBits,
        UserId: facts.UserId,
        GroupId: facts.GroupId);
}
