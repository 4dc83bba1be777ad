// The header of both layouts: what is written is byte for byte what the format says, what is read means the same, and every rule is asked.
using System.Buffers.Binary;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.AddCow;

public sealed class AddCowHeaderTests
{
    private const string Damaged = "the file is damaged; restore it from a copy";
    private const string Older = "its layout is not documented; open it with the software that made it";

    private static readonly AddCowBytes Valid = new() { DiskSize = 300_000, ClusterBits = 12, Backing = "base" };

    public static TheoryData<int, long, string?> Creations => new()
    {
        { 12, 300_000, "base" },
        { 12, 4096, "base" },
        { 12, 300_000, null },
        { 16, 1 << 20, "base" },
        { 16, 123_456_789, null },
        { 21, (3 << 20) + 1, "base" },
        { 21, 0, null },
        { 12, (4096L * 8 * 4096) + 1, "base" }, // the bitmap needs one byte of a second cluster
    };

    [Theory]
    [MemberData(nameof(Creations))]
    public void A_new_file_is_what_the_format_says(int clusterBits, long size, string? backing)
    {
        SimulatedDisk disk = new();
        disk.Create("base", 100_000);
        new ImageCreator(disk).Create(new ImageRequest
        {
            Path = "overlay",
            Format = "add-cow",
            Size = size,
            BackingName = backing,
            BackingFormat = backing is null ? null : "raw",
            Options = [new("image_file", "image"), new("cluster_size", $"{1 << clusterBits}")],
        });
        byte[] expected = new AddCowBytes
        {
            DiskSize = size,
            ClusterBits = clusterBits,
            Backing = backing,
            CompatFeatures = backing is null ? 1UL : 0,
            IsAllocated = _ => backing is null,
        }.Final();
        byte[] made = disk.DurableContent("overlay");
        Assert.Equal(expected.Length, made.Length);
        Assert.True(made.AsSpan().SequenceEqual(expected), $"byte {made.AsSpan().CommonPrefixLength(expected)} differs");
        Assert.Equal(size, disk.DurableContent("image").Length);
        Assert.Equal(0, new ImageOpener(disk).Check("overlay").ExitCode);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Bits_say_where_a_cluster_is(bool isFinal)
    {
        AddCowBytes file = Valid with { IsAllocated = cluster => cluster % 3 == 1 };
        SimulatedDisk disk = DiskOf(isFinal ? file.Final() : file.March());
        int clusterSize = isFinal ? 4096 : 512;
        using IDiskImage image = new ImageOpener(disk).Open("overlay", new OpenOptions { Lock = false });
        Assert.Equal(300_000, image.Length);
        byte[] bytes = new byte[300_000];
        image.Read(0, bytes);
        for (int offset = 0; offset < bytes.Length; offset += clusterSize)
        {
            int length = Math.Min(clusterSize, bytes.Length - offset);
            bool isAllocated = offset / clusterSize % 3 == 1;
            byte[] expected = isAllocated ? Pattern.Bytes(2, offset, length) : Backing(offset, length);
            Assert.True(bytes.AsSpan(offset, length).SequenceEqual(expected), $"cluster {offset / clusterSize}");
            Extent extent = image.QueryExtent(offset, length);
            if (isAllocated)
                Assert.Equal(new Extent(ExtentKind.Data, length, offset, Writable: true), extent);
            else
                Assert.Equal(offset < 200_000 ? 1 : 0, extent.Depth);
        }
    }

    [Fact]
    public void What_is_stated_is_told()
    {
        ImageFileFacts facts = Facts((Valid with { IsAllocated = cluster => cluster < 37 }).Final());
        Assert.Equal(("add-cow", 300_000, 4096, "base", "raw", "image"),
            (facts.Format, facts.VirtualSize, facts.ClusterSize, facts.BackingName, facts.BackingFormat, facts.DataFileName));
        Assert.Equal(
            [new("layout", "final"), new("image-file", "image"), new("image-format", "raw"), new("all-allocated", false),
                new("allocated-clusters", 37L), new("total-clusters", 74L), new("allocated-percent", 50.0)],
            facts.FormatSpecific);
        facts = Facts((Valid with { IsAllocated = sector => sector < 585 }).March());
        Assert.Equal(512, facts.ClusterSize);
        Assert.Equal(
            [new("layout", "march-2012"), new("image-file", "image"), new("image-format", "raw"), new("all-allocated", false),
                new("allocated-clusters", 585L), new("total-clusters", 586L), new("allocated-percent", 99.8)],
            facts.FormatSpecific);
    }

    private static ImageFileFacts Facts(byte[] overlay) => new ImageOpener(DiskOf(overlay)).ReadInfo("overlay");

    public static TheoryData<string, Action<byte[]>, string> FinalRules => new()
    {
        { "cluster_bits 11", f => Put32(f, AddCowBytes.ClusterBitsAt, 11), $"header at byte 20: cluster_bits is 11, expected 12 to 21; {Damaged}" },
        { "cluster_bits 22", f => Put32(f, AddCowBytes.ClusterBitsAt, 22), $"header at byte 20: cluster_bits is 22, expected 12 to 21; {Damaged}" },
        { "features", f => f[AddCowBytes.FeaturesAt + 7] = 0x80, "header at byte 24: features 8000000000000000 are set, of which none is known; open it with the software that made it" },
        { "header size", f => Put32(f, AddCowBytes.HeaderSizeAt, 8192), $"header at byte 40: header_size is 8192, expected 4096 with clusters of 4096 bytes; {Damaged}" },
        { "header size and clusters", f => Put32(f, AddCowBytes.ClusterBitsAt, 13), $"header at byte 40: header_size is 4096, expected 8192 with clusters of 8192 bytes; {Damaged}" },
        { "backing offset without size", f => Put32(f, AddCowBytes.BackingSizeAt, 0), $"header at byte 8: the backing name has offset 76 and size 0; both or neither must be zero; {Damaged}" },
        { "backing size without offset", f => Put32(f, AddCowBytes.BackingOffsetAt, 0), $"header at byte 4: the backing name has offset 0 and size 4; both or neither must be zero; {Damaged}" },
        { "backing over the fields", f => Put32(f, AddCowBytes.BackingOffsetAt, 75), $"header at byte 4: the backing name's offset is 75, expected 76 to 4094; {Damaged}" },
        { "backing at the end", f => Put32(f, AddCowBytes.BackingOffsetAt, 4095), $"header at byte 4: the backing name's offset is 4095, expected 76 to 4094; {Damaged}" },
        { "backing past the end", f => Put32(f, AddCowBytes.BackingOffsetAt, uint.MaxValue), $"header at byte 4: the backing name's offset is 4294967295, expected 76 to 4094; {Damaged}" },
        { "backing too long", f => Put32(f, AddCowBytes.BackingSizeAt, 4020), $"header at byte 8: the backing name's 4020 bytes reach past the header's end at byte 4096; {Damaged}" },
        { "backing over the end", f => Put32(f, AddCowBytes.BackingOffsetAt, 4093), $"header at byte 8: the backing name's 4 bytes reach past the header's end at byte 4096; {Damaged}" },
        { "backing size wraps", f => Put32(f, AddCowBytes.BackingSizeAt, uint.MaxValue), $"header at byte 8: the backing name's 4294967295 bytes reach past the header's end at byte 4096; {Damaged}" },
        { "image over the fields", f => Put32(f, AddCowBytes.ImageOffsetAt, 1), $"header at byte 12: the image name's offset is 1, expected 76 to 4094; {Damaged}" },
        { "image at the end", f => Put32(f, AddCowBytes.ImageOffsetAt, 4095), $"header at byte 12: the image name's offset is 4095, expected 76 to 4094; {Damaged}" },
        { "image too long", f => Put32(f, AddCowBytes.ImageSizeAt, 4020), $"header at byte 16: the image name's 4020 bytes reach past the header's end at byte 4096; {Damaged}" },
        { "image empty", f => Put32(f, AddCowBytes.ImageSizeAt, 0), $"header at byte 16: the image name has offset 80 and size 0; both or neither must be zero; {Damaged}" },
        { "no image", f => f.AsSpan(AddCowBytes.ImageOffsetAt, 8).Clear(), $"header at byte 12: the image file's name is empty; {Damaged}" },
        { "NUL in the image's name", f => f[82] = 0, $"header at byte 82: the image name holds a NUL; {Damaged}" },
        { "NUL in the backing name", f => f[77] = 0, $"header at byte 77: the backing name holds a NUL; {Damaged}" },
        { "no backing format", f => f.AsSpan(AddCowBytes.BackingFormatAt, 16).Clear(), $"header at byte 44: backing_fmt is empty with a backing file; {Damaged}" },
        { "backing format alone", f => f.AsSpan(AddCowBytes.BackingOffsetAt, 8).Clear(), $"header at byte 44: backing_fmt is \"raw\" without a backing file; {Damaged}" },
        { "no image format", f => f.AsSpan(AddCowBytes.ImageFormatAt, 16).Clear(), $"header at byte 60: image_fmt is empty; {Damaged}" },
        { "endless image format", f => f.AsSpan(AddCowBytes.ImageFormatAt, 16).Fill((byte)'r'), $"header at byte 60: image_fmt does not end with a NUL within its 16 bytes; {Damaged}" },
        { "format not padded", f => f[AddCowBytes.BackingFormatAt + 5] = (byte)'x', $"header at byte 44: backing_fmt is not padded with zeros; {Damaged}" },
        { "format not ASCII", f => f[AddCowBytes.BackingFormatAt] = 0xE9, $"header at byte 44: backing_fmt is not ASCII; {Damaged}" },
        { "unknown image format", f => "vmdk"u8.CopyTo(f.AsSpan(AddCowBytes.ImageFormatAt)), "data file: its format is stated as \"vmdk\", which cannot be opened; convert it with qemu-img convert" },
        { "unknown backing format", f => "vmdk"u8.CopyTo(f.AsSpan(AddCowBytes.BackingFormatAt)), "backing file: its format is stated as \"vmdk\", which cannot be opened; convert it with qemu-img convert" },
    };

    [Theory]
    [MemberData(nameof(FinalRules))]
    public void A_rule_of_the_final_layout_is_asked(string rule, Action<byte[]> breakIt, string message)
    {
        byte[] file = Valid.Final();
        breakIt(file);
        Assert.True(Refusal(file) == $"overlay: {message}", $"{rule}: {Refusal(file)}");
    }

    public static TheoryData<string, Action<byte[]>, string> MarchRules => new()
    {
        { "version", f => f[11] = 2, "header at byte 8: version is 2, expected 1; open it with the software that made it" },
        { "little-endian version", f => Put32(f, AddCowBytes.MarchVersionAt, 1), "header at byte 8: version is 16777216, expected 1; open it with the software that made it" },
        { "reserved first", f => f[AddCowBytes.MarchReservedAt] = 1, ByName("its names and reserved bytes are not where the layout of March 2012 has them") },
        { "reserved last", f => f[AddCowBytes.MarchBitmapAt - 1] = 1, ByName("its names and reserved bytes are not where the layout of March 2012 has them") },
        { "no image", f => f.AsSpan(AddCowBytes.MarchImageAt, 1024).Clear(), ByName("its names and reserved bytes are not where the layout of March 2012 has them") },
        { "image not padded", f => f[AddCowBytes.MarchImageAt + 500] = 1, ByName("its names and reserved bytes are not where the layout of March 2012 has them") },
        { "image without end", f => f.AsSpan(AddCowBytes.MarchImageAt, 1024).Fill((byte)'i'), ByName("its names and reserved bytes are not where the layout of March 2012 has them") },
        { "backing not padded", f => f[AddCowBytes.MarchBackingAt + 500] = 1, ByName("its names and reserved bytes are not where the layout of March 2012 has them") },
    };

    [Theory]
    [MemberData(nameof(MarchRules))]
    public void A_rule_of_the_layout_of_March_2012_is_asked(string rule, Action<byte[]> breakIt, string message)
    {
        byte[] file = Valid.March();
        breakIt(file);
        Assert.True(Refusal(file) == $"overlay: {message}", $"{rule}: {Refusal(file)}");
    }

    [Theory]
    [InlineData(-1)]
    [InlineData(1)]
    [InlineData(4096)]
    public void A_length_other_than_that_of_March_2012_is_another_layout(int difference)
    {
        byte[] file = Valid.March();
        Array.Resize(ref file, file.Length + difference);
        Assert.Equal("overlay: " + ByName($"it has {file.Length} bytes, that of March 2012 would have {file.Length - difference} for this image file"), Refusal(file));
    }

    /// <summary>The layout of June 2012 as far as it is known: 36 bytes of fields, names behind them, the bitmap at 4096.</summary>
    [Fact]
    public void The_layout_of_June_2012_is_refused_by_name()
    {
        byte[] file = new byte[8192];
        Valid.March().AsSpan(0, 12).CopyTo(file);
        foreach ((int at, uint value) in new (int, uint)[] { (12, 36), (16, 4), (20, 40), (24, 5), (28, 1) })
            BinaryPrimitives.WriteUInt32BigEndian(file.AsSpan(at), value);
        "baseimage"u8.CopyTo(file.AsSpan(36));
        Assert.Contains("this is an add-cow of June to October 2012", Refusal(file), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0, "format: the file is empty; if it is a raw disk, state that with -f raw")]
    [InlineData(3, "format: no image format was recognised; if it is a raw disk, state that with -f raw")]
    [InlineData(4, "header: the file has 4 bytes, the header needs 4096; the file is cut short; restore it from a copy")]
    [InlineData(75, "header: the file has 75 bytes, the header needs 4096; the file is cut short; restore it from a copy")]
    [InlineData(4095, "header: the file has 4095 bytes, the header needs 4096; the file is cut short; restore it from a copy")]
    [InlineData(4096, "bitmap at byte 4096: the file ends here; with an image file of 300000 bytes it must have 8192; the file is cut short, "
        + "or \"image\" was enlarged by other software; restore the one that was changed")]
    [InlineData(8191, "bitmap at byte 8191: the file ends here; with an image file of 300000 bytes it must have 8192; the file is cut short, "
        + "or \"image\" was enlarged by other software; restore the one that was changed")]
    public void A_file_that_is_cut_is_refused(int length, string message) =>
        Assert.Equal($"overlay: {message}", Refusal(Valid.Final()[..length]));

    [Theory]
    [InlineData(11)]
    [InlineData(2559)]
    public void A_file_of_March_2012_that_is_cut_is_refused(int length) =>
        Assert.Equal($"overlay: header: the file has {length} bytes, the header needs 2560; the file is cut short; restore it from a copy",
            Refusal(Valid.March()[..length]));

    [Fact]
    public void Unknown_compatible_bits_are_ignored_and_kept()
    {
        byte[] file = (Valid with { CompatFeatures = 0x0070_0000_0000_0002 }).Final();
        SimulatedDisk disk = DiskOf(file);
        using (IDiskImage image = new ImageOpener(disk).Open("overlay", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero }))
        {
            for (int offset = 0; offset < image.Length; offset += 4096)
                image.Write(offset, Pattern.Bytes(3, offset, (int)Math.Min(4096, image.Length - offset)));
            image.Close();
        }

        Assert.Equal(0x0070_0000_0000_0003UL, BinaryPrimitives.ReadUInt64LittleEndian(disk.DurableContent("overlay").AsSpan(AddCowBytes.CompatFeaturesAt)));
    }

