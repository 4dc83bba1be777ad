// The feature bits of a version 3 header. Version 2 images read as having none.
namespace QcowFs.Images.Qcow2;

/// <summary>Features that software must know to open the image at all (header bytes 72-79).</summary>
[Flags]
internal enum IncompatibleFeatures : ulong
{
    None = 0,
    /// <summary>Reference counts may be wrong: repair before writing.</summary>
    Dirty = 1UL << 0,
    /// <summary>A structure was found broken: read-only except for repair.</summary>
    Corrupt = 1UL << 1,
    /// <summary>Guest data lives in another file at host offset = guest offset.</summary>
    ExternalDataFile = 1UL << 2,
    /// <summary>Set iff the compression type is not deflate.</summary>
    CompressionType = 1UL << 3,
    /// <summary>L2 entries of 16 bytes with a subcluster bitmap.</summary>
    ExtendedL2 = 1UL << 4,
    /// <summary>Private: a journal may hold metadata that is not yet in place.</summary>
    Journal = 1UL << 60,

    /// <summary>All bits that have a meaning here. Not all of them can be opened.</summary>
    Known = Dirty | Corrupt | ExternalDataFile | CompressionType | ExtendedL2 | Journal,
}

/// <summary>Features that software may ignore (header bytes 80-87).</summary>
[Flags]
internal enum CompatibleFeatures : ulong
{
    None = 0,
    /// <summary>A writer may set the dirty bit and put off reference counts.</summary>
    LazyRefcounts = 1UL << 0,
}

/// <summary>Features that software which does not know them must clear before it writes (header bytes 88-95).</summary>
[Flags]
internal enum AutoclearFeatures : ulong
{
    None = 0,
    /// <summary>The bitmaps extension is consistent with the data.</summary>
    Bitmaps = 1UL << 0,
    /// <summary>The external data file can be read as a raw image.</summary>
    RawExternalData = 1UL << 1,
    /// <summary>Private: a writer of ours has the image open, or crashed and was the last to write (I9).</summary>
    InUse = 1UL << 60,
    /// <summary>Private: the dedup index beside the image is bound to its present state.</summary>
    DedupIndex = 1UL << 61,

    /// <summary>All bits that have a meaning here; others are cleared before the first write (I10).</summary>
    Known = Bitmaps | RawExternalData | InUse | DedupIndex,
}

/// <summary>How guest data is encrypted (header bytes 32-35).</summary>
internal enum CryptMethod
{
    None = 0,
    Aes = 1,
    Luks = 2,
}

/// <summary>How compressed clusters are compressed (header byte 104).</summary>
internal enum CompressionType : byte
{
    Deflate = 0,
    Zstd = 1,
}
