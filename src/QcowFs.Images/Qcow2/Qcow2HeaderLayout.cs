// Byte offsets of the header's fields, for those who change single fields in place. All fields are big-endian.
namespace QcowFs.Images.Qcow2;

internal static class Qcow2HeaderLayout
{
    public const uint Magic = 0x514649FB;
    public const int MagicAt = 0;
    public const int VersionAt = 4;
    public const int BackingNameOffsetAt = 8;
    public const int BackingNameLengthAt = 16;
    public const int ClusterBitsAt = 20;
    public const int VirtualSizeAt = 24;
    public const int CryptMethodAt = 32;
    public const int L1SizeAt = 36;
    public const int L1OffsetAt = 40;
    public const int RefcountTableOffsetAt = 48;
    public const int RefcountTableClustersAt = 56;
    public const int SnapshotCountAt = 60;
    public const int SnapshotsOffsetAt = 64;

    /// <summary>Length of a version 2 header; what follows exists from version 3 on.</summary>
    public const int Version2Length = 72;
    public const int IncompatibleFeaturesAt = 72;
    public const int CompatibleFeaturesAt = 80;
    public const int AutoclearFeaturesAt = 88;
    public const int RefcountOrderAt = 96;
    public const int HeaderLengthAt = 100;

    /// <summary>The shortest version 3 header; what follows is there only where the header's length says so.</summary>
    public const int MinVersion3Length = 104;
    public const int CompressionTypeAt = 104;

    /// <summary>The first byte that has no meaning yet; kept as found up to the header's length.</summary>
    public const int UnknownAt = 105;

    /// <summary>The header length that this program and QEMU write.</summary>
    public const int WrittenLength = 112;

    /// <summary>Header extensions: u32 type, u32 length, data padded to 8 bytes.</summary>
    public const int ExtensionHeadLength = 8;
    public const int ExtensionAlignment = 8;
}
