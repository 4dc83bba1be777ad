// add-cow files byte by byte, straight from the description of the two layouts: what the program writes is compared with this, and what
// it reads is made by this. Shares nothing with the program.
using System.Buffers.Binary;
using System.Text;

namespace QcowFs.Testing;

/// <summary>What an add-cow file says.</summary>
public sealed record AddCowBytes
{
    /// <summary>Where the final layout's fields are.</summary>
    public const int BackingOffsetAt = 4, BackingSizeAt = 8, ImageOffsetAt = 12, ImageSizeAt = 16, ClusterBitsAt = 20, FeaturesAt = 24,
        CompatFeaturesAt = 32, HeaderSizeAt = 40, BackingFormatAt = 44, ImageFormatAt = 60, NamesAt = 76;

    /// <summary>Where the fields of March 2012 are.</summary>
    public const int MarchVersionAt = 8, MarchBackingAt = 12, MarchImageAt = 1036, MarchReservedAt = 2060, MarchBitmapAt = 2560;

    /// <summary>The size of the disk, which is the image file's.</summary>
    public required long DiskSize { get; init; }

    /// <summary>Unit of the final layout's bitmap.</summary>
    public int ClusterBits { get; init; } = 16;

    public string? Backing { get; init; }

    public string BackingFormat { get; init; } = "raw";

    public string Image { get; init; } = "image";

    public string ImageFormat { get; init; } = "raw";

    public ulong CompatFeatures { get; init; }

    /// <summary>Whether a cluster (in March 2012 a sector) is in the image file.</summary>
    public Func<long, bool> IsAllocated { get; init; } = _ => false;

    public int HeaderSize => Math.Max(1 << ClusterBits, 4096);

    public long Clusters => (DiskSize + (1L << ClusterBits) - 1) >> ClusterBits;

    /// <summary>The final layout of 2013.</summary>
    public byte[] Final()
    {
        long bitmap = (Clusters + 7) / 8;
        byte[] file = new byte[HeaderSize + ((bitmap + (1L << ClusterBits) - 1) >> ClusterBits << ClusterBits)];
        byte[] backing = Encoding.UTF8.GetBytes(Backing ?? "");
        byte[] image = Encoding.UTF8.GetBytes(Image);
        "ACOW"u8.CopyTo(file);
        UInt32(BackingOffsetAt, Backing is null ? 0 : NamesAt);
        UInt32(BackingSizeAt, backing.Length);
        UInt32(ImageOffsetAt, NamesAt + backing.Length);
        UInt32(ImageSizeAt, image.Length);
        UInt32(ClusterBitsAt, ClusterBits);
        BinaryPrimitives.WriteUInt64LittleEndian(file.AsSpan(CompatFeaturesAt), CompatFeatures);
        UInt32(HeaderSizeAt, HeaderSize);
        if (Backing is not null)
            Encoding.ASCII.GetBytes(BackingFormat).CopyTo(file, BackingFormatAt);
        Encoding.ASCII.GetBytes(ImageFormat).CopyTo(file, ImageFormatAt);
        backing.CopyTo(file, NamesAt);
        image.CopyTo(file, NamesAt + backing.Length);
        SetBits(file, HeaderSize, Clusters);
        return file;

        void UInt32(int at, int value) => BinaryPrimitives.WriteInt32LittleEndian(file.AsSpan(at), value);
    }

    /// <summary>The layout of March 2012, whose clusters are sectors of 512 bytes.</summary>
    public byte[] March()
    {
        long sectors = (DiskSize + 511) / 512;
        byte[] file = new byte[MarchBitmapAt + ((sectors + 7) / 8)];
        "ADD_COW"u8.CopyTo(file);
        file[7] = 0xFF;
        BinaryPrimitives.WriteUInt32BigEndian(file.AsSpan(MarchVersionAt), 1);
        Encoding.UTF8.GetBytes(Backing ?? "").CopyTo(file, MarchBackingAt);
        Encoding.UTF8.GetBytes(Image).CopyTo(file, MarchImageAt);
        SetBits(file, MarchBitmapAt, sectors);
        return file;
    }

    private void SetBits(byte[] file, int bitmapAt, long clusters)
    {
        for (long cluster = 0; cluster < clusters; cluster++)
        {
            if (IsAllocated(cluster))
                file[bitmapAt + (cluster / 8)] |= (byte)(1 << (int)(cluster % 8));
        }
    }
}
