// What the host says about a file, besides its content.
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
    uint GroupId);
