// What a VHDX may say: each bound at open, one row a rule, with the structure, the place and the words of the refusal; and the defects
// that other programs shipped (CVE-2014-0148, and sizes that no checksum covers, used in two widths).
using System.Diagnostics;
using QcowFs.Images.Tests.Support;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Vhdx;

public sealed class VhdxStructureTests
{
    private static readonly VhdxFile Sample = VhdxFile.Sample();

    private static VhdxFile New() => new([.. Sample.Bytes]);

    // CVE-2014-0148: block and sector sizes that make the table's arithmetic wrong or endless.
    [Theory]
    [InlineData(0UL)]
    [InlineData(1UL)]
    [InlineData(512UL)]
    [InlineData((1UL << 20) - 512)]
    [InlineData(3UL << 20)]
    [InlineData(512UL << 20)]
    [InlineData(1UL << 31)]
    [InlineData(0xFFFFFFFFUL)]
    public void Block_sizes_are_powers_of_two_from_1_to_256_MiB(ulong size) =>
        IsRefused(file => file.Set(file.Item(VhdxGuids.FileParameters), 4, size), $"file parameters at byte 2162688: the block size is {size}, expected a power of two from 1 MiB to 256 MiB");

    [Theory]
    [InlineData(0UL)]
    [InlineData(1UL)]
    [InlineData(1024UL)]
    [InlineData(0x80000000UL)]
    public void Sector_sizes_are_512_or_4096(ulong size)
    {
        IsRefused(file => file.Set(file.Item(VhdxGuids.LogicalSectorSize), 4, size), $"{size} bytes, expected 512 or 4096");
        IsRefused(file => file.Set(file.Item(VhdxGuids.PhysicalSectorSize), 4, size), $"{size} bytes, expected 512 or 4096");
    }

    // The defects of 2026: a size of 64 bits that no checksum covers, and a count of entries cut to 32.
    [Theory]
    [InlineData((64UL << 40) + 512, "expected at most 64 TiB")]
    [InlineData(64UL << 40, "needs 67125247 entries, the region has room for 131072")]
    [InlineData(1UL << 52, "expected at most 64 TiB")]
    [InlineData((1UL << 52) + (8UL << 20), "expected at most 64 TiB")]
    [InlineData(ulong.MaxValue - 511, "expected at most 64 TiB")]
    [InlineData((8UL << 20) + 1, "in sectors of 512 bytes")]
    [InlineData(131073UL << 20, "needs 131105 entries")]
    public void The_virtual_size_is_bounded_in_64_bits(ulong size, string problem) =>
        IsRefused(file => file.Set(file.Item(VhdxGuids.VirtualDiskSize), 8, size), problem);

    [Fact]
    public void A_table_that_just_fits_is_taken()
    {
        // 131072 entries: so many blocks with one entry for each 4096 of them.
        const ulong blocks = 131072 - 31;
        using MemoryStorage file = New().Set(Sample.Item(VhdxGuids.VirtualDiskSize), 8, blocks << 20).Storage();
        Assert.Equal(131072, VhdxLayout.Read(file).Geometry.EntryCount);
    }

    [Theory]
    [InlineData(16, 8, 0UL, "is not a multiple", "offset 0")]
    [InlineData(16, 8, 0x80000UL, "is not a multiple", "offset 524288")]
    [InlineData(16, 8, 1UL << 63, "reaches past the end", "at byte 9223372036854775808")]
    [InlineData(16, 8, 0xFFFFFFFFFFF00000UL, "reaches past the end", "at byte 18446744073708503040")]
    [InlineData(24, 4, 0UL, "is not a multiple", "length 0")]
    [InlineData(24, 4, 0xFFF00000UL, "reaches past the end", "4293918720 bytes")]
    [InlineData(16, 8, 1UL << 20, "overlaps the log", "the region at byte 1048576")]
    public void Regions_lie_in_the_file_apart_from_each_other(int at, int width, ulong value, string problem, string found)
    {
        string text = Refusal(file => file.Set(VhdxFile.Regions1 + 16 + at, width, value));
        Assert.Contains(found, text, StringComparison.Ordinal);
        Assert.True(text.Contains(problem, StringComparison.Ordinal) || text.Contains("expected multiples of 1 MiB past the first", StringComparison.Ordinal), text);
    }

