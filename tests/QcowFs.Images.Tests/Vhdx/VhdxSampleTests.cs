// Images of other programs read as QEMU reads them; images of ours are accepted by QEMU and read the same.
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Vhdx;

public sealed class VhdxSampleTests : IDisposable
{
    private readonly TempDirectory _temp = new();
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    [SkippableFact]
    public void Hyper_Vs_image_reads_as_QEMU_reads_it()
    {
        Samples.Unpack(Samples.HyperVVhdx, _temp["disk.vhdx"]);
        Assert.Equal(0, _opener.Check(_temp["disk.vhdx"]).ExitCode);
        ReadsAsQemuReadsIt(_temp["disk.vhdx"], _temp["disk.vhdx"]);
    }

    /// <summary>Read-only, the dirty log is replayed in memory: the same bytes as after QEMU's replay, and the file as it was.</summary>
    [SkippableFact]
    public void A_dirty_log_is_replayed_in_memory_and_in_the_file()
    {
        string path = _temp["disk.vhdx"];
        Samples.Unpack(Samples.DirtyVhdx, path);
        File.Copy(path, _temp["qemu.vhdx"]);
        Assert.Equal(0, Qemu.TryImg("check", "-r", "all", "-f", "vhdx", _temp["qemu.vhdx"]).ExitCode);
        byte[] before = File.ReadAllBytes(path);
        ImageFileFacts facts = _opener.ReadInfo(path);
        Assert.True(facts.IsDirty);
        Assert.StartsWith("in use, or not closed properly: 2 log entries with 4096 bytes of metadata must be replayed", facts.Log, StringComparison.Ordinal);
        List<string> log = [];
        using (IDiskImage image = _opener.Open(path, new OpenOptions { Log = log.Add }))
            Assert.Equal("the last writer did not end properly; 2 log entries with 4096 bytes of metadata were replayed in memory, the file is unchanged", image.Info.Recovery);
        Assert.Single(log);
        ReadsAsQemuReadsIt(path, _temp["qemu.vhdx"]);
        Assert.True(before.AsSpan().SequenceEqual(File.ReadAllBytes(path)), "reading changed the file");

        using (IDiskImage image = _opener.Open(path, new OpenOptions { Writable = true }))
        {
            Assert.EndsWith("were replayed", image.Info.Recovery, StringComparison.Ordinal);
            image.Close();
        }

        Assert.Equal("empty", _opener.ReadInfo(path).Log);
        Qemu.Img("compare", "-q", "-f", "vhdx", "-F", "vhdx", path, _temp["qemu.vhdx"]);
        ReadsAsQemuReadsIt(path, path);
        Assert.Equal(0, _opener.Check(path).ExitCode);
    }

    [SkippableTheory]
    [InlineData("", "100M")]
    [InlineData("block_size=1M", "30M")]
    [InlineData("block_size=2M,log_size=2M", "30M")]
    [InlineData("block_size=256M", "300M")]
    [InlineData("subformat=fixed", "20M")]
    [InlineData("block_state_zero=off", "20M")]
    [InlineData("", "1000")]
    public void QEMU_reads_what_we_write_and_we_what_it_writes(string options, string size)
    {
        Tools.Require("qemu-img", "qemu-io");
        ImageCreator creator = new(HostFileSystem.Instance);
        long bytes = size.EndsWith('M') ? long.Parse(size[..^1], null) << 20 : long.Parse(size, null);
        List<KeyValuePair<string, string>> list = [.. options.Split(',', StringSplitOptions.RemoveEmptyEntries).Select(o => new KeyValuePair<string, string>(o.Split('=')[0], o.Split('=')[1]))];
        creator.Create(new ImageRequest { Path = _temp["ours.vhdx"], Format = "vhdx", Size = bytes, Options = list });
        Qemu.Img(["create", "-q", "-f", "vhdx", .. options.Length > 0 ? new[] { "-o", options } : [], _temp["theirs.vhdx"], size]);
        long length = (bytes + 511) / 512 * 512;
        byte[] model = new byte[length];
        foreach (string name in new[] { "ours.vhdx", "theirs.vhdx" })
        {
            using IDiskImage image = _opener.Open(_temp[name], new OpenOptions { Writable = true });
            Assert.Equal(length, image.Length);
            for (long at = 5000; at + 70_000 < length; at += 7_000_000)
            {
                byte[] written = Pattern.Bytes(3, at, 70_000);
                written.CopyTo(model, at);
                image.Write(at, written);
                model.AsSpan((int)at + 3000, 5000).Clear();
                image.Discard(at + 3000, 5000);
            }

            image.Close();
        }

        File.WriteAllBytes(_temp["model"], model);
        foreach (string name in new[] { "ours.vhdx", "theirs.vhdx" })
        {
            Qemu.Img("check", "-q", "-f", "vhdx", _temp[name]);
            Qemu.Img("compare", "-q", "-f", "vhdx", "-F", "raw", _temp[name], _temp["model"]);
            Assert.Equal(0, _opener.Check(_temp[name]).ExitCode);
            if (length < 2_000_000)
                continue;
            // And QEMU goes on writing in it.
            Qemu.Io("vhdx", _temp[name], "write -P 9 1M 64k", "write -P 8 17M 1M");
            ReadsAsQemuReadsIt(_temp[name], _temp[name]);
            Assert.Equal(0, _opener.Check(_temp[name]).ExitCode);
        }
    }

