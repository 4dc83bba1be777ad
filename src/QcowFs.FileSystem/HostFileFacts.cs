// The two facts of stat(2) that a disk's file takes from the host file behind it.
namespace QcowFs.FileSystem;

/// <summary>Facts of the host file behind a disk.</summary>
/// <param name="Blocks">Allocated space in units of 512 bytes.</param>
/// <param name="ModifyTime">Last change of the content.</param>
public readonly record struct HostFileFacts(long Blocks, DateTimeOffset ModifyTime)
{
    /// <summary>The unit of <see cref="Blocks"/>.</summary>
    public const int BytesPerBlock = 512;
}
