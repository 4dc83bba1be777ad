// Sizes that follow from the header and the disk's size, and the rules that need both.
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

/// <summary>Where the bits of a disk are. Offsets are bytes of the add-cow file.</summary>
/// <param name="Header">The header.</param>
/// <param name="DiskSize">The disk's size in bytes: that of the image file.</param>
internal readonly record struct AddCowGeometry(AddCowHeader Header, long DiskSize)
{
    /// <summary>Ours: beyond every host file system in use but one, and far enough below the largest number that sums of offsets fit.</summary>
    public const long MaxDiskSize = 1L << 62;

    private const string Bitmap = "bitmap";

    /// <summary>Clusters of the disk, the last one possibly in part.</summary>
    public long Clusters => (DiskSize >> Header.ClusterBits) + ((DiskSize & (Header.ClusterSize - 1L)) == 0 ? 0 : 1);

    /// <summary>Bytes that hold the clusters' bits.</summary>
    public long BitmapBytes => (Clusters + 7) / 8;

    /// <summary>Where those bytes end.</summary>
    public long BitmapEnd => Header.BitmapOffset + BitmapBytes;

    /// <summary>The length that the file must have: the final layout rounds the bitmap up to a cluster.</summary>
    public long FileLength => Header.Layout == AddCowLayout.March2012 ? BitmapEnd
        : Header.BitmapOffset + ((BitmapBytes + Header.ClusterSize - 1) >> Header.ClusterBits << Header.ClusterBits);

    /// <summary>The byte of a cluster's bit.</summary>
    public long ByteOf(long cluster) => Header.BitmapOffset + (cluster >> 3);

    /// <summary>The clusters that the bits in so many bytes of the file stand for, past the disk's end or not.</summary>
    public long BitsIn(long fileLength) => Math.Max(0, fileLength - Header.BitmapOffset) * 8;

    /// <summary>Throws <see cref="ImageFormatException"/> where the add-cow file does not fit its image file.</summary>
    public void Require(IStorage file, string imageName)
    {
        if (DiskSize > MaxDiskSize)
        {
            throw new ImageFormatException(file.Name, Bitmap, -1, $"the image file has {DiskSize} bytes, more than {MaxDiskSize}",
                "check that it is the right file");
        }

        if (Header.IsAllAllocated)
            return;
        if (Header.Layout == AddCowLayout.March2012 && !Header.IsResizing)
        {
            if (file.Length != FileLength)
                throw AddCowHeaderReader.Older(file.Name, $"it has {file.Length} bytes, that of March 2012 would have {FileLength} for this image file");
            return;
        }

        if (file.Length < FileLength)
        {
            throw new ImageFormatException(file.Name, Bitmap, file.Length,
                $"the file ends here; with an image file of {DiskSize} bytes it must have {FileLength}",
                $"the file is cut short, or {Printable.Quote(imageName)} was enlarged by other software; restore the one that was changed");
        }

        // While the size changes, what lies past the disk's end is left over or not yet in use.
        if (Header.IsResizing)
            return;
        long leftOver = file.Length > FileLength ? FileLength : BitmapFile.FindSetByte(file, BitmapEnd, FileLength);
        if (leftOver >= 0)
        {
            throw new ImageFormatException(file.Name, Bitmap, leftOver,
                $"the bitmap goes on past the end of the image file at byte {DiskSize}: the image file is smaller than the bitmap says",
                $"restore {Printable.Quote(imageName)}; if it was made smaller on purpose, run qcowfs check --repair {file.Name}");
        }
    }
}
