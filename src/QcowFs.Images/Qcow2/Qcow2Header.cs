// The qcow2 header as a value: cluster 0 with the fixed fields, the extensions and the backing name. Reading is in
// Qcow2HeaderReader; this file is the value and its way back to bytes. Bytes and extensions that are not understood are kept.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Images.Qcow2.Journal;

namespace QcowFs.Images.Qcow2;

/// <summary>A header that passed every check which needs no other part of the file. Immutable.</summary>
internal sealed record Qcow2Header
{
    /// <summary>2 or 3.</summary>
    public required int Version { get; init; }

    /// <summary>9 to 21.</summary>
    public required int ClusterBits { get; init; }

    public int ClusterSize => 1 << ClusterBits;

    /// <summary>Size of the guest disk in bytes, as the image states it; any value from 0 to what the L1 table covers.</summary>
    public required long VirtualSize { get; init; }

    /// <summary>Entries of the active L1 table; covers <see cref="VirtualSize"/>.</summary>
    public required int L1Size { get; init; }

    public required long L1Offset { get; init; }

    public required long RefcountTableOffset { get; init; }

    /// <summary>Clusters of the refcount table; 0 only in an image that a repair must rebuild.</summary>
    public required int RefcountTableClusters { get; init; }

    public int SnapshotCount { get; init; }

    public long SnapshotsOffset { get; init; }

    public CryptMethod CryptMethod { get; init; }

    public IncompatibleFeatures IncompatibleFeatures { get; init; }

    public CompatibleFeatures CompatibleFeatures { get; init; }

    public AutoclearFeatures AutoclearFeatures { get; init; }

    /// <summary>Width of a reference count: 1 &lt;&lt; order bits.</summary>
    public int RefcountOrder { get; init; } = Qcow2Limits.Version2RefcountOrder;

    public int RefcountBits => 1 << RefcountOrder;

    /// <summary>The highest count that fits.</summary>
    public ulong MaxRefcount => RefcountBits == 64 ? ulong.MaxValue : (1UL << RefcountBits) - 1;

    /// <summary>Counts in one refcount block of one cluster.</summary>
    public long RefcountsPerBlock => ((long)ClusterSize << 3) >> RefcountOrder;

    /// <summary>Bytes of the fixed header; extensions follow.</summary>
    public required int HeaderLength { get; init; }

    public CompressionType CompressionType { get; init; }

    /// <summary>Bytes from <see cref="Qcow2HeaderLayout.UnknownAt"/> to <see cref="HeaderLength"/>, kept as found.</summary>
    public byte[] UnknownFields { get; init; } = [];

    /// <summary>All extensions in their order, unknown ones too, without the end marker.</summary>
    public IReadOnlyList<HeaderExtension> Extensions { get; init; } = [];

    /// <summary>The backing file's name as the image states it, or null. May be hostile: it goes to the gate and through
    /// <see cref="Printable"/>.</summary>
    public string? BackingName { get; init; }

    /// <summary>Where the backing name lies; 0 where there is none.</summary>
    public int BackingNameOffset { get; init; }

    /// <summary>The backing file's format as the image states it, or null.</summary>
    public string? BackingFormat { get; init; }

    /// <summary>The external data file's name as the image states it, or null.</summary>
    public string? DataFileName { get; init; }

    /// <summary>Names of feature bits that the image carries.</summary>
    public IReadOnlyList<FeatureName> FeatureNames { get; init; } = [];

    /// <summary>Place of the bitmap directory, or null.</summary>
    public BitmapsExtension? Bitmaps { get; init; }

    /// <summary>Place of the LUKS header, or null.</summary>
    public CryptoHeaderExtension? CryptoHeader { get; init; }

    /// <summary>Place of the journal, or null where there is none, or the feature bit is clear.</summary>
    public JournalArea? Journal { get; init; }

    public bool HasExtendedL2 => IncompatibleFeatures.HasFlag(IncompatibleFeatures.ExtendedL2);

    public bool HasExternalDataFile => IncompatibleFeatures.HasFlag(IncompatibleFeatures.ExternalDataFile);

    public bool DataFileIsRaw => AutoclearFeatures.HasFlag(AutoclearFeatures.RawExternalData);

    public bool IsDirty => IncompatibleFeatures.HasFlag(IncompatibleFeatures.Dirty);

    public bool IsCorrupt => IncompatibleFeatures.HasFlag(IncompatibleFeatures.Corrupt);

    public bool HasJournal => IncompatibleFeatures.HasFlag(IncompatibleFeatures.Journal);

    /// <summary>Bytes of one L2 entry: 8, or 16 with subclusters.</summary>
    public int L2EntrySize => HasExtendedL2 ? L2Entry.ExtendedSize : L2Entry.Size;

    /// <summary>Entries of one L2 table of one cluster.</summary>
    public int L2Entries => ClusterSize / L2EntrySize;