    /// <summary>Bits behind the last cluster's in its byte have no meaning; they stay what they are.</summary>
    [Fact]
    public void Padding_bits_are_ignored()
    {
        byte[] file = Valid.Final(); // 74 clusters
        file[4096 + 9] = 0xFC;
        SimulatedDisk disk = DiskOf(file);
        using IDiskImage image = new ImageOpener(disk).Open("overlay", new OpenOptions());
        byte[] last = new byte[300_000 % 4096];
        image.Read(300_000 - last.Length, last);
        Assert.True(last.AsSpan().SequenceEqual(Backing(300_000 - last.Length, last.Length)));
    }

    private static string ByName(string reason) => $"header at byte 0: this is an add-cow of June to October 2012: {reason}; {Older}";

    /// <summary>Bytes of the backing file, which has 200,000.</summary>
    private static byte[] Backing(int offset, int length)
    {
        byte[] bytes = Pattern.Bytes(1, offset, length);
        bytes.AsSpan(Math.Clamp(200_000 - offset, 0, length)).Clear();
        return bytes;
    }

    private static SimulatedDisk DiskOf(byte[] overlay)
    {
        SimulatedDisk disk = new();
        disk.Create("overlay", overlay);
        disk.Create("base", Pattern.Bytes(1, 0, 200_000));
        disk.Create("image", Pattern.Bytes(2, 0, 300_000));
        return disk;
    }

    /// <summary>What is said, read-only as writable; the file stays as it is.</summary>
    private static string Refusal(byte[] overlay)
    {
        SimulatedDisk disk = DiskOf(overlay);
        string said = Open(disk, writable: false);
        Assert.Equal(said, Open(disk, writable: true));
        Assert.True(disk.Content("overlay").AsSpan().SequenceEqual(overlay));
        return said;
    }

    private static string Open(SimulatedDisk disk, bool writable)
    {
        ImageFormatException fault = Assert.Throws<ImageFormatException>(() => new ImageOpener(disk).Open("overlay", new OpenOptions { Writable = writable }).Dispose());
        Assert.DoesNotContain('\n', fault.Message);
        return fault.Message;
    }

    private static void Put32(byte[] file, int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(file.AsSpan(at), value);
}
