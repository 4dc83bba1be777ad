// The check against `qemu-img check` on the same file: clean images of every kind, and one damage for each rule.
using System.Text.Json;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class Qcow2CheckerTests : IDisposable
{
    private readonly TempDirectory _temp = new();

    public void Dispose() => _temp.Dispose();

    [Fact]
    public void Without_its_data_file_an_image_is_not_checked()
    {
        string path = _temp["external.qcow2"];
        Directory.CreateDirectory(_temp["else"]);
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", $"data_file={_temp["data"]}", path, "1M");
        ImageOpener opener = new(HostFileSystem.Instance);
        Assert.Equal((0, 0), (opener.Check(path).ExitCode, QemuImg.Check(path).ExitCode));
        File.Move(_temp["data"], _temp["else/data"]);
        CheckReport report = opener.Check(path);
        Assert.Equal((1, 1), (report.ExitCode, QemuImg.Check(path).ExitCode));
        CheckFinding finding = Assert.Single(report.Findings);
        Assert.Equal(("data-file-unreachable", CheckSeverity.Unchecked), (finding.Kind, finding.Severity));
        Assert.EndsWith("it does not exist", finding.Message, StringComparison.Ordinal);

        // What may not be opened is no matter of the image.
        File.Move(path, _temp["else/external.qcow2"]);
        Assert.Equal(0, opener.Check(_temp["else/external.qcow2"]).ExitCode);
    }

    public static TheoryData<string, string> CleanImages => new()
    {
        { "default", "" },
        { "version 2", "compat=0.10" },
        { "small clusters", "cluster_size=512" },
        { "large clusters", "cluster_size=2M" },
        { "1-bit counts", "refcount_bits=1" },
        { "2-bit counts", "refcount_bits=2,cluster_size=4k" },
        { "4-bit counts", "refcount_bits=4" },
        { "8-bit counts", "refcount_bits=8" },
        { "32-bit counts", "refcount_bits=32,cluster_size=1k" },
        { "64-bit counts", "refcount_bits=64" },
        { "lazy", "lazy_refcounts=on" },
        { "extended", "extended_l2=on" },
        { "preallocated metadata", "preallocation=metadata" },
        { "preallocated", "preallocation=full,cluster_size=32k" },
        { "preallocated extended", "preallocation=metadata,extended_l2=on" },
        { "zstd", "compression_type=zstd" },
    };

    [Theory]
    [MemberData(nameof(CleanImages))]
    public void A_clean_image_is_clean_and_measured_like_qemu(string name, string options)
    {
        string path = _temp[$"{name}.qcow2"];
        Qemu.Img(["create", "-q", "-f", "qcow2", .. options.Length == 0 ? Array.Empty<string>() : ["-o", options], path, "20M"]);
        Qemu.Io("qcow2", path, "write -P 1 1M 3M", "write -z 8M 1M", "write -P 7 10000 777", "discard 2M 512k");
        if (!options.Contains("refcount_bits=1", StringComparison.Ordinal))
        {
            Qemu.Img("snapshot", "-c", "one", path);
            Qemu.Io("qcow2", path, "write -P 3 1M 64k");
            Qemu.Img("snapshot", "-c", "two", path);
        }

        AssertSameReport(path);
        Assert.Equal(0, Check(path).ExitCode);
    }

    [Theory]
    [InlineData("compression_type=zlib")]
    [InlineData("compression_type=zstd,cluster_size=4k")]
    [InlineData("cluster_size=2M")]
    public void Compressed_clusters_are_counted(string options)
    {
        string raw = _temp["data.raw"];
        byte[] data = new byte[5_000_000];
        Random random = new(1);
        for (int i = 0; i < data.Length; i += 1000)
            Array.Fill(data, (byte)random.Next(256), i, random.Next(1000));
        File.WriteAllBytes(raw, data);
        string path = _temp["compressed.qcow2"];
        Qemu.Img("convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, raw, path);
        Qemu.Io("qcow2", path, "write -P 3 1M 100k");

        AssertSameReport(path);
        Assert.Equal(0, Check(path).ExitCode);
        Assert.True(Check(path).CompressedClusters > 0);
    }

    [Fact]
    public void An_image_with_a_data_file_and_one_with_bitmaps_are_clean()
    {
        string external = _temp["external.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", $"data_file={_temp["data.raw"]}", external, "20M");
        Qemu.Io("qcow2", external, "write -P 1 0 3M");
        AssertSameReport(external);

        string bitmaps = _temp["bitmaps.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", bitmaps, "20M");
        Qemu.Img("bitmap", "--add", bitmaps, "first");
        Qemu.Img("bitmap", "--add", "-g", "1M", bitmaps, "second");
        Qemu.Io("qcow2", bitmaps, "write -P 1 0 3M");
        AssertSameReport(bitmaps);
        Assert.Equal(0, Check(bitmaps).ExitCode);
    }

    [Fact]
    public void Small_windows_find_what_one_window_finds()
    {
        string path = MakeImage();
        using (Damage damage = new(path))
        {
            damage.Set16(damage.CountAt(6), 0);
            damage.Set16(damage.CountAt(9), 3);
            damage.Set(damage.L2At(20), damage.Get(damage.L2At(20)) & ~L2Entry.CopiedBit);
        }

        CheckReport whole = Check(path);
        Assert.Equal(2, whole.ExitCode);
        using FileStorage file = HostFiles.Open(path, StorageAccess.Read);
        foreach (int window in (int[])[1, 3, 7, 64])
        {
            CheckReport pieces = Qcow2Checker.Check(file, window);
            Assert.Equal(whole with { Findings = [] }, pieces with { Findings = [] });
            Assert.Equal(whole.Findings.OrderBy(f => f.ToString()), pieces.Findings.OrderBy(f => f.ToString()));
        }
    }

    [Fact]
    public void Progress_rises_from_pass_to_pass_of_the_window()
    {
        string path = MakeImage();
        ImageOpener opener = new(HostFileSystem.Instance);
        List<double> told = [];
        Assert.Equal(opener.Check(path) with { Findings = [] }, opener.Check(path, progress: told.Add) with { Findings = [] });
        Assert.NotEmpty(told);
        using FileStorage file = HostFiles.Open(path, StorageAccess.Read);
        told.Clear();
        _ = Qcow2Checker.Diagnose(file, windowClusters: 5, progress: told.Add);
        Assert.True(told.Count > 3 && told.All(part => part is >= 0 and <= 1));
        Assert.Equal(told.Order(), told);
    }

    // Far from everything else, so that only a window started there can see it.
    [Fact]
    public void A_reference_into_a_region_without_counts_is_found_by_a_window_of_its_own()
    {
        string path = _temp["sparse.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M");
        Qemu.Io("qcow2", path, "write -P 1 0 1k");
        using (Damage hands = new(path))
        {
            hands.SetLength(1L << 30);
            hands.Set(hands.L2At(5), 900L << 20 | L2Entry.CopiedBit);
        }

        using FileStorage file = HostFiles.Open(path, StorageAccess.Read);
        CheckReport report = Qcow2Checker.Check(file, windowClusters: 100);
        Assert.Contains(report.Findings, f => f.Kind == "refcount-too-low" && f.Offset == 900 << 20);
        Assert.Contains(report.Findings, f => f.Kind == "copied-wrong");
        AssertSameReport(path);
    }

    [Fact]
    public void A_file_of_more_clusters_than_can_be_counted_is_not_checked()
    {
        string path = _temp["huge.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M");
        using (Damage hands = new(path))
            hands.SetLength((1L << 31) * 512);
        CheckReport report = Check(path);
        Assert.Equal("too-large", Assert.Single(report.Findings).Kind);
        Assert.Equal((1, 1), (report.ExitCode, QemuImg.Check(path).ExitCode));
    }

    // QEMU lets this pass, since the stream ends less than a cluster past the end of the file. Its data is lost all the same.
    [Fact]
    public void A_compressed_stream_behind_the_end_of_the_file_is_found()
    {
        string path = _temp["lost.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", path, "1M");
        Qemu.Io("qcow2", path, "write -P 1 0 64k");
        using (Damage hands = new(path))
            hands.Set(hands.L2At(5), CompressedDescriptor.Entry(hands.Length + 100, 100, 16).Raw);
        Assert.Contains(Check(path).Findings, f => f.Kind == "out-of-range");
    }

    public static TheoryData<string, string, int> Damages => new()
    {
        { "leak", "leak", 3 },
        { "count too high", "leak", 3 },
        { "count too low", "refcount-too-low", 2 },
        { "count zero", "refcount-too-low", 2 },
        { "header count", "refcount-too-low", 2 },
        { "copied missing", "copied-missing", 2 },
        { "copied wrong", "copied-wrong", 2 },
        { "l1 copied missing", "copied-missing", 2 },
        { "l1 reserved", "reserved-bits", 2 },
        { "l1 misaligned", "misaligned", 2 },
        { "l1 out of range", "out-of-range", 2 },
        { "l1 flag only", "reserved-bits", 2 },
        { "l1 names header", "refcount-too-low", 2 },
        { "l2 reserved", "reserved-bits", 2 },
        { "l2 misaligned", "misaligned", 2 },
        { "l2 zero misaligned", "misaligned", 2 },
        { "l2 out of range", "out-of-range", 2 },
        { "l2 twice", "refcount-too-low", 2 },
        { "l2 names refcount block", "refcount-block", 2 },
        { "compressed copied", "copied-compressed", 2 },
        { "compressed out of range", "out-of-range", 2 },
        { "refcount table reserved", "refcount-table", 2 },
        { "refcount table misaligned", "refcount-table", 1 },
        { "refcount table out of range", "refcount-table", 2 },
        { "refcount block twice", "refcount-block", 2 },
        { "no refcount block", "refcount-too-low", 2 },
        { "snapshot l1 misaligned", "snapshot-l1", 2 },
        { "snapshot l1 too large", "snapshot-l1", 2 },
        { "snapshot extra", "snapshot-incomplete", 2 },
        { "bitmap entry", "bitmap-table", 1 },
    };

    [Theory]
    [MemberData(nameof(Damages))]
    public void Damage_is_named_and_ends_as_in_qemu(string damage, string kind, int exitCode)
    {
        string path = MakeImage();
        using (Damage hands = new(path))
            DamagedImage.Apply(hands, damage);

        CheckReport report = Check(path);
        (int qemuExit, _) = QemuImg.Check(path);
        Assert.Equal(exitCode, report.ExitCode);
        Assert.Equal(qemuExit, report.ExitCode);
        Assert.Contains(report.Findings, f => f.Kind == kind);
    }

    [Fact]
    public void A_file_that_was_cut_is_damaged_and_one_cut_inside_its_last_cluster_is_not()
    {
        string path = _temp["cut.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", path, "20M");
        Qemu.Io("qcow2", path, "write -P 1 0 1M");
        long length = new FileInfo(path).Length;
        foreach ((long cut, int exitCode) in (ReadOnlySpan<(long, int)>)[(100, 0), (65536, 2), (65537, 2), (300_000, 2)])
        {
            using (Damage hands = new(path))
                hands.SetLength(length - cut);
            Assert.Equal(exitCode, Check(path).ExitCode);
            AssertSameReport(path);
        }
    }

    [Fact]
    public void A_missing_COPIED_flag_is_harmless_but_counts_as_a_corruption()
    {
        string path = MakeImage();
        using (Damage hands = new(path))
            DamagedImage.Apply(hands, "copied missing");

        CheckReport report = Check(path);
        CheckFinding finding = Assert.Single(report.Findings);
        Assert.Equal(CheckSeverity.Harmless, finding.Severity);
        Assert.Equal(1, report.Corruptions);
        AssertSameReport(path);
    }

    [Fact]
    public void Subcluster_bitmaps_are_checked()
    {
        foreach ((int entry, ulong bitmap, string kind) in (ReadOnlySpan<(int, ulong, string)>)
            [(16, 0x0000_0001_FFFF_FFFF, "subcluster-bitmap"), (200, 1, "subcluster-bitmap")])
        {
            string path = _temp[$"extended{entry}.qcow2"];
            Qemu.Img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "20M");
            Qemu.Io("qcow2", path, "write -P 1 1M 1M");
            using (Damage hands = new(path))
                hands.Set(hands.L2At(entry) + 8, bitmap);
            CheckReport report = Check(path);
            Assert.Equal(QemuImg.Check(path).ExitCode, report.ExitCode);
            Assert.Equal(2, report.ExitCode);
            Assert.Contains(report.Findings, f => f.Kind == kind);
        }
    }

    [Fact]
    public void Snapshots_and_compression_do_not_go_with_a_data_file()
    {
        string path = _temp["external.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", $"data_file={_temp["data.raw"]}", path, "20M");
        Qemu.Io("qcow2", path, "write -P 1 0 3M");
        using (Damage hands = new(path))
            hands.Set(hands.L2At(5), L2Entry.CompressedBit | 0x50000);
        Assert.Contains(Check(path).Findings, f => f.Kind == "compressed-external");
        Assert.Equal(QemuImg.Check(path).ExitCode, Check(path).ExitCode);
    }

    [Fact]
    public void A_million_findings_are_counted_and_a_thousand_listed()
    {
        string path = _temp["many.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M");
        Qemu.Io("qcow2", path, "write -P 1 0 1M");
        using (Damage hands = new(path))
        {
            for (int i = 0; i < 32; i++)
            {
                for (int j = 0; j < 64; j++)
                    hands.Set(hands.L2At(j, i), hands.Get(hands.L2At(j, i)) & ~L2Entry.CopiedBit);
            }
        }

        CheckReport report = Check(path);
        Assert.Equal(2048, report.Corruptions);
        Assert.Equal(CheckReport.FindingLimit, report.Findings.Count);
        Assert.Equal(1048, report.FindingsNotListed);
        AssertSameReport(path);
    }

    // A file of 33 MiB whose 5,000 snapshots all name the same 32 MiB of L1, every entry of which names the same L2 table: table by
    // table that would be 160 GB of L1 and 20 billion L2 tables.
    [Fact]
    public void Shared_tables_are_read_once()
    {
        string path = _temp["shared.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", path, "64M");
        Qemu.Io("qcow2", path, "write -P 1 0 64k");
        Qemu.Img("snapshot", "-c", "a", path);
        const int snapshots = 5000;
        using (Damage hands = new(path))
        {
            long table = (hands.Length + 0xFFFF) & ~0xFFFFL;
            long l1 = table + (1 << 20);
            ulong shared = hands.Get(hands.L1At(0)) & L1Entry.OffsetMask;
            for (int i = 0; i < snapshots; i++)
            {
                long at = table + i * 64L;
                hands.Set(at, (ulong)l1);
                hands.Set32(at + 8, 1 << 22);
                hands.Set32(at + 36, 24);
            }

            for (int i = 0; i < 1 << 16; i++)
                hands.Set(l1 + i * 8L, shared);
            hands.SetLength(l1 + (32 << 20));
            hands.Set32(Qcow2HeaderLayout.SnapshotCountAt, snapshots);
            hands.Set(Qcow2HeaderLayout.SnapshotsOffsetAt, (ulong)table);
        }

        CheckReport report = Check(path);
        Assert.Equal(2, report.ExitCode);
        Assert.Contains(report.Findings, f => f.Message.Contains("327680001 references", StringComparison.Ordinal));
    }

    private string MakeImage() => DamagedImage.Make(_temp);

    private static CheckReport Check(string path)
    {
        using FileStorage file = HostFiles.Open(path, StorageAccess.Read);
        return Qcow2Checker.Check(file);
    }

    private static void AssertSameReport(string path)
    {
        CheckReport report = Check(path);
        (int exitCode, JsonElement? qemu) = QemuImg.Check(path);
        Assert.Equal(exitCode, report.ExitCode);
        Assert.Equal(Number(qemu, "check-errors"), report.CheckErrors);
        Assert.Equal(Number(qemu, "corruptions"), report.Corruptions);
        Assert.Equal(Number(qemu, "leaks"), report.Leaks);
        Assert.Equal(Number(qemu, "image-end-offset"), report.ImageEndOffset);
        Assert.Equal(Number(qemu, "total-clusters"), report.TotalClusters);
        Assert.Equal(Number(qemu, "allocated-clusters"), report.AllocatedClusters);
        Assert.Equal(Number(qemu, "compressed-clusters"), report.CompressedClusters);
    }

    // qemu-img leaves out what is 0.
    private static long Number(JsonElement? report, string key) =>
        report is { } facts && facts.TryGetProperty(key, out JsonElement value) ? value.GetInt64() : 0;
}