    [Fact]
    public void Options_have_their_bounds()
    {
        Assert.Equal("block_size: 524288 is not a power of two from 1M to 256M", Refusal(1 << 20, "block_size=512k"));
        Assert.Equal("block_size: 536870912 is not a power of two from 1M to 256M", Refusal(1 << 20, "block_size=512M"));
        Assert.Equal("block_size: 3145728 is not a power of two from 1M to 256M", Refusal(1 << 20, "block_size=3M"));
        Assert.Equal("log_size: 4096 is not a multiple of 1M up to 1G", Refusal(1 << 20, "log_size=4k"));
        Assert.Equal("SIZE: 70368744177665 bytes are more than the 64 TiB that a VHDX disk can have", Refusal((64L << 40) + 1, ""));
        Assert.Equal("SIZE: a VHDX disk cannot be empty", Refusal(0, ""));
        Assert.StartsWith("logical_sector_size: \"1024\" is not one of 512, 4096", Refusal(1 << 20, "logical_sector_size=1024"), StringComparison.Ordinal);
        Assert.StartsWith("subformat: \"sparse\" is not one of dynamic, fixed", Refusal(1 << 20, "subformat=sparse"), StringComparison.Ordinal);
        Assert.False(File.Exists(_temp["new.vhdx"]));

        string Refusal(long size, string option) => Assert.Throws<ImageOptionException>(() => new ImageCreator(HostFileSystem.Instance).Create(new ImageRequest
        {
            Path = _temp["new.vhdx"],
            Format = "vhdx",
            Size = size,
            Options = option.Length == 0 ? [] : [new KeyValuePair<string, string>(option.Split('=')[0], option.Split('=')[1])],
        })).Message;
    }

    /// <summary>A file that a crash left half made is no image.</summary>
    [Fact]
    public void A_new_file_is_an_image_only_when_all_of_it_is_durable()
    {
        VhdxCreateOptions options = new() { VirtualSize = 3 << 20, BlockSize = 1 << 20, LogSize = 1 << 20, LogicalSectorSize = 512, IsFixed = true };
        SimulatedDisk whole = new();
        VhdxCreator.Create(whole.Create("image"), options, Native.GuidSource.System);
        for (long tick = 1; tick <= whole.Clock; tick++)
        {
            SimulatedDisk disk = new();
            SimulatedStorage file = disk.Create("image");
            disk.CrashAt(tick);
            Assert.Throws<SimulatedCrashException>(() => VhdxCreator.Create(file, options, Native.GuidSource.System));
            foreach ((CrashChoice _, SimulatedDisk left) in disk.EnumerateCrashes(6, (ulong)tick))
            {
                using IStorage survivor = left.Open("image", readOnly: true);
                byte[] start = new byte[8];
                survivor.Read(0, start);
                if (new VhdxFormat().Recognises(start))
                    Assert.Equal(0, VhdxChecker.Check(survivor).ExitCode);
            }
        }
    }

    private void ReadsAsQemuReadsIt(string path, string qemuPath)
    {
        Qemu.Img("convert", "-f", "vhdx", "-O", "raw", qemuPath, _temp["by-qemu"]);
        using FileStream theirs = File.OpenRead(_temp["by-qemu"]);
        using IDiskImage image = _opener.Open(path, new OpenOptions());
        Assert.Equal(theirs.Length, image.Length);
        byte[] ours = new byte[1 << 20];
        byte[] expected = new byte[1 << 20];
        for (long at = 0; at < image.Length; at += ours.Length)
        {
            int length = (int)Math.Min(ours.Length, image.Length - at);
            image.Read(at, ours.AsSpan(0, length));
            theirs.ReadExactly(expected, 0, length);
            Assert.True(ours.AsSpan(0, length).SequenceEqual(expected.AsSpan(0, length)), $"{path}: other bytes than QEMU's in the MiB at byte {at}");
        }
    }
}
