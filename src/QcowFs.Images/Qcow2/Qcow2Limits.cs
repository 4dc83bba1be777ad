// Every bound that qcow2 code relies on, each with its source. "QEMU" is block/qcow2.h and block/qcow2.c, whose limits decide
// what other software opens; "format" is the published specification; "ours" states its reason.
namespace QcowFs.Images.Qcow2;

internal static class Qcow2Limits
{
    /// <summary>QEMU: MIN_CLUSTER_BITS.</summary>
    public const int MinClusterBits = 9;

    /// <summary>QEMU: MAX_CLUSTER_BITS.</summary>
    public const int MaxClusterBits = 21;

    /// <summary>Format: 32 subclusters of at least 512 bytes.</summary>
    public const int MinExtendedClusterBits = 14;

    /// <summary>Format: 64-bit reference counts are the widest.</summary>
    public const int MaxRefcountOrder = 6;

    /// <summary>Format: version 2 always counts in 16 bits.</summary>
    public const int Version2RefcountOrder = 4;

    /// <summary>QEMU: QCOW_MAX_L1_SIZE, 32 MiB of L1 entries; of a snapshot's L1 too.</summary>
    public const int MaxL1Bytes = 32 << 20;

    /// <summary>QEMU: QCOW_MAX_REFTABLE_SIZE.</summary>
    public const int MaxRefcountTableBytes = 8 << 20;

    /// <summary>QEMU: QCOW_MAX_SNAPSHOTS.</summary>
    public const int MaxSnapshots = 65536;

    /// <summary>QEMU: QCOW_MAX_SNAPSHOTS_SIZE.</summary>
    public const int MaxSnapshotTableBytes = 1024 * MaxSnapshots;

    /// <summary>QEMU: QCOW_MAX_SNAPSHOT_EXTRA_DATA.</summary>
    public const int MaxSnapshotExtraBytes = 1024;

    /// <summary>Format: "Note: up to 1023 bytes".</summary>
    public const int MaxBackingNameBytes = 1023;

    /// <summary>QEMU: the name of the backing format is kept in 16 bytes with its terminator.</summary>
    public const int MaxBackingFormatBytes = 15;

    /// <summary>Ours: no Linux path is longer (PATH_MAX less the terminator).</summary>
    public const int MaxDataFileNameBytes = 4095;

    /// <summary>Format: entries of 48 bytes; ours: three kinds of 64 bits each can have a name.</summary>
    public const int MaxFeatureNames = 3 * 64;

    /// <summary>QEMU: QCOW2_MAX_BITMAPS.</summary>
    public const int MaxBitmaps = 65535;

    /// <summary>QEMU: QCOW2_MAX_BITMAP_DIRECTORY_SIZE.</summary>
    public const int MaxBitmapDirectoryBytes = 1024 * MaxBitmaps;

    /// <summary>QEMU: BME_MAX_TABLE_SIZE, in entries.</summary>
    public const int MaxBitmapTableEntries = 0x8000000;

    /// <summary>QEMU: BME_MAX_PHYS_SIZE, bytes of one bitmap's data.</summary>
    public const long MaxBitmapBytes = 0x20000000;

    /// <summary>QEMU: BME_MAX_NAME_SIZE.</summary>
    public const int MaxBitmapNameBytes = 1023;

    /// <summary>QEMU: BME_MIN_GRANULARITY_BITS.</summary>
    public const int MinBitmapGranularityBits = 9;

    /// <summary>QEMU: BME_MAX_GRANULARITY_BITS.</summary>
    public const int MaxBitmapGranularityBits = 31;

    /// <summary>Ours: bytes of all bitmaps that are kept true while an image is written; one that does not fit becomes inconsistent.</summary>
    public const long MaxTrackedBitmapBytes = 64L << 20;

    /// <summary>Ours: table entries of all bitmaps together that are kept in memory; twice what the bytes above need at least.</summary>
    public const int MaxTrackedBitmapTableEntries = 1 << 18;

    /// <summary>Format: L1 and L2 entries hold bits 9 to 55 of an offset.</summary>
    public const long MaxHostOffset = 1L << 56;

    /// <summary>Ours: the header cluster's extensions need no more; a header of 2 MiB of 8-byte extensions would otherwise make
    /// 262,144 objects.</summary>
    public const int MaxExtensions = 1024;
}