    /// <summary>Guest bytes that one L2 table maps.</summary>
    public long L2Coverage => (long)L2Entries << ClusterBits;

    /// <summary>Bytes of the smallest unit with an allocation state of its own.</summary>
    public int SubclusterSize => HasExtendedL2 ? ClusterSize / SubclusterBitmap.Count : ClusterSize;

    /// <summary>L1 entries that a disk of <paramref name="virtualSize"/> bytes needs.</summary>
    public long L1EntriesFor(long virtualSize) => virtualSize / L2Coverage + (virtualSize % L2Coverage == 0 ? 0 : 1);

    /// <summary>The first extension of the type, or null.</summary>
    public HeaderExtension? FindExtension(HeaderExtensionType type) => Extensions.FirstOrDefault(e => e.Type == type);

    /// <summary>The first byte after the extensions and their end marker: the lowest place for a backing name.</summary>
    public int ExtensionsEnd =>
        HeaderLength + Extensions.Sum(e => e.SizeOnDisk) + Qcow2HeaderLayout.ExtensionHeadLength;

    /// <summary>Writes the whole header cluster: fields, <see cref="Extensions"/> as they are, end marker, and the backing name
    /// directly behind them, whatever <see cref="BackingNameOffset"/> says. False, with nothing usable written, where it does not
    /// fit into <paramref name="cluster"/>, which is one cluster.</summary>
    public bool TryWriteTo(Span<byte> cluster)
    {
        byte[] backing = BackingName is null ? [] : Encoding.UTF8.GetBytes(BackingName);
        if (ExtensionsEnd + (long)backing.Length > cluster.Length)
            return false;

        cluster.Clear();
        WriteFields(cluster, BackingName is null ? 0 : ExtensionsEnd, backing.Length);
        int at = HeaderLength;
        foreach (HeaderExtension extension in Extensions)
        {
            extension.WriteTo(cluster[at..]);
            at += extension.SizeOnDisk;
        }

        backing.CopyTo(cluster[ExtensionsEnd..]);
        return true;
    }

    private void WriteFields(Span<byte> cluster, int backingOffset, int backingLength)
    {
        BinaryPrimitives.WriteUInt32BigEndian(cluster[Qcow2HeaderLayout.MagicAt..], Qcow2HeaderLayout.Magic);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.VersionAt..], Version);
        BinaryPrimitives.WriteInt64BigEndian(cluster[Qcow2HeaderLayout.BackingNameOffsetAt..], backingOffset);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.BackingNameLengthAt..], backingLength);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.ClusterBitsAt..], ClusterBits);
        BinaryPrimitives.WriteInt64BigEndian(cluster[Qcow2HeaderLayout.VirtualSizeAt..], VirtualSize);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.CryptMethodAt..], (int)CryptMethod);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.L1SizeAt..], L1Size);
        BinaryPrimitives.WriteInt64BigEndian(cluster[Qcow2HeaderLayout.L1OffsetAt..], L1Offset);
        BinaryPrimitives.WriteInt64BigEndian(cluster[Qcow2HeaderLayout.RefcountTableOffsetAt..], RefcountTableOffset);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.RefcountTableClustersAt..], RefcountTableClusters);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.SnapshotCountAt..], SnapshotCount);
        BinaryPrimitives.WriteInt64BigEndian(cluster[Qcow2HeaderLayout.SnapshotsOffsetAt..], SnapshotsOffset);
        if (Version < 3)
            return;

        BinaryPrimitives.WriteUInt64BigEndian(cluster[Qcow2HeaderLayout.IncompatibleFeaturesAt..], (ulong)IncompatibleFeatures);
        BinaryPrimitives.WriteUInt64BigEndian(cluster[Qcow2HeaderLayout.CompatibleFeaturesAt..], (ulong)CompatibleFeatures);
        BinaryPrimitives.WriteUInt64BigEndian(cluster[Qcow2HeaderLayout.AutoclearFeaturesAt..], (ulong)AutoclearFeatures);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.RefcountOrderAt..], RefcountOrder);
        BinaryPrimitives.WriteInt32BigEndian(cluster[Qcow2HeaderLayout.HeaderLengthAt..], HeaderLength);
        if (HeaderLength > Qcow2HeaderLayout.CompressionTypeAt)
        {
            cluster[Qcow2HeaderLayout.CompressionTypeAt] = (byte)CompressionType;
            UnknownFields.CopyTo(cluster[Qcow2HeaderLayout.UnknownAt..HeaderLength]);
        }
    }
}

/// <summary>The bitmaps extension: u32 count, u32 reserved, u64 directory length, u64 directory offset.</summary>
internal sealed record BitmapsExtension(int Count, long DirectoryLength, long DirectoryOffset)
{
    public const int Size = 24;
}

/// <summary>The crypto header extension: u64 offset, u64 length of the LUKS header in the image file.</summary>
internal sealed record CryptoHeaderExtension(long Offset, long Length)
{
    public const int Size = 16;
}