    [Fact]
    public void Region_tables_say_each_thing_once_and_nothing_unknown_that_is_required()
    {
        IsRefused(file => file.Set(VhdxFile.Regions1 + 16 + 16, 8, (ulong)file.Metadata), "overlaps the one at byte");
        IsRefused(file => CopyEntry(file, VhdxFile.Regions1 + 48, VhdxFile.Regions1 + 16), "is there twice");
        IsRefused(file => file.Set(VhdxFile.Regions1 + 16, 4, 1), "is required and not known; use software that knows it");
        IsRefused(file => file.Set(VhdxFile.Regions1 + 16, 4, 1).Set(VhdxFile.Regions1 + 16 + 28, 4, 0), "there is no BAT region");
        IsRefused(
            file =>
            {
                file.Set(VhdxFile.Regions1 + 8, 4, 2048);
                return file.Set(VhdxFile.Regions2 + 8, 4, 2048);
            },
            "neither it nor its copy at byte 262144 has its signature and a right checksum");
    }

    [Fact]
    public void Either_copy_of_header_and_region_table_will_do()
    {
        foreach (int damaged in new[] { VhdxFile.Header1, VhdxFile.Header2, VhdxFile.Regions1, VhdxFile.Regions2 })
        {
            VhdxFile file = New();
            file.Bytes[damaged + 100] ^= 1;
            using MemoryStorage storage = file.Storage();
            Assert.Equal(8 << 20, VhdxLayout.Read(storage).Metadata.VirtualSize);
            Assert.Equal(2, VhdxChecker.Check(storage).ExitCode);
            CheckReport report = VhdxRepair.Run(storage, RepairMode.All, Native.GuidSource.System);
            Assert.Equal((0, 1), (report.ExitCode, report.CorruptionsFixed));
        }

        VhdxFile both = New();
        both.Bytes[VhdxFile.Header1 + 100] ^= 1;
        both.Bytes[VhdxFile.Header2 + 100] ^= 1;
        Assert.Contains("neither it nor the one at byte 131072 has its signature and a right checksum", Refusal(_ => both), StringComparison.Ordinal);
    }

    [Fact]
    public void Headers_with_one_number_are_twins_or_damaged()
    {
        VhdxFile twins = New();
        twins.Bytes.AsSpan(VhdxFile.Header2, 4096).CopyTo(twins.Bytes.AsSpan(VhdxFile.Header1));
        using (MemoryStorage storage = twins.Storage())
            Assert.True(VhdxHeaders.Read(storage).OtherIsValid);
        IsRefused(file => file.Set(VhdxFile.Header1 + 8, 8, file.Get64(VhdxFile.Header2 + 8)).Set(VhdxFile.Header1 + 20, 1, 7), "and they differ");
    }

    [Theory]
    [InlineData(66, 2, 2UL, "its version is 2, expected 1")]
    [InlineData(68, 4, 4096UL, "is not a multiple of 1 MiB")]
    [InlineData(72, 8, 4096UL, "is not a multiple of 1 MiB past the first")]
    [InlineData(72, 8, 0UL, "is not a multiple of 1 MiB past the first")]
    [InlineData(72, 8, 0x7FFFFFFFFFF00000UL, "reaches past the end of the file")]
    [InlineData(72, 8, 0xFFFFFFFFFFF00000UL, "reaches past the end of the file")]
    public void Headers_make_sense(int at, int width, ulong value, string problem) =>
        IsRefused(file => file.Set(VhdxFile.Header1 + at, width, value).Set(VhdxFile.Header2 + at, width, value), problem);

    /// <summary>An empty log of another version is no reason not to open the file; what we write into it has version 0.</summary>
    [Fact]
    public void An_empty_log_of_an_unknown_version_becomes_one_of_ours()
    {
        VhdxFile file = New().Set(VhdxFile.Header1 + 64, 2, 7).Set(VhdxFile.Header2 + 64, 2, 7);
        using MemoryStorage left = new("image");
        using (MemoryStorage storage = file.Storage())
        {
            Assert.Equal("log-version", Assert.Single(VhdxChecker.Check(storage).Findings).Kind);
            using IDiskImage image = new ImageOpener(new OneImage(file.Bytes, storage)).Open("image", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero });
            image.Write(0, [9]);
            image.Sync();
            byte[] bytes = new byte[storage.Length];
            storage.Read(0, bytes);
            left.Write(0, bytes);
        }

