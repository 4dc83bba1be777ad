// The header of an add-cow file: two names, and where the allocation bitmap lies. Two layouts of the format are read and written; both
// were posted to qemu-devel, neither was ever released.
//
//   Final (April to August 2013), little-endian:       March (March 2012), big-endian:
//     0  magic "ACOW"            24  features             0  magic "ADD_COW" and a byte of 0xff
//     4  backing name offset     32  compat features      8  version 1
//     8  backing name size       40  header size         12  backing name, 1024 bytes, zero padded
//    12  image name offset       44  backing format    1036  image name, 1024 bytes, zero padded
//    16  image name size         60  image format      2060  reserved, zero
//    20  cluster_bits            76  names             2560  bitmap, a bit for each sector
//    header size: bitmap, a bit for each cluster
using System.Buffers.Binary;
using System.Text;

namespace QcowFs.Images.AddCow;

/// <summary>Which of the layouts an add-cow file has.</summary>
internal enum AddCowLayout
{
    /// <summary>Of 2013: clusters, format names, feature bits.</summary>
    Final,

    /// <summary>Of March 2012: sectors, a raw image, no feature bits.</summary>
    March2012,
}

/// <summary>The compatible feature bits; unknown ones are kept.</summary>
[Flags]
internal enum AddCowFeatures : ulong
{
    None = 0,

    /// <summary>Every cluster is in the image file: neither bitmap nor backing file is looked at.</summary>
    AllAllocated = 1,

    /// <summary>Ours, in the range that others ignore: the disk's size is being changed. While it is set, bits past the end of the
    /// image file are no sign of a lost tail.</summary>
    Resizing = 1UL << 63,
}

/// <summary>A header that keeps all rules. Immutable.</summary>
internal sealed record AddCowHeader
{
    public const int SectorSize = 512;
    public const int MinClusterBits = 12;
    public const int MaxClusterBits = 21;
    public const int DefaultClusterBits = 16;

    /// <summary>Bytes of the final layout's fields; the names follow.</summary>
    public const int FieldsLength = 76;
    public const int MinHeaderSize = 4096;
    public const int BackingOffsetAt = 4;
    public const int BackingSizeAt = 8;
    public const int ImageOffsetAt = 12;
    public const int ImageSizeAt = 16;
    public const int ClusterBitsAt = 20;
    public const int FeaturesAt = 24;
    public const int CompatFeaturesAt = 32;
    public const int HeaderSizeAt = 40;
    public const int BackingFormatAt = 44;
    public const int ImageFormatAt = 60;
    public const int FormatNameLength = 16;

    public const int MarchVersionAt = 8;
    public const int MarchBackingAt = 12;
    public const int MarchImageAt = 1036;
    public const int MarchNameLength = 1024;
    public const int MarchReservedAt = 2060;

    /// <summary>Bytes of <see cref="MarchResizing"/>.</summary>
    public const int MarchMarkLength = 8;
    public const int MarchBitmapAt = 2560;
    private const int MarchSectorBits = 9;

    public static ReadOnlySpan<byte> Magic => "ACOW"u8;

    public static ReadOnlySpan<byte> MarchMagic => [(byte)'A', (byte)'D', (byte)'D', (byte)'_', (byte)'C', (byte)'O', (byte)'W', 0xFF];

    /// <summary>Ours, in the reserved bytes of March: the disk's size is being changed. Every other reader takes the file for one of another
    /// layout meanwhile, and leaves it alone.</summary>
    public static ReadOnlySpan<byte> MarchResizing => "QFRESIZE"u8;

    public required AddCowLayout Layout { get; init; }

    /// <summary>Unit of the bitmap as a power of two: a cluster, in March 2012 a sector.</summary>
    public int ClusterBits { get; init; } = MarchSectorBits;

    public AddCowFeatures CompatFeatures { get; init; }

    /// <summary>The backing file's name as it is stated, or null.</summary>
    public string? BackingName { get; init; }

    /// <summary>The backing file's format as it is stated, or null.</summary>
    public string? BackingFormat { get; init; }

    /// <summary>The image file's name as it is stated.</summary>
    public required string ImageName { get; init; }

    /// <summary>The image file's format.</summary>
    public string ImageFormat { get; init; } = "raw";

    public int ClusterSize => 1 << ClusterBits;

    public bool IsAllAllocated => CompatFeatures.HasFlag(AddCowFeatures.AllAllocated);

    public bool IsResizing => CompatFeatures.HasFlag(AddCowFeatures.Resizing);

    /// <summary>Where the bitmap begins.</summary>
    public int BitmapOffset => Layout == AddCowLayout.March2012 ? MarchBitmapAt : HeaderSizeFor(ClusterBits);

    public static int HeaderSizeFor(int clusterBits) => Math.Max(1 << clusterBits, MinHeaderSize);

    /// <summary>Whether bytes begin as an add-cow file of any layout does, those between the two included.</summary>
    public static bool HasMagic(ReadOnlySpan<byte> start) => start.StartsWith(Magic) || start.StartsWith(MarchMagic);

    /// <summary>Whether the names fit into a header of the final layout.</summary>
    public bool NamesFit => FieldsLength + Bytes(BackingName).Length + Bytes(ImageName).Length <= HeaderSizeFor(ClusterBits)
        && Bytes(ImageName).Length < HeaderSizeFor(ClusterBits) - FieldsLength;

    /// <summary>A header of the final layout as bytes, all of it: the image's name directly follows that of the backing file.</summary>
    public byte[] ToBytes()
    {
        Invariant.Require(Layout == AddCowLayout.Final && NamesFit, "only headers of the final layout are made, and their names fit");
        byte[] header = new byte[HeaderSizeFor(ClusterBits)];
        byte[] backing = Bytes(BackingName);
        byte[] image = Bytes(ImageName);
        int imageOffset = FieldsLength + backing.Length;
        Magic.CopyTo(header);
        WriteUInt32(header, BackingOffsetAt, backing.Length == 0 ? 0 : FieldsLength);
        WriteUInt32(header, BackingSizeAt, backing.Length);
        WriteUInt32(header, ImageOffsetAt, imageOffset);
        WriteUInt32(header, ImageSizeAt, image.Length);
        WriteUInt32(header, ClusterBitsAt, ClusterBits);
        BinaryPrimitives.WriteUInt64LittleEndian(header.AsSpan(CompatFeaturesAt), (ulong)CompatFeatures);
        WriteUInt32(header, HeaderSizeAt, header.Length);
        Bytes(BackingFormat).CopyTo(header, BackingFormatAt);
        Bytes(ImageFormat).CopyTo(header, ImageFormatAt);
        backing.CopyTo(header, FieldsLength);
        image.CopyTo(header, imageOffset);
        return header;
    }

    private static byte[] Bytes(string? text) => Encoding.UTF8.GetBytes(text ?? "");

    private static void WriteUInt32(byte[] header, int at, int value) => BinaryPrimitives.WriteInt32LittleEndian(header.AsSpan(at), value);
}
