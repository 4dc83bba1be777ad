// Bytes to a Qcow2Header. Pure and total: any bytes give a header or an ImageFormatException. Every count and offset is bounded here,
// so that later code may multiply and allocate by them. What needs other parts of the file, or is a question of policy (may an
// encrypted image be opened?), is not asked here, so that `info` works on images that a mount refuses.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

internal readonly ref struct Qcow2HeaderReader
{
    internal const string DamagedAdvice = "the image is damaged; restore it from a copy";
    private const string NewerAdvice = "open it with the software that made it";
    private const string Structure = "header";
    private const string ExtensionStructure = "header extension";

    private readonly string _file;
    private readonly ReadOnlySpan<byte> _bytes;

    private Qcow2HeaderReader(ReadOnlySpan<byte> bytes, string file)
    {
        _bytes = bytes;
        _file = file;
    }

    /// <summary>Whether the bytes begin as a qcow2 image of any version does.</summary>
    public static bool HasMagic(ReadOnlySpan<byte> start) =>
        start.Length >= 4 && BinaryPrimitives.ReadUInt32BigEndian(start) == Qcow2HeaderLayout.Magic;

    /// <summary>Reads and checks the header cluster of a file. Faults: <see cref="ImageFormatException"/>,
    /// <see cref="StorageException"/>.</summary>
    public static Qcow2Header Read(IStorage file)
    {
        byte[] start = new byte[Math.Min(1 << Qcow2Limits.MinClusterBits, file.Length)];
        file.Read(0, start);
        int clusterSize = 1 << new Qcow2HeaderReader(start, file.Name).ReadClusterBits();
        byte[] cluster = new byte[Math.Min(clusterSize, file.Length)];
        file.Read(0, cluster);
        return Parse(cluster, file.Name);
    }

    /// <summary>Checks a header cluster.</summary>
    /// <param name="cluster">The file's first bytes, a whole cluster unless the file is shorter. More is ignored.</param>
    /// <param name="file">What messages call the file.</param>
    public static Qcow2Header Parse(ReadOnlySpan<byte> cluster, string file)
    {
        int clusterBits = new Qcow2HeaderReader(cluster, file).ReadClusterBits();
        int length = Math.Min(cluster.Length, 1 << clusterBits);
        return new Qcow2HeaderReader(cluster[..length], file).ReadHeader(clusterBits);
    }

    private int ReadClusterBits()
    {
        if (_bytes.IsEmpty)
            throw Bad(Structure, -1, "the file is empty", "a qcow2 image has at least a header; check the path");

        if (_bytes.Length < 4 || !HasMagic(_bytes))
        {
            string found = Convert.ToHexStringLower(_bytes[..Math.Min(4, _bytes.Length)]);
            throw Bad(Structure, 0, $"the magic number is {found}, expected 514649fb",
                "the file is not a qcow2 image; state its real format with -f");
        }

        Need(Structure, 0, Qcow2HeaderLayout.Version2Length);
        uint version = UInt32(Qcow2HeaderLayout.VersionAt);
        if (version is not (2 or 3))
            throw Bad(Structure, Qcow2HeaderLayout.VersionAt, $"version is {version}, expected 2 or 3", NewerAdvice);

        uint clusterBits = UInt32(Qcow2HeaderLayout.ClusterBitsAt);
        if (clusterBits is < Qcow2Limits.MinClusterBits or > Qcow2Limits.MaxClusterBits)
        {
            throw Bad(Structure, Qcow2HeaderLayout.ClusterBitsAt, $"cluster_bits is {clusterBits}, expected "
                + $"{Qcow2Limits.MinClusterBits} to {Qcow2Limits.MaxClusterBits}", DamagedAdvice);
        }

        return (int)clusterBits;
    }

    private Qcow2Header ReadHeader(int clusterBits)
    {
        int version = (int)UInt32(Qcow2HeaderLayout.VersionAt);
        int headerLength = ReadHeaderLength(version, 1 << clusterBits);
        int backingOffset = ReadBackingNameOffset(headerLength, 1 << clusterBits);
        List<HeaderExtension> extensions = ReadExtensions(headerLength, backingOffset != 0 ? backingOffset : 1 << clusterBits);
        HeaderExtension? names = extensions.Find(e => e.Type == HeaderExtensionType.FeatureNames);
        IReadOnlyList<FeatureName> featureNames = names is null ? [] : FeatureNameTable.Parse(names.Data);
        IncompatibleFeatures incompatible = ReadIncompatibleFeatures(version, featureNames);
        Qcow2Header header = new()
        {
            Version = version,
            ClusterBits = clusterBits,
            VirtualSize = 0,
            L1Size = 0,
            L1Offset = 0,
            RefcountTableOffset = 0,
            RefcountTableClusters = 0,
            HeaderLength = headerLength,
            IncompatibleFeatures = incompatible,
            CompatibleFeatures = version < 3 ? CompatibleFeatures.None : (CompatibleFeatures)UInt64(Qcow2HeaderLayout.CompatibleFeaturesAt),
            AutoclearFeatures = version < 3 ? AutoclearFeatures.None : (AutoclearFeatures)UInt64(Qcow2HeaderLayout.AutoclearFeaturesAt),
            RefcountOrder = ReadRefcountOrder(version),
            CompressionType = ReadCompressionType(headerLength, incompatible),
            UnknownFields = headerLength <= Qcow2HeaderLayout.UnknownAt ? [] : _bytes[Qcow2HeaderLayout.UnknownAt..headerLength].ToArray(),
            CryptMethod = ReadCryptMethod(),
            Extensions = extensions,
            FeatureNames = featureNames,
            BackingNameOffset = backingOffset,
        };
        return WithNames(WithTables(header), backingOffset);
    }

    private int ReadHeaderLength(int version, int clusterSize)
    {
        if (version < 3)
            return Qcow2HeaderLayout.Version2Length;

        Need(Structure, 0, Qcow2HeaderLayout.MinVersion3Length);
        uint length = UInt32(Qcow2HeaderLayout.HeaderLengthAt);
        if (length < Qcow2HeaderLayout.MinVersion3Length || length > (uint)clusterSize || length % 8 != 0)
        {
            throw Bad(Structure, Qcow2HeaderLayout.HeaderLengthAt, $"header_length is {length}, expected a multiple of 8 from "
                + $"{Qcow2HeaderLayout.MinVersion3Length} to the cluster size {clusterSize}", DamagedAdvice);
        }

        Need(Structure, 0, (int)length);
        return (int)length;
    }

    private IncompatibleFeatures ReadIncompatibleFeatures(int version, IReadOnlyList<FeatureName> names)
    {
        if (version < 3)
            return IncompatibleFeatures.None;

        IncompatibleFeatures features = (IncompatibleFeatures)UInt64(Qcow2HeaderLayout.IncompatibleFeaturesAt);
        IncompatibleFeatures unknown = features & ~IncompatibleFeatures.Known;
        return unknown == IncompatibleFeatures.None ? features : throw Bad(Structure, Qcow2HeaderLayout.IncompatibleFeaturesAt,
            "the image needs features that are not known here: "
            + FeatureNameTable.Describe(names, FeatureKind.Incompatible, (ulong)unknown), NewerAdvice);
    }

    private int ReadRefcountOrder(int version)
    {
        if (version < 3)
            return Qcow2Limits.Version2RefcountOrder;

        uint order = UInt32(Qcow2HeaderLayout.RefcountOrderAt);
        return order <= Qcow2Limits.MaxRefcountOrder ? (int)order : throw Bad(Structure, Qcow2HeaderLayout.RefcountOrderAt,
            $"refcount_order is {order}, expected 0 to {Qcow2Limits.MaxRefcountOrder}", DamagedAdvice);
    }

    private CompressionType ReadCompressionType(int headerLength, IncompatibleFeatures incompatible)
    {
        byte type = headerLength > Qcow2HeaderLayout.CompressionTypeAt ? _bytes[Qcow2HeaderLayout.CompressionTypeAt] : (byte)0;
        if (type > (byte)CompressionType.Zstd)
        {
            throw Bad(Structure, Qcow2HeaderLayout.CompressionTypeAt,
                $"compression_type is {type}, expected 0 (deflate) or 1 (zstd)", NewerAdvice);
        }

        bool stated = incompatible.HasFlag(IncompatibleFeatures.CompressionType);
        return stated == (type != 0) ? (CompressionType)type : throw Bad(Structure, Qcow2HeaderLayout.CompressionTypeAt,
            $"compression_type is {type} but its feature bit is {(stated ? "set" : "clear")}, expected the bit exactly with a type "
            + "other than 0", DamagedAdvice);
    }

    private CryptMethod ReadCryptMethod()
    {
        uint method = UInt32(Qcow2HeaderLayout.CryptMethodAt);
        return method <= (uint)CryptMethod.Luks ? (CryptMethod)method : throw Bad(Structure, Qcow2HeaderLayout.CryptMethodAt,
            $"crypt_method is {method}, expected 0 (none), 1 (AES) or 2 (LUKS)", NewerAdvice);
    }

    private Qcow2Header WithTables(Qcow2Header header)
    {
        if (header.HasExtendedL2 && header.ClusterBits < Qcow2Limits.MinExtendedClusterBits)
        {
            throw Bad(Structure, Qcow2HeaderLayout.ClusterBitsAt, $"cluster_bits is {header.ClusterBits}, expected at least "
                + $"{Qcow2Limits.MinExtendedClusterBits} with extended L2 entries", DamagedAdvice);
        }

        uint refcountClusters = UInt32(Qcow2HeaderLayout.RefcountTableClustersAt);
        uint maxRefcountClusters = (uint)(Qcow2Limits.MaxRefcountTableBytes >> header.ClusterBits);
        if (refcountClusters > maxRefcountClusters)
        {
            throw Bad(Structure, Qcow2HeaderLayout.RefcountTableClustersAt, $"refcount_table_clusters is {refcountClusters}, expected at "
                + $"most {maxRefcountClusters} (8 MiB)", DamagedAdvice);
        }

        uint snapshots = UInt32(Qcow2HeaderLayout.SnapshotCountAt);
        if (snapshots > Qcow2Limits.MaxSnapshots)
        {
            throw Bad(Structure, Qcow2HeaderLayout.SnapshotCountAt,
                $"nb_snapshots is {snapshots}, expected at most {Qcow2Limits.MaxSnapshots}", DamagedAdvice);
        }

        int l1Size = ReadL1Size(header);
        return header with
        {
            VirtualSize = (long)UInt64(Qcow2HeaderLayout.VirtualSizeAt),
            L1Size = l1Size,
            L1Offset = TableOffset(header, Qcow2HeaderLayout.L1OffsetAt, "l1_table_offset", l1Size > 0),
            RefcountTableClusters = (int)refcountClusters,
            RefcountTableOffset =
                TableOffset(header, Qcow2HeaderLayout.RefcountTableOffsetAt, "refcount_table_offset", refcountClusters > 0),
            SnapshotCount = (int)snapshots,
            SnapshotsOffset = TableOffset(header, Qcow2HeaderLayout.SnapshotsOffsetAt, "snapshots_offset", snapshots > 0),
        };
    }

    private int ReadL1Size(Qcow2Header header)
    {
        uint l1Size = UInt32(Qcow2HeaderLayout.L1SizeAt);
        const uint maxL1Size = Qcow2Limits.MaxL1Bytes / L1Entry.Size;
        if (l1Size > maxL1Size)
            throw Bad(Structure, Qcow2HeaderLayout.L1SizeAt, $"l1_size is {l1Size}, expected at most {maxL1Size} (32 MiB)", DamagedAdvice);

        // At most 2^22 entries of at most 2^39 bytes each: what passes fits into 62 bits.
        ulong size = UInt64(Qcow2HeaderLayout.VirtualSizeAt);
        ulong covered = (ulong)l1Size * (ulong)header.L2Coverage;
        return size <= covered ? (int)l1Size : throw Bad(Structure, Qcow2HeaderLayout.VirtualSizeAt,
            $"size is {size}, expected at most the {covered} bytes that an L1 table of {l1Size} entries maps", DamagedAdvice);
    }

    // A table that is there starts at a cluster behind the header. As in QEMU, the offset of one that is not there is aligned too.
    private long TableOffset(Qcow2Header header, int at, string field, bool present)
    {
        ulong offset = UInt64(at);
        if (!present && offset % (ulong)header.ClusterSize == 0 && offset <= long.MaxValue)
            return 0;
        bool valid = offset >= (ulong)header.ClusterSize && offset < (ulong)Qcow2Limits.MaxHostOffset
            && offset % (ulong)header.ClusterSize == 0;
        return valid ? (long)offset : throw Bad(Structure, at, $"{field} is {offset}, expected a multiple of the cluster size "
            + $"{header.ClusterSize} behind the header and below 2^56", DamagedAdvice);
    }

    private int ReadBackingNameOffset(int headerLength, int clusterSize)
    {
        ulong offset = UInt64(Qcow2HeaderLayout.BackingNameOffsetAt);
        uint length = UInt32(Qcow2HeaderLayout.BackingNameLengthAt);
        if (offset == 0 && length != 0)
        {
            throw Bad(Structure, Qcow2HeaderLayout.BackingNameLengthAt,
                $"backing_file_size is {length} without a backing_file_offset, expected 0", DamagedAdvice);
        }

        if (offset == 0)
            return 0;

        if (offset < (ulong)headerLength || offset > (ulong)clusterSize)
        {
            throw Bad(Structure, Qcow2HeaderLayout.BackingNameOffsetAt,
                $"backing_file_offset is {offset}, expected {headerLength} to {clusterSize}", DamagedAdvice);
        }

        if (length == 0)
        {
            throw Bad(Structure, Qcow2HeaderLayout.BackingNameLengthAt,
                $"backing_file_size is 0 with a backing_file_offset of {offset}, expected both or none", DamagedAdvice);
        }

        if (length > Qcow2Limits.MaxBackingNameBytes || length > (ulong)clusterSize - offset)
        {
            throw Bad(Structure, Qcow2HeaderLayout.BackingNameLengthAt, $"backing_file_size is {length} at byte {offset}, expected at most "
                + $"{Qcow2Limits.MaxBackingNameBytes} and an end inside the first cluster of {clusterSize} bytes", DamagedAdvice);
        }

        Need("backing file name", (int)offset, (int)length);
        return (int)offset;
    }

    private List<HeaderExtension> ReadExtensions(int start, int end)
    {
        List<HeaderExtension> extensions = [];
        int at = start;
        while (end - at >= Qcow2HeaderLayout.ExtensionHeadLength)
        {
            Need(ExtensionStructure, at, Qcow2HeaderLayout.ExtensionHeadLength);
            HeaderExtensionType type = (HeaderExtensionType)UInt32(at);
            if (type == HeaderExtensionType.End)
                break;

            uint length = UInt32(at + 4);
            int room = end - at - Qcow2HeaderLayout.ExtensionHeadLength;
            if (length > (uint)room)
            {
                throw Bad(ExtensionStructure, at,
                    $"extension 0x{(uint)type:x8} is {length} bytes long, expected at most the {room} that are left", DamagedAdvice);
            }

            Need(ExtensionStructure, at, Qcow2HeaderLayout.ExtensionHeadLength + (int)length);
            RequireOnce(extensions, type, at);
            extensions.Add(new HeaderExtension(type,
                _bytes.Slice(at + Qcow2HeaderLayout.ExtensionHeadLength, (int)length).ToArray(), at));
            at += HeaderExtension.SizeFor((int)length);
        }

        return extensions;
    }

    // Two names for one thing are how one program checks one file and another opens the other.
    private void RequireOnce(List<HeaderExtension> extensions, HeaderExtensionType type, int at)
    {
        if (Enum.IsDefined(type) && extensions.Exists(e => e.Type == type))
            throw Bad(ExtensionStructure, at, $"extension 0x{(uint)type:x8} occurs twice, expected once", DamagedAdvice);

        if (extensions.Count == Qcow2Limits.MaxExtensions)
            throw Bad(ExtensionStructure, at, $"there are more than {Qcow2Limits.MaxExtensions} extensions", DamagedAdvice);
    }

    private Qcow2Header WithNames(Qcow2Header header, int backingOffset)
    {
        int backingLength = (int)UInt32(Qcow2HeaderLayout.BackingNameLengthAt);
        if (header.DataFileIsRaw && !header.HasExternalDataFile)
        {
            throw Bad(Structure, Qcow2HeaderLayout.AutoclearFeaturesAt,
                "the external data file is marked raw, but there is none", DamagedAdvice);
        }

        if (backingLength > 0 && header.DataFileIsRaw)
        {
            throw Bad(Structure, Qcow2HeaderLayout.BackingNameOffsetAt,
                "there is a backing file and a raw external data file, expected one of them", DamagedAdvice);
        }

        return header with
        {
            BackingName = backingLength == 0 ? null : Encoding.UTF8.GetString(_bytes.Slice(backingOffset, backingLength)),
            BackingFormat = ReadName(header, HeaderExtensionType.BackingFormat, Qcow2Limits.MaxBackingFormatBytes),
            DataFileName = ReadName(header, HeaderExtensionType.DataFileName, Qcow2Limits.MaxDataFileNameBytes),
            Bitmaps = ReadBitmaps(header),
            CryptoHeader = ReadCryptoHeader(header),
            Journal = ReadJournal(header),
        };
    }

    private string? ReadName(Qcow2Header header, HeaderExtensionType type, int maxLength)
    {
        HeaderExtension? extension = header.FindExtension(type);
        if (extension is null || extension.Data.Length == 0)
            return null;

        return extension.Data.Length <= maxLength ? Encoding.UTF8.GetString(extension.Data) : throw Bad(ExtensionStructure,
            extension.Offset, $"the name in extension 0x{(uint)type:x8} is {extension.Data.Length} bytes long, expected at most "
            + $"{maxLength}", DamagedAdvice);
    }

    // Without the autoclear bit the extension is a left-over of software that did not know it, and means nothing.
    private BitmapsExtension? ReadBitmaps(Qcow2Header header)
    {
        HeaderExtension? extension = header.FindExtension(HeaderExtensionType.Bitmaps);
        if (extension is null || !header.AutoclearFeatures.HasFlag(AutoclearFeatures.Bitmaps))
            return null;

        RequireLength(extension, BitmapsExtension.Size, "bitmaps");
        uint count = UInt32(extension.DataOffset);
        uint reserved = UInt32(extension.DataOffset + 4);
        if (reserved != 0)
        {
            throw Bad(ExtensionStructure, extension.DataOffset + 4,
                $"the reserved field of the bitmaps extension is {reserved}, expected 0", DamagedAdvice);
        }

        ulong length = UInt64(extension.DataOffset + 8);
        ulong offset = UInt64(extension.DataOffset + 16);
        if (count is 0 or > Qcow2Limits.MaxBitmaps)
        {
            throw Bad(ExtensionStructure, extension.DataOffset,
                $"the number of bitmaps is {count}, expected 1 to {Qcow2Limits.MaxBitmaps}", DamagedAdvice);
        }

        if (length is 0 or > Qcow2Limits.MaxBitmapDirectoryBytes)
        {
            throw Bad(ExtensionStructure, extension.DataOffset + 8, $"the bitmap directory is {length} bytes long, expected 1 to "
                + $"{Qcow2Limits.MaxBitmapDirectoryBytes}", DamagedAdvice);
        }

        return new BitmapsExtension((int)count, (long)length,
            TableOffset(header, extension.DataOffset + 16, "the bitmap directory's offset", present: true));
    }

    // Without the feature bit the extension is what a crash left of making a journal or taking it away, and means nothing.
    private JournalArea? ReadJournal(Qcow2Header header)
    {
        if (!header.HasJournal)
            return null;
        HeaderExtension? extension = header.FindExtension(HeaderExtensionType.Journal);
        if (extension is null)
        {
            throw Bad(Structure, Qcow2HeaderLayout.IncompatibleFeaturesAt,
                "the image has a journal that is not replayed, but no extension says where it is", JournalReader.LostAdvice);
        }

        return JournalArea.TryParse(extension.Data, header.ClusterSize, out JournalArea area, out string problem)
            ? area : throw Bad(ExtensionStructure, extension.Offset, problem, JournalReader.LostAdvice);
    }

    private CryptoHeaderExtension? ReadCryptoHeader(Qcow2Header header)
    {
        HeaderExtension? extension = header.FindExtension(HeaderExtensionType.CryptoHeader);
        if ((extension is not null) != (header.CryptMethod == CryptMethod.Luks))
        {
            throw Bad(Structure, Qcow2HeaderLayout.CryptMethodAt, $"crypt_method is {(int)header.CryptMethod} "
                + $"{(extension is null ? "without" : "with")} a crypto header extension, expected the extension exactly with 2 (LUKS)",
                DamagedAdvice);
        }

        if (extension is null)
            return null;

        RequireLength(extension, CryptoHeaderExtension.Size, "crypto header");
        long offset = TableOffset(header, extension.DataOffset, "the crypto header's offset", present: true);
        ulong length = UInt64(extension.DataOffset + 8);
        return length < (ulong)Qcow2Limits.MaxHostOffset ? new CryptoHeaderExtension(offset, (long)length) : throw Bad(ExtensionStructure,
            extension.DataOffset + 8, $"the crypto header is {length} bytes long, expected less than 2^56", DamagedAdvice);
    }

    private void RequireLength(HeaderExtension extension, int expected, string what)
    {
        if (extension.Data.Length != expected)
        {
            throw Bad(ExtensionStructure, extension.Offset,
                $"the {what} extension is {extension.Data.Length} bytes long, expected {expected}", DamagedAdvice);
        }
    }

    private uint UInt32(int at) => BinaryPrimitives.ReadUInt32BigEndian(_bytes[at..]);

    private ulong UInt64(int at) => BinaryPrimitives.ReadUInt64BigEndian(_bytes[at..]);

    private void Need(string structure, int offset, int length)
    {
        if (_bytes.Length - offset < length)
        {
            throw Bad(structure, offset, $"the file ends at byte {_bytes.Length}, expected {(long)offset + length} bytes or more",
                "the image is truncated; restore it from a copy");
        }
    }

    private ImageFormatException Bad(string structure, long offset, string problem, string advice) =>
        new(_file, structure, offset, problem, advice);
}