        Assert.NotNull(VhdxLayout.Read(left).Log);
        using MemoryStorage repaired = file.Storage();
        Assert.Equal((0, 1L), (VhdxRepair.Run(repaired, RepairMode.All, Native.GuidSource.System).ExitCode, VhdxChecker.Check(file.Storage()).Corruptions));
        Assert.Equal(0, VhdxHeaders.Read(repaired).Current.LogVersion);
    }

    [Fact]
    public void Metadata_items_lie_in_the_region_and_are_known_where_required()
    {
        IsRefused(file => file.Set(file.Metadata, 1, 0), "it does not begin with its signature");
        IsRefused(file => file.Set(file.Metadata + 10, 2, 2048), "it has 2048 entries, at most 2047 are allowed");
        IsRefused(file => file.Set(file.ItemEntry(VhdxGuids.DiskId) + 16, 4, 100), "does not lie in the region's 1048576 bytes behind the table");
        IsRefused(file => file.Set(file.ItemEntry(VhdxGuids.DiskId) + 16, 4, 0xFFFFFFF0), "does not lie in the region");
        IsRefused(file => file.Set(file.ItemEntry(VhdxGuids.DiskId) + 20, 4, 1 << 20), "does not lie in the region");
        IsRefused(file => file.Set(file.ItemEntry(VhdxGuids.PhysicalSectorSize) + 20, 4, 5), "the item for the physical sector size has 5 bytes, expected 4");
        IsRefused(file => file.Set(file.ItemEntry(VhdxGuids.DiskId) + 16, 4, 65536), "overlaps the one at offset 65536");
        IsRefused(file => file.Set(file.ItemEntry(VhdxGuids.DiskId), 4, 1), "is required and not known; use software that knows it");
        IsRefused(file => file.Set(file.ItemEntry(VhdxGuids.DiskId), 4, 1).Set(file.ItemEntry(VhdxGuids.FileParameters) - 32 + 24 + 96, 4, 0), "there is no item for the disk identifier");
        IsRefused(file => file.Set(file.Item(VhdxGuids.FileParameters) + 4, 4, 2), "the disk has a parent but no parent locator");
        IsRefused(file => CopyEntry(file, (int)file.ItemEntry(VhdxGuids.DiskId), (int)file.ItemEntry(VhdxGuids.VirtualDiskSize)), "is there twice");
    }

    [Theory]
    [InlineData(4UL, "its state is 4, which does not exist")]
    [InlineData(7UL | 4UL << 20, "it is partially present, and the disk has no parent")]
    [InlineData(6UL, "its block lies in the header area")]
    [InlineData(6UL | 6UL << 20, "its block at byte 6291456 reaches past the end of the file at byte 6291456")]
    [InlineData(6UL | 1UL << 63, "its block at byte 9223372036854775808 reaches past the end of the file")]
    [InlineData(0xFFFFFFFFFFF00006UL, "reaches past the end of the file")]
    public void Entries_that_lead_nowhere_are_refused_where_they_are_met(ulong entry, string problem)
    {
        VhdxFile file = New().Set(Sample.Bat + 8, 8, entry);
        ImageOpener opener = new(new OneImage(file.Bytes));
        using (IDiskImage image = opener.Open("image", new OpenOptions()))
        {
            image.Read(0, new byte[1 << 20]);
            ImageFormatException met = Assert.Throws<ImageFormatException>(() => image.Read(1 << 20, new byte[10]));
            Assert.StartsWith($"image: BAT at byte {file.Bat + 8}: block 1: it", met.Message, StringComparison.Ordinal);
            Assert.Contains(problem, met.Message, StringComparison.Ordinal);
        }

        Assert.Contains(problem, Assert.Throws<ImageFormatException>(() => opener.Open("image", new OpenOptions { Writable = true })).Message, StringComparison.Ordinal);
        CheckReport report = opener.Check("image");
        Assert.Equal(2, report.ExitCode);
        Assert.Contains(report.Findings, finding => finding.Message.Contains(problem, StringComparison.Ordinal) && finding.Repair == "none");
    }

    [Fact]
    public void Entries_that_only_break_a_rule_are_mended()
    {
        VhdxFile file = New().Set(Sample.Bat + 8, 8, 2UL | 5UL << 20).Set(Sample.Bat + 16, 8, 0xFF8);
        using MemoryStorage storage = file.Storage();
        Assert.Equal((2, 2L, 2L), (VhdxChecker.Check(storage).ExitCode, VhdxChecker.Check(storage).Corruptions, VhdxChecker.Check(storage).HarmlessCorruptions));
        CheckReport report = VhdxRepair.Run(storage, RepairMode.All, Native.GuidSource.System);
        Assert.Equal((0, 2), (report.ExitCode, report.CorruptionsFixed));
        byte[] entries = new byte[16];
        storage.Read(file.Bat + 8, entries);
        Assert.Equal([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], entries);
    }

    [Fact]
    public void Old_states_and_reserved_places_read_as_zeros_and_stay_theirs()
    {
        // Block 0 is trimmed but keeps its place: whoever writes it again may use it, so it is nobody else's.
        VhdxFile file = New().Set(Sample.Bat, 8, (Sample.Get64(Sample.Bat) & ~7UL) | 3);
        MemoryStorage storage = file.Storage();
        using (IDiskImage image = new ImageOpener(new OneImage(file.Bytes, storage)).Open("image", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero }))
        {
            byte[] read = new byte[3000];
            image.Read(0, read);
            Assert.DoesNotContain(read, value => value != 0);
            image.Write(2 << 20, [1]);
            image.Close();
        }

        byte[] bytes = new byte[storage.Length];
        storage.Read(0, bytes);
        VhdxFile after = new(bytes);
        Assert.NotEqual(Sample.Get64(Sample.Bat) & ~7UL, after.Get64(after.Bat + 16) & ~7UL);
        foreach (ulong state in new ulong[] { 1, 2, 5 })
        {
            using IDiskImage image = new ImageOpener(new OneImage(New().Set(Sample.Bat, 8, state).Bytes)).Open("image", new OpenOptions());
            Assert.Equal(ExtentKind.Zero, image.QueryExtent(0, 100).Kind);
        }
    }

    [Fact]
    public void A_short_last_block_of_an_old_writer_is_taken()
    {
        // The disk ends 300 KiB into its last block, and the file with it.
        VhdxFile file = New().Set(Sample.Item(VhdxGuids.VirtualDiskSize), 8, (5 << 20) + (300 << 10));
        file.Cut((5 << 20) + (300 << 10));
        MemoryStorage storage = file.Storage();
        using (IDiskImage image = new ImageOpener(new OneImage(file.Bytes, storage)).Open("image", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero }))
        {
            byte[] read = new byte[3000];
            image.Read(5 << 20, read);
            Assert.Equal(Pattern.Bytes(2, 0, 3000), read);
            image.Write((5 << 20) + (299 << 10), new byte[] { 1, 2, 3 });
            image.Write(3 << 20, new byte[] { 4, 5, 6 });
            image.Close();
        }

        Assert.Equal(0, VhdxChecker.Check(storage).ExitCode);
    }

    [Fact]
    public void A_file_of_impossible_length_is_not_written()
    {
        MemoryStorage storage = Sample.Storage();
        storage.SetLength((1L << 47) + 1);
        ImageOpener opener = new(new OneImage([], storage));
        opener.Open("image", new OpenOptions()).Dispose();
        Assert.Contains("more than a disk of 64 TiB can need", Assert.Throws<ImageFormatException>(() => opener.Open("image", new OpenOptions { Writable = true })).Message, StringComparison.Ordinal);
    }

    /// <summary>A table of a 64 TiB disk is read for its free space in bounded memory.</summary>
    [Fact]
    public void The_largest_disk_is_opened_in_bounded_memory()
    {
        MemoryStorage file = new("image");
        VhdxCreator.Create(file, new VhdxCreateOptions { VirtualSize = 64L << 40, BlockSize = 32 << 20, LogSize = 1 << 20, LogicalSectorSize = 512 }, Native.GuidSource.System);
        long before = GC.GetAllocatedBytesForCurrentThread();
        Stopwatch watch = Stopwatch.StartNew();
        using (IDiskImage image = new ImageOpener(new OneImage([], file)).Open("image", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero }))
        {
            image.Write((64L << 40) - 512, Pattern.Bytes(1, 0, 512));
            image.Close();
        }

        Assert.True(GC.GetAllocatedBytesForCurrentThread() - before < 64 << 20);
        Assert.True(watch.Elapsed < TimeSpan.FromSeconds(20));
        Assert.Equal(0, VhdxChecker.Check(file).ExitCode);
    }

    private static VhdxFile CopyEntry(VhdxFile file, int from, int to)
    {
        file.Bytes.AsSpan(from, 16).CopyTo(file.Bytes.AsSpan(to));
        return file.Seal();
    }

    private static void IsRefused(Func<VhdxFile, VhdxFile> damage, string problem) =>
        Assert.Contains(problem, Refusal(damage), StringComparison.Ordinal);

    /// <summary>The one refusal that facts, check, reading and writing give.</summary>
    private static string Refusal(Func<VhdxFile, VhdxFile> damage)
    {
        ImageOpener opener = new(new OneImage(damage(New()).Bytes));
        HashSet<string> refusals = [];
        foreach (Action use in (Action[])
            [
                () => opener.ReadInfo("image"), () => opener.Check("image"), () => opener.Repair("image", RepairMode.All),
                () => opener.Open("image", new OpenOptions()), () => opener.Open("image", new OpenOptions { Writable = true }),
            ])
        {
            refusals.Add(Assert.Throws<ImageFormatException>(use).Message);
        }

        return Assert.Single(refusals);
    }
}
