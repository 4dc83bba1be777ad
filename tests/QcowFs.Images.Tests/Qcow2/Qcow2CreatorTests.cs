// New images: the same facts as qemu-img's own with the same options, clean by both checks, and nothing half made after a crash.
using System.Text.Json;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class Qcow2CreatorTests : IDisposable
{
    private readonly TempDirectory _temp = new();
    private readonly ImageCreator _creator = new(HostFileSystem.Instance);
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    public static TheoryData<string, long> OptionSets
    {
        get
        {
            TheoryData<string, long> sets = [];
            foreach (string options in (string[])
                [
                    "", "compat=0.10", "compat=v3", "cluster_size=512", "cluster_size=2M", "cluster_size=4k", "refcount_bits=1",
                    "refcount_bits=8", "refcount_bits=64,cluster_size=512", "lazy_refcounts=on", "extended_l2=on",
                    "extended_l2=on,cluster_size=16k", "compression_type=zstd", "preallocation=metadata",
                    "preallocation=metadata,cluster_size=512", "preallocation=metadata,refcount_bits=2", "preallocation=falloc",
                    "preallocation=full", "preallocation=metadata,extended_l2=on", "data_file=@data", "data_file=@data,data_file_raw=on",
                    "data_file=@data,preallocation=metadata",
                ])
            {
                sets.Add(options, 20_000_000);
            }

            sets.Add("", 0);
            sets.Add("", 1);
            sets.Add("", 1L << 40);
            sets.Add("cluster_size=2M", 1L << 50);
            sets.Add("cluster_size=512", 64L << 30);
            return sets;
        }
    }

    [Theory]
    [MemberData(nameof(OptionSets))]
    public void A_new_image_is_what_qemu_img_makes(string options, long size)
    {
        string ours = _temp["ours.qcow2"];
        string theirs = _temp["theirs.qcow2"];
        Create(ours, size, options.Replace("@data", _temp["ours.data"], StringComparison.Ordinal));
        string theirOptions = options.Replace("@data", _temp["theirs.data"], StringComparison.Ordinal);
        Qemu.Img(["create", "-q", "-f", "qcow2", .. theirOptions.Length == 0 ? Array.Empty<string>() : ["-o", theirOptions],
            theirs, size.ToString()]);

        AssertSameFacts(Qemu.Info(theirs), Qemu.Info(ours));
        AssertToldAsQemuTells(theirs);
        AssertToldAsQemuTells(ours);
        Assert.Equal((0, 0), (QemuImg.Check(ours).ExitCode, _opener.Check(ours).ExitCode));
        Assert.Equal(_opener.Check(theirs).AllocatedClusters, _opener.Check(ours).AllocatedClusters);
        Assert.Equal(0, Qemu.TryImg("compare", "-f", "qcow2", "-F", "qcow2", ours, theirs).ExitCode);
        if (size >= 1 << 20)
        {
            Qemu.Io("qcow2", ours, "write -P 5 0 1M", "read -P 5 0 1M");
            Assert.Equal(0, QemuImg.Check(ours).ExitCode);
        }
    }

    [Fact]
    public void Preallocated_space_is_there()
    {
        Create(_temp["full"], 8 << 20, "preallocation=full");
        Create(_temp["falloc"], 8 << 20, "preallocation=falloc");
        Create(_temp["metadata"], 8 << 20, "preallocation=metadata");
        Assert.True(_opener.ReadInfo(_temp["full"]).ActualSize >= 8 << 20);
        Assert.True(_opener.ReadInfo(_temp["falloc"]).ActualSize >= 8 << 20);
        Assert.True(_opener.ReadInfo(_temp["metadata"]).ActualSize < 1 << 20);
    }

    [Fact]
    public void A_backing_file_gives_the_size_and_its_format_is_found_but_never_raw()
    {
        Qemu.Img("create", "-q", "-f", "qcow2", _temp["base.qcow2"], "7M");
        File.WriteAllBytes(_temp["base.raw"], new byte[5000]);
        _creator.Create(new ImageRequest { Path = _temp["a"], Format = "qcow2", BackingName = "base.qcow2" });
        JsonElement info = Qemu.Info(_temp["a"]);
        Assert.Equal(7 << 20, info.GetProperty("virtual-size").GetInt64());
        Assert.Equal("base.qcow2", info.GetProperty("backing-filename").GetString());
        Assert.Equal("qcow2", info.GetProperty("backing-filename-format").GetString());

        Assert.Equal("--backing-format: the backing file has no known magic number; state its format, raw perhaps",
            Assert.Throws<ImageOptionException>(() => _creator.Create(
                new ImageRequest { Path = _temp["b"], Format = "qcow2", BackingName = "base.raw" })).Message);
        Assert.False(File.Exists(_temp["b"]));
        _creator.Create(new ImageRequest { Path = _temp["b"], Format = "qcow2", BackingName = "base.raw", BackingFormat = "raw" });
        Assert.Equal(5120, Qemu.Info(_temp["b"]).GetProperty("virtual-size").GetInt64());

        Assert.Throws<StorageException>(() => _creator.Create(
            new ImageRequest { Path = _temp["c"], Format = "qcow2", BackingName = "gone", BackingFormat = "raw" }));
        Assert.False(File.Exists(_temp["c"]));
    }

    [Theory]
    [InlineData("cluster_size=511", "cluster_size: 511 is not a power of two from 512 to 2097152")]
    [InlineData("cluster_size=256", "cluster_size: 256 is not a power of two from 512 to 2097152")]
    [InlineData("cluster_size=4M", "cluster_size: 4194304 is not a power of two from 512 to 2097152")]
    [InlineData("cluster_size=banana", "cluster_size: \"banana\" is not a size such as 64k or 2M")]
    [InlineData("refcount_bits=0", "refcount_bits: 0 is not a power of two from 1 to 64")]
    [InlineData("refcount_bits=128", "refcount_bits: 128 is not a power of two from 1 to 64")]
    [InlineData("refcount_bits=8,compat=0.10", "refcount_bits: needs compat=1.1")]
    [InlineData("lazy_refcounts=on,compat=0.10", "lazy_refcounts: needs compat=1.1")]
    [InlineData("extended_l2=on,compat=0.10", "extended_l2: needs compat=1.1")]
    [InlineData("compression_type=zstd,compat=0.10", "compression_type: needs compat=1.1")]
    [InlineData("compression_type=lzma", "compression_type: \"lzma\" is not one of zlib, zstd")]
    [InlineData("extended_l2=on,cluster_size=8k", "extended_l2: needs a cluster_size of at least 16k")]
    [InlineData("extended_l2=yes", "extended_l2: \"yes\" is not one of off, on")]
    [InlineData("data_file_raw=on", "data_file_raw: needs data_file")]
    [InlineData("compat=2", "compat: \"2\" is not one of 0.10, 1.1, v2, v3")]
    [InlineData("preallocation=some", "preallocation: \"some\" is not one of off, metadata, falloc, full")]
    [InlineData("encryption=on", "encryption: the format qcow2 has no such option")]
    [InlineData("size=banana", "size: \"banana\" is not a size such as 64k or 2M")]
    [InlineData("size=9E", "size: \"9E\" is not a size such as 64k or 2M")]
    [InlineData("cluster_size=512,size=129G", "SIZE: the disk is too large for this cluster_size; state a larger one")]
    public void A_wrong_option_is_named_and_nothing_is_made(string options, string message)
    {
        Assert.Equal(message, Assert.Throws<ImageOptionException>(() => Create(_temp["x"], 1 << 20, options)).Message);
        Assert.False(File.Exists(_temp["x"]));
    }

    [Fact]
    public void What_is_there_is_never_overwritten()
    {
        File.WriteAllText(_temp["there"], "precious");
        Assert.Throws<StorageException>(() => Create(_temp["there"], 1 << 20, ""));
        Assert.Throws<StorageException>(() => Create(_temp["new"], 1 << 20, "data_file=there"));
        Assert.Equal("precious", File.ReadAllText(_temp["there"]));
        Assert.False(File.Exists(_temp["new"]));
    }

    [Fact]
    public void The_largest_L1_table_is_made_and_not_one_entry_more()
    {
        // 4 Mi entries of 512-byte clusters map 128 GiB.
        Create(_temp["max"], 128L << 30, "cluster_size=512");
        Assert.Equal(0, _opener.Check(_temp["max"]).ExitCode);
        Assert.Throws<ImageOptionException>(() => Create(_temp["more"], (128L << 30) + 1, "cluster_size=512"));
    }

    [Theory]
    [InlineData("")]
    [InlineData("preallocation=metadata,cluster_size=512")]
    [InlineData("data_file=data")]
    public void A_crash_at_any_moment_leaves_no_half_made_image(string options)
    {
        SimulatedDisk disk = new();
        List<SimulatedDisk> crashes = [];
        disk.BeforeCall = _ => crashes.AddRange(disk.EnumerateCrashes(30, 1).Select(crash => crash.Disk));
        new ImageCreator(disk).Create(Request("image", 300_000, options));
        crashes.AddRange(disk.EnumerateCrashes(30, 2).Select(crash => crash.Disk));

        int complete = 0;
        foreach (SimulatedDisk crash in crashes.Where(c => c.Names.Contains("image")))
        {
            using IStorage file = crash.Open("image", readOnly: true);
            if (file.Length == 0 || !Qcow2HeaderReader.HasMagic(crash.Content("image").AsSpan(0, 4)))
                continue;
            Assert.Equal(0, Qcow2Checker.Check(file).ExitCode);
            complete++;
        }

        Assert.True(complete > 0 && crashes.Count > complete);
    }

    [Fact]
    public void A_fault_at_any_call_leaves_no_file()
    {
        for (int nth = 1; ; nth++)
        {
            SimulatedDisk disk = new();
            disk.Fail(StorageCalls.Changes | StorageCalls.Sync, QcowFs.Native.Errno.ENOSPC, nth);
            try
            {
                new ImageCreator(disk).Create(Request("image", 300_000, "data_file=data"));
                Assert.True(nth > 5);
                return;
            }
            catch (StorageException)
            {
                Assert.Empty(disk.Names);
            }
        }
    }

    [Fact]
    public void Raw_images_are_made_too()
    {
        _creator.Create(new ImageRequest { Path = _temp["r"], Format = "raw", Size = 12345 });
        Assert.Equal(12345, new FileInfo(_temp["r"]).Length);
        _creator.Create(new ImageRequest { Path = _temp["f"], Format = "raw", Size = 1 << 20, Options = [new("preallocation", "full")] });
        Assert.True(_opener.ReadInfo(_temp["f"], "raw").ActualSize >= 1 << 20);
        Assert.Throws<ImageOptionException>(() => _creator.Create(new ImageRequest { Path = _temp["n"], Format = "raw" }));
        Assert.Throws<ImageOptionException>(() => _creator.Create(new ImageRequest { Path = _temp["n"], Format = "vmdk", Size = 1 }));
    }

    private void Create(string path, long size, string options) => _creator.Create(Request(path, size, options));

    private static ImageRequest Request(string path, long size, string options) => new()
    {
        Path = path,
        Format = "qcow2",
        Size = size,
        Options = [.. options.Split(',', StringSplitOptions.RemoveEmptyEntries).Select(o => o.Split('='))
            .Select(o => new KeyValuePair<string, string>(o[0], o[1]))],
    };

    private void AssertToldAsQemuTells(string path)
    {
        JsonElement told = Qemu.Info(path);
        ImageFileFacts facts = _opener.ReadInfo(path);
        Assert.Equal(told.GetProperty("virtual-size").GetInt64(), facts.VirtualSize);
        Assert.Equal(told.GetProperty("cluster-size").GetInt64(), facts.ClusterSize);
        Assert.Equal(told.GetProperty("actual-size").GetInt64(), facts.ActualSize);
        Dictionary<string, string> ours = facts.FormatSpecific.ToDictionary(f => f.Key, f => $"{f.Value}");
        Assert.Equal(
            told.GetProperty("format-specific").GetProperty("data").EnumerateObject().ToDictionary(f => f.Name, f => f.Value.ToString()),
            ours);
    }

    private static void AssertSameFacts(JsonElement expected, JsonElement actual)
    {
        foreach (string key in (string[])["virtual-size", "cluster-size", "format", "dirty-flag"])
            Assert.Equal(expected.GetProperty(key).ToString(), actual.GetProperty(key).ToString());
        foreach (JsonProperty fact in expected.GetProperty("format-specific").GetProperty("data").EnumerateObject())
        {
            if (fact.Name != "data-file")
                Assert.Equal(fact.Value.ToString(), actual.GetProperty("format-specific").GetProperty("data").GetProperty(fact.Name).ToString());
        }
    }
}
