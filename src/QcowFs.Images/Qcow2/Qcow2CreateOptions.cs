// The options of a new qcow2 image, under qemu-img's names and with its rules of what goes with what.
using System.Numerics;
using System.Text;

namespace QcowFs.Images.Qcow2;

/// <summary>All that decides a new qcow2 image; values that go together.</summary>
internal sealed record Qcow2CreateOptions
{
    private const int DefaultClusterSize = 64 << 10;
    private const int DefaultRefcountBits = 16;

    /// <summary>QEMU presents a disk in sectors of 512 bytes, so a size is rounded up to them.</summary>
    private const int SizeUnit = 512;

    public required long VirtualSize { get; init; }

    public int Version { get; init; } = 3;

    public int ClusterBits { get; init; } = 16;

    public int RefcountOrder { get; init; } = 4;

    public bool LazyRefcounts { get; init; }

    public Preallocation Preallocation { get; init; }

    public string? BackingName { get; init; }

    public string? BackingFormat { get; init; }

    public string? DataFileName { get; init; }

    public bool DataFileIsRaw { get; init; }

    public bool ExtendedL2 { get; init; }

    public CompressionType CompressionType { get; init; }

    /// <summary>What the image is to remember of its base, or null.</summary>
    public BaseIdentity? Base { get; init; }

    /// <summary>Faults: <see cref="ImageOptionException"/>.</summary>
    public static Qcow2CreateOptions Parse(ImageRequest request, CreateOptions options)
    {
        string compat = options.TakeChoice("compat", "1.1", "0.10", "1.1", "v2", "v3");
        Qcow2CreateOptions parsed = new()
        {
            VirtualSize = RoundUp(request.Size),
            Version = compat is "0.10" or "v2" ? 2 : 3,
            ClusterBits = TakePowerOfTwo("cluster_size", options.TakeSize("cluster_size", DefaultClusterSize),
                Qcow2Limits.MinClusterBits, Qcow2Limits.MaxClusterBits),
            RefcountOrder = TakePowerOfTwo("refcount_bits", options.TakeNumber("refcount_bits", DefaultRefcountBits),
                0, Qcow2Limits.MaxRefcountOrder),
            LazyRefcounts = options.TakeSwitch("lazy_refcounts"),
            Preallocation = options.TakePreallocation(withMetadata: true),
            BackingName = request.BackingName,
            BackingFormat = request.BackingFormat,
            Base = request.Base,
            DataFileName = options.Take("data_file"),
            DataFileIsRaw = options.TakeSwitch("data_file_raw"),
            ExtendedL2 = options.TakeSwitch("extended_l2"),
            CompressionType =
                options.TakeChoice("compression_type", "zlib", "zlib", "zstd") == "zstd" ? CompressionType.Zstd : CompressionType.Deflate,
        };
        parsed.RequireVersion();
        parsed.RequireNames();
        // A raw data file must be readable by other software from the start, so every cluster is mapped to its place in it.
        return parsed.DataFileIsRaw && parsed.Preallocation == Preallocation.Off
            ? parsed with { Preallocation = Preallocation.Metadata } : parsed;
    }

    private void RequireVersion()
    {
        const string needsVersion3 = "needs compat=1.1";
        if (Version < 3)
        {
            Refuse(RefcountOrder != Qcow2Limits.Version2RefcountOrder, "refcount_bits", needsVersion3);
            Refuse(LazyRefcounts, "lazy_refcounts", needsVersion3);
            Refuse(ExtendedL2, "extended_l2", needsVersion3);
            Refuse(CompressionType != CompressionType.Deflate, "compression_type", needsVersion3);
            Refuse(DataFileName is not null, "data_file", needsVersion3);
        }

        Refuse(ExtendedL2 && ClusterBits < Qcow2Limits.MinExtendedClusterBits, "extended_l2", "needs a cluster_size of at least 16k");
    }

    private void RequireNames()
    {
        Refuse(DataFileIsRaw && DataFileName is null, "data_file_raw", "needs data_file");
        Refuse(DataFileIsRaw && BackingName is not null, "data_file_raw", "does not go with a backing file");
        Refuse(BackingName is not null && Preallocation != Preallocation.Off && !ExtendedL2, "preallocation",
            "goes with a backing file only where extended_l2=on");
        Refuse(BackingName is not null && BytesOf(BackingName) is 0 or > Qcow2Limits.MaxBackingNameBytes, "--backing",
            $"the name has {BytesOf(BackingName)} bytes, expected 1 to {Qcow2Limits.MaxBackingNameBytes}");
        Refuse(BytesOf(BackingFormat) > Qcow2Limits.MaxBackingFormatBytes, "--backing-format", "the name is too long");
        Refuse(DataFileName is not null && BytesOf(DataFileName) is 0 or > Qcow2Limits.MaxDataFileNameBytes, "data_file",
            $"the name has {BytesOf(DataFileName)} bytes, expected 1 to {Qcow2Limits.MaxDataFileNameBytes}");
    }

    private static int BytesOf(string? text) => text is null ? 0 : Encoding.UTF8.GetByteCount(text);

    private static void Refuse(bool condition, string option, string problem)
    {
        if (condition)
            throw new ImageOptionException(option, problem);
    }

    private static int TakePowerOfTwo(string key, long value, int minBits, int maxBits)
    {
        bool valid = value > 0 && BitOperations.IsPow2(value) && value >= 1L << minBits && value <= 1L << maxBits;
        return valid ? BitOperations.Log2((ulong)value) : throw new ImageOptionException(key,
            $"{value} is not a power of two from {1L << minBits} to {1L << maxBits}");
    }

    private static long RoundUp(long size) => size > long.MaxValue - SizeUnit ? size : (size + SizeUnit - 1) / SizeUnit * SizeUnit;
}
