// Every bound that VHDX code relies on, each with its source. "Format" is the published specification, "QEMU" block/vhdx.c, whose
// limits decide what other software opens; "ours" states its reason. They hold at open as at create.
namespace QcowFs.Images.Vhdx;

internal static class VhdxLimits
{
    /// <summary>Format: regions, the log and blocks begin and end at multiples of this, none before the first one.</summary>
    public const int Alignment = 1 << 20;

    /// <summary>Format: unit of the log, of its targets, and of the headers.</summary>
    public const int SectorSize = 4096;

    /// <summary>Format: a block has at least 1 MiB.</summary>
    public const int MinBlockSize = 1 << 20;

    /// <summary>Format: a block has at most 256 MiB.</summary>
    public const int MaxBlockSize = 256 << 20;

    /// <summary>Format: a disk has at most 64 TiB.</summary>
    public const long MaxVirtualSize = 64L << 40;

    /// <summary>Format: a chunk, what one sector bitmap block covers, has so many logical sectors.</summary>
    public const long SectorsPerChunk = 1L << 23;

    /// <summary>Format: a sector bitmap block.</summary>
    public const int BitmapBlockSize = 1 << 20;

    /// <summary>Format: entries of a region table.</summary>
    public const int MaxRegions = 2047;

    /// <summary>Format: entries of a metadata table.</summary>
    public const int MaxMetadataItems = 2047;

    /// <summary>Format: of them the user's.</summary>
    public const int MaxUserItems = 1024;

    /// <summary>Format: the largest metadata item, and so the largest parent locator.</summary>
    public const int MaxMetadataItem = 1 << 20;

    /// <summary>Ours: a file of 64 TiB of blocks with everything else that belongs to it is shorter by far. Bounds what is kept in memory
    /// about the file's space.</summary>
    public const long MaxFileSize = 1L << 47;

    /// <summary>Ours: bytes of log entries that are checksummed to find the active ones, beside four times the log itself. A sound log is
    /// checksummed about once; one made for it could be made to be checksummed from each of its sectors on.</summary>
    public const long MaxChecksummedBytes = 1L << 30;
}
