// The header parser: every limit one below, at, and one above; every message; round trips; total on any bytes.
using System.Buffers.Binary;
using QcowFs.Images.Qcow2;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class Qcow2HeaderTests
{
    private const int ClusterSize = 65536;
    private const string Damaged = "the image is damaged; restore it from a copy";

    private static readonly Qcow2Header Valid = new()
    {
        Version = 3,
        ClusterBits = 16,
        VirtualSize = 1L << 30,
        L1Size = 2,
        L1Offset = 0x30000,
        RefcountTableOffset = 0x10000,
        RefcountTableClusters = 1,
        HeaderLength = Qcow2HeaderLayout.WrittenLength,
        Extensions = [new HeaderExtension(HeaderExtensionType.FeatureNames, FeatureNameTable.ToBytes(FeatureNameTable.Written))],
    };

    public static TheoryData<string, int, int, ulong, bool> Limits => new()
    {
        // field, offset, width, value, accepted
        { "cluster_bits", 20, 4, 8, false },
        { "cluster_bits", 20, 4, 17, false }, // the L1 table is not aligned to that
        { "cluster_bits", 20, 4, 22, false },
        { "cluster_bits", 20, 4, uint.MaxValue, false },
        { "version", 4, 4, 1, false },
        { "version", 4, 4, 2, true },
        { "version", 4, 4, 3, true },
        { "version", 4, 4, 4, false },
        { "crypt_method", 32, 4, 1, true },
        { "crypt_method", 32, 4, 3, false },
        { "size", 24, 8, 1UL << 30, true },
        { "size", 24, 8, (1UL << 30) + 1, false },
        { "size", 24, 8, ulong.MaxValue, false },
        { "size", 24, 8, 0, true },
        { "l1_size", 36, 4, 1, false },
        { "l1_size", 36, 4, 2, true },
        { "l1_size", 36, 4, (4 << 20) - 1, true },
        { "l1_size", 36, 4, 4 << 20, true },
        { "l1_size", 36, 4, (4 << 20) + 1, false },
        { "l1_size", 36, 4, uint.MaxValue, false },
        { "l1_table_offset", 40, 8, 0, false },
        { "l1_table_offset", 40, 8, 65535, false },
        { "l1_table_offset", 40, 8, 65536, true },
        { "l1_table_offset", 40, 8, 65537, false },
        { "l1_table_offset", 40, 8, (1UL << 56) - 65536, true },
        { "l1_table_offset", 40, 8, 1UL << 56, false },
        { "l1_table_offset", 40, 8, 1UL << 63, false },
        { "refcount_table_offset", 48, 8, 0, false },
        { "refcount_table_offset", 48, 8, 0x10200, false },
        { "refcount_table_offset", 48, 8, 0x20000, true },
        { "refcount_table_clusters", 56, 4, 0, true }, // a repair may rebuild it; opening refuses
        { "refcount_table_clusters", 56, 4, 127, true },
        { "refcount_table_clusters", 56, 4, 128, true },
        { "refcount_table_clusters", 56, 4, 129, false },
        { "nb_snapshots", 60, 4, 65535, false }, // snapshots_offset is 0
        { "nb_snapshots", 60, 4, 65537, false },
        { "refcount_order", 96, 4, 0, true },
        { "refcount_order", 96, 4, 6, true },
        { "refcount_order", 96, 4, 7, false },
        { "header_length", 100, 4, 103, false },
        { "header_length", 100, 4, 104, true },
        { "header_length", 100, 4, 105, false },
        { "header_length", 100, 4, 112, true },
        { "header_length", 100, 4, ClusterSize, true },
        { "header_length", 100, 4, ClusterSize + 8, false },
        { "header_length", 100, 4, uint.MaxValue, false },
        { "compression_type", 104, 1, 1, false }, // its feature bit is clear
        { "compression_type", 104, 1, 2, false },
        { "backing_file_size", 16, 4, 1, false }, // without an offset
        { "incompatible_features", 72, 8, 1UL << 5, false },
        { "incompatible_features", 72, 8, 1UL << 3, false }, // compression type is 0
        { "incompatible_features", 72, 8, 1UL << 60, false }, // a journal, and nothing says where
        { "compatible_features", 80, 8, ulong.MaxValue, true },
        { "autoclear_features", 88, 8, ulong.MaxValue & ~3UL, true },
    };

    [Theory]
    [MemberData(nameof(Limits))]
    public void Each_limit_holds_to_the_unit(string field, int offset, int width, ulong value, bool accepted)
    {
        byte[] cluster = Bytes(Valid);
        Put(cluster, offset, width, value);
        if (accepted)
        {
            // Whatever follows the longer header is an extension, and zero bytes end the list.
            Qcow2HeaderReader.Parse(cluster, "disk");
            return;
        }

        ImageFormatException fault = Assert.Throws<ImageFormatException>(() => Qcow2HeaderReader.Parse(cluster, "disk"));
        Assert.True(fault.Offset >= 0, $"{field}: {fault.Message}");
        Assert.DoesNotContain('\n', fault.Message);
    }

    [Theory]
    [InlineData(512, 9)]
    [InlineData(2 << 20, 21)]
    public void The_smallest_and_the_largest_cluster_are_accepted(int clusterSize, int clusterBits)
    {
        Qcow2Header header = Valid with
        {
            ClusterBits = clusterBits,
            VirtualSize = clusterSize,
            L1Size = 1,
            L1Offset = 3 * clusterSize,
            RefcountTableOffset = clusterSize,
            Extensions = [],
        };
        byte[] cluster = new byte[clusterSize];
        Assert.True(header.TryWriteTo(cluster));
        Assert.Equal(clusterBits, Qcow2HeaderReader.Parse(cluster, "disk").ClusterBits);
    }

    [Fact]
    public void The_backing_name_lies_inside_the_first_cluster_and_behind_the_header()
    {
        foreach ((ulong offset, uint length, bool accepted) in (ReadOnlySpan<(ulong, uint, bool)>)
            [
                (111, 10, false), (112, 10, true), (ClusterSize - 10, 10, true), (ClusterSize - 10, 11, false), (ClusterSize, 1, false),
                (ClusterSize + 1, 1, false), (200, 1023, true), (200, 1024, false), (200, uint.MaxValue, false), (200, 0, false),
                (ulong.MaxValue, 10, false),
            ])
        {
            byte[] cluster = Bytes(Valid with { Extensions = [] });
            Put(cluster, 8, 8, offset);
            Put(cluster, 16, 4, length);
            if (accepted)
                Assert.Equal((int)length, Qcow2HeaderReader.Parse(cluster, "disk").BackingName!.Length);
            else
                Assert.Throws<ImageFormatException>(() => Qcow2HeaderReader.Parse(cluster, "disk"));
        }
    }

    [Theory]
    [InlineData(0u, "disk: header: the file is empty; a qcow2 image has at least a header; check the path")]
    [InlineData(3u, "disk: header at byte 0: the magic number is 514649, expected 514649fb; the file is not a qcow2 image; state its real format with -f")]
    [InlineData(71u, "disk: header at byte 0: the file ends at byte 71, expected 72 bytes or more; the image is truncated; restore it from a copy")]
    [InlineData(103u, "disk: header at byte 0: the file ends at byte 103, expected 104 bytes or more; the image is truncated; restore it from a copy")]
    [InlineData(111u, "disk: header at byte 0: the file ends at byte 111, expected 112 bytes or more; the image is truncated; restore it from a copy")]
    [InlineData(300u, "disk: header extension at byte 112: the file ends at byte 300, expected 648 bytes or more; the image is truncated; restore it from a copy")]
    public void A_truncated_file_is_named_as_such(uint length, string message) =>
        Assert.Equal(message, Fault(Bytes(Valid)[..(int)length]));

    public static TheoryData<int, int, ulong, string> Messages => new()
    {
        { 0, 4, 0x4b444d56, "header at byte 0: the magic number is 4b444d56, expected 514649fb; the file is not a qcow2 image; state its real format with -f" },
        { 4, 4, 9, "header at byte 4: version is 9, expected 2 or 3; open it with the software that made it" },
        { 20, 4, 22, "header at byte 20: cluster_bits is 22, expected 9 to 21; " + Damaged },
        { 24, 8, 1UL << 31, "header at byte 24: size is 2147483648, expected at most the 1073741824 bytes that an L1 table of 2 entries maps; " + Damaged },
        { 32, 4, 3, "header at byte 32: crypt_method is 3, expected 0 (none), 1 (AES) or 2 (LUKS); open it with the software that made it" },
        { 36, 4, 5 << 20, "header at byte 36: l1_size is 5242880, expected at most 4194304 (32 MiB); " + Damaged },
        { 40, 8, 0x30001, "header at byte 40: l1_table_offset is 196609, expected a multiple of the cluster size 65536 behind the header and below 2^56; " + Damaged },
        { 48, 8, 0x200, "header at byte 48: refcount_table_offset is 512, expected a multiple of the cluster size 65536 behind the header and below 2^56; " + Damaged },
        { 56, 4, 129, "header at byte 56: refcount_table_clusters is 129, expected at most 128 (8 MiB); " + Damaged },
        { 60, 4, 65537, "header at byte 60: nb_snapshots is 65537, expected at most 65536; " + Damaged },
        { 60, 4, 1, "header at byte 64: snapshots_offset is 0, expected a multiple of the cluster size 65536 behind the header and below 2^56; " + Damaged },
        { 8, 8, 5, "header at byte 8: backing_file_offset is 5, expected 112 to 65536; " + Damaged },
        { 16, 4, 7, "header at byte 16: backing_file_size is 7 without a backing_file_offset, expected 0; " + Damaged },
        { 96, 4, 7, "header at byte 96: refcount_order is 7, expected 0 to 6; " + Damaged },
        { 100, 4, 100, "header at byte 100: header_length is 100, expected a multiple of 8 from 104 to the cluster size 65536; " + Damaged },
        { 104, 1, 9, "header at byte 104: compression_type is 9, expected 0 (deflate) or 1 (zstd); open it with the software that made it" },
        { 104, 1, 1, "header at byte 104: compression_type is 1 but its feature bit is clear, expected the bit exactly with a type other than 0; " + Damaged },
        { 72, 8, 8, "header at byte 104: compression_type is 0 but its feature bit is set, expected the bit exactly with a type other than 0; " + Damaged },
        { 72, 8, 1UL << 40, "header at byte 72: the image needs features that are not known here: bit 40; open it with the software that made it" },
        { 32, 4, 2, "header at byte 32: crypt_method is 2 without a crypto header extension, expected the extension exactly with 2 (LUKS); " + Damaged },
    };

    [Theory]
    [MemberData(nameof(Messages))]
    public void Each_message_says_what_was_found_and_what_to_do(int offset, int width, ulong value, string message)
    {
        byte[] cluster = Bytes(Valid);
        Put(cluster, offset, width, value);
        Assert.Equal("disk: " + message, Fault(cluster));
    }

    [Fact]
    public void An_unknown_feature_is_named_from_the_images_own_table_on_one_line()
    {
        byte[] names = FeatureNameTable.ToBytes([new(FeatureKind.Incompatible, 40, "time\ntravel\u001b[31m")]);
        byte[] cluster = Bytes(Valid with { Extensions = [new(HeaderExtensionType.FeatureNames, names)] });
        Put(cluster, 72, 8, 1UL << 40 | 1UL << 41);
        Assert.Equal("disk: header at byte 72: the image needs features that are not known here: \"time\\x0atravel\\x1b[31m\" (bit 40), "
            + "bit 41; open it with the software that made it", Fault(cluster));
    }

    [Fact]
    public void Extensions_are_bounded_and_known_ones_occur_once()
    {
        HeaderExtension format = new(HeaderExtensionType.BackingFormat, "raw"u8.ToArray());
        Assert.Equal("disk: header extension at byte 128: extension 0xe2792aca occurs twice, expected once; " + Damaged,
            Fault(Bytes(Valid with { Extensions = [format, format] })));

        byte[] tooLong = Bytes(Valid with { Extensions = [format] });
        Put(tooLong, 116, 4, ClusterSize - 119);
        Assert.Equal("disk: header extension at byte 112: extension 0xe2792aca is 65417 bytes long, expected at most the 65416 that are "
            + "left; " + Damaged, Fault(tooLong));

        HeaderExtension sixteen = format with { Data = new byte[16] };
        Assert.Equal("disk: header extension at byte 112: the name in extension 0xe2792aca is 16 bytes long, expected at most 15; " + Damaged,
            Fault(Bytes(Valid with { Extensions = [sixteen] })));

        HeaderExtension unknown = new((HeaderExtensionType)0x12345678, []);
        Qcow2HeaderReader.Parse(Bytes(Valid with { Extensions = Repeat(unknown, 1024) }), "disk");
        Assert.Contains("more than 1024 extensions", Fault(Bytes(Valid with { Extensions = Repeat(unknown, 1025) })), StringComparison.Ordinal);
    }

    [Fact]
    public void Bitmaps_count_only_with_their_feature_bit_and_within_limits()
    {
        foreach ((uint count, ulong length, ulong offset, bool accepted) in (ReadOnlySpan<(uint, ulong, ulong, bool)>)
            [
                (1, 64, 0x50000, true), (0, 64, 0x50000, false), (65535, 64, 0x50000, true), (65536, 64, 0x50000, false),
                (1, 0, 0x50000, false), (1, 1024 * 65535, 0x50000, true), (1, 1024 * 65535 + 1, 0x50000, false), (1, 64, 0x50200, false),
            ])
        {
            byte[] data = new byte[24];
            BinaryPrimitives.WriteUInt32BigEndian(data, count);
            BinaryPrimitives.WriteUInt64BigEndian(data.AsSpan(8), length);
            BinaryPrimitives.WriteUInt64BigEndian(data.AsSpan(16), offset);
            Qcow2Header header = Valid with { Extensions = [new(HeaderExtensionType.Bitmaps, data)] };
            Assert.Null(Qcow2HeaderReader.Parse(Bytes(header), "disk").Bitmaps);
            byte[] cluster = Bytes(header with { AutoclearFeatures = AutoclearFeatures.Bitmaps });
            if (accepted)
                Assert.Equal((int)count, Qcow2HeaderReader.Parse(cluster, "disk").Bitmaps!.Count);
            else
                Assert.Throws<ImageFormatException>(() => Qcow2HeaderReader.Parse(cluster, "disk"));
        }
    }

    [Fact]
    public void Extended_L2_needs_clusters_of_16_KiB()
    {
        Qcow2Header small = Valid with { ClusterBits = 13, VirtualSize = 0, L1Size = 0, IncompatibleFeatures = IncompatibleFeatures.ExtendedL2 };
        byte[] cluster = new byte[8192];
        Assert.True(small.TryWriteTo(cluster));
        Assert.Contains("expected at least 14 with extended L2 entries", Fault(cluster), StringComparison.Ordinal);
        byte[] larger = new byte[16384];
        Assert.True((small with { ClusterBits = 14 }).TryWriteTo(larger));
        Assert.True(Qcow2HeaderReader.Parse(larger, "disk").HasExtendedL2);
    }

    [Fact]
    public void What_is_not_understood_survives_a_rewrite()
    {
        Qcow2Header header = Valid with
        {
            HeaderLength = 128,
            UnknownFields = [.. Enumerable.Range(1, 128 - Qcow2HeaderLayout.UnknownAt).Select(i => (byte)i)],
            Extensions =
            [
                new((HeaderExtensionType)0xCAFE, [1, 2, 3]),
                new(HeaderExtensionType.BackingFormat, "qcow2"u8.ToArray()),
                new((HeaderExtensionType)0xBEEF, []),
            ],
            BackingName = "sub/b\u00e4se.qcow2",
            CompatibleFeatures = (CompatibleFeatures)0xF0,
            AutoclearFeatures = (AutoclearFeatures)0xF0,
        };
        byte[] first = Bytes(header);
        Qcow2Header parsed = Qcow2HeaderReader.Parse(first, "disk");
        Assert.Equal("sub/b\u00e4se.qcow2", parsed.BackingName);
        Assert.Equal("qcow2", parsed.BackingFormat);
        Assert.Equal(first, Bytes(parsed));
    }

    [Fact]
    public void A_header_that_does_not_fit_is_not_written()
    {
        Qcow2Header header = Valid with { Extensions = [], BackingName = new string('x', 400) };
        Assert.True(header.TryWriteTo(new byte[520]));
        Assert.False(header.TryWriteTo(new byte[519]));
    }

    // Any bytes give a header or the one exception; three kinds of randomness, seeds printed by the assertion.
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Any_bytes_give_a_header_or_the_one_exception(int seed)
    {
        Random random = new(seed);
        byte[] valid = Bytes(Valid with { BackingName = "base" });
        for (int round = 0; round < 20_000; round++)
        {
            byte[] cluster = valid.AsSpan(0, random.Next(3) == 0 ? random.Next(4096) : 4096).ToArray();
            for (int i = random.Next(6); i > 0 && cluster.Length > 0; i--)
            {
                int at = random.Next(Math.Min(cluster.Length, random.Next(2) == 0 ? 120 : 700));
                cluster[at] = random.Next(3) switch { 0 => 0xFF, 1 => (byte)(1 << random.Next(8)), _ => (byte)random.Next(256) };
            }

            try
            {
                Qcow2Header header = Qcow2HeaderReader.Parse(cluster, "disk");
                Assert.True(header.VirtualSize >= 0 && header.L1EntriesFor(header.VirtualSize) <= header.L1Size, $"seed {seed}, {round}");
            }
            catch (ImageFormatException fault)
            {
                Assert.False(string.IsNullOrEmpty(fault.Problem), $"seed {seed}, round {round}");
            }
        }
    }

    private static HeaderExtension[] Repeat(HeaderExtension extension, int count) => [.. Enumerable.Repeat(extension, count)];

    private static byte[] Bytes(Qcow2Header header)
    {
        byte[] cluster = new byte[ClusterSize];
        Assert.True(header.TryWriteTo(cluster));
        return cluster;
    }

    private static void Put(byte[] bytes, int offset, int width, ulong value)
    {
        for (int i = 0; i < width; i++)
            bytes[offset + i] = (byte)(value >> ((width - 1 - i) * 8) & 0xFF);
    }

    private static string Fault(byte[] cluster) =>
        Assert.Throws<ImageFormatException>(() => Qcow2HeaderReader.Parse(cluster, "disk")).Message;
}
