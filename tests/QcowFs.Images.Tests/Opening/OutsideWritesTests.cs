// A disk whose file somebody else writes to for a while, as the kernel does by passthrough.
using Microsoft.Win32.SafeHandles;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Opening;

public sealed class OutsideWritesTests : IDisposable
{
    private const int Size = 1 << 20;
    private static readonly OpenOptions Writable = new() { Writable = true };

    private readonly TempDirectory _temp = new();
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    [Fact]
    public void A_raw_disk_grows_with_its_file()
    {
        File.WriteAllBytes(_temp["disk"], new byte[Size]);
        using IDiskImage image = _opener.Open(_temp["disk"], Writable with { Format = "raw" });
        Assert.True(image.TryBeginOutsideWrites(out SafeFileHandle? file));
        RandomAccess.Write(file, "past"u8, Size);
        Assert.Equal(Size + 4, image.Length);
        image.EndOutsideWrites();
        Assert.Equal(Size + 4, image.Length);
        byte[] read = new byte[6];
        image.Read(Size - 1, read);
        Assert.Equal("\0past\0"u8.ToArray(), read);
        Assert.True(image.TryGetIdentityFile(out _));
        image.Discard(Size, 4);
        image.Close();
    }

    [SkippableTheory]
    [InlineData("data_file=data,data_file_raw=on,preallocation=metadata", true)]
    [InlineData("data_file=data", false)] // nothing is mapped
    [InlineData("preallocation=full", false)] // not at its own offset
    public void A_qcow2_is_its_data_file_where_all_of_it_is_mapped_there(string options, bool isIdentity)
    {
        MakeQcow2(options);
        using (IDiskImage read = _opener.Open(_temp["disk"], new OpenOptions()))
        {
            Assert.Equal(isIdentity, read.TryGetIdentityFile(out _));
            Assert.False(read.TryBeginOutsideWrites(out _));
        }

        byte[] before = File.ReadAllBytes(_temp["disk"]);
        using IDiskImage image = _opener.Open(_temp["disk"], Writable);
        Assert.Equal(isIdentity, image.TryBeginOutsideWrites(out _));
        // Not even a mark, where it comes to nothing.
        if (!isIdentity)
            Assert.Equal(before, File.ReadAllBytes(_temp["disk"]));
        image.EndOutsideWrites();
        image.Close();
        RunQemuImg("check", "-q", "disk");
    }

    [SkippableFact]
    public void A_data_file_that_is_longer_or_shorter_is_not_the_disk()
    {
        MakeQcow2("data_file=data,data_file_raw=on,preallocation=metadata");
        foreach (int length in (int[])[Size + 1, Size - 512])
        {
            using (FileStream data = new(_temp["data"], FileMode.Open))
                data.SetLength(length);
            using IDiskImage image = _opener.Open(_temp["disk"], Writable);
            Assert.False(image.TryGetIdentityFile(out _));
            Assert.False(image.TryBeginOutsideWrites(out _));
        }
    }

    [SkippableFact]
    public void Discarding_and_zeroing_meanwhile_leave_the_map_and_zero_the_file()
    {
        MakeQcow2("data_file=data,data_file_raw=on,preallocation=metadata");
        File.WriteAllBytes(_temp["data"], Pattern.Bytes(3, 0, Size));
        using (IDiskImage image = _opener.Open(_temp["disk"], Writable))
        {
            Assert.True(image.TryBeginOutsideWrites(out SafeFileHandle? file));
            image.Discard(0, 256 << 10);
            image.WriteZeroes(512 << 10, 128 << 10);
            for (long at = 0; at < Size;)
            {
                Extent extent = image.QueryExtent(at, Size - at);
                Assert.Equal((ExtentKind.Data, at), (extent.Kind, extent.Host));
                at += extent.Length;
            }

            // A zero cluster would hide this from every reader of the image.
            RandomAccess.Write(file, "after"u8, 70_000);
            RandomAccess.Write(file, "after"u8, 600_000);
            image.EndOutsideWrites();
            image.Close();
        }

        byte[] expected = Pattern.Bytes(3, 0, Size);
        expected.AsSpan(0, 256 << 10).Clear();
        expected.AsSpan(512 << 10, 128 << 10).Clear();
        "after"u8.CopyTo(expected.AsSpan(70_000));
        "after"u8.CopyTo(expected.AsSpan(600_000));
        using (IDiskImage image = _opener.Open(_temp["disk"], new OpenOptions()))
        {
            byte[] read = new byte[Size];
            image.Read(0, read);
            Assert.True(read.AsSpan().SequenceEqual(expected));
        }

        RunQemuImg("check", "-q", "disk");
    }

    [SkippableFact]
    public void What_is_past_the_end_of_an_images_disk_is_cut_off_when_it_ends()
    {
        MakeQcow2("data_file=data,data_file_raw=on,preallocation=metadata");
        List<string> log = [];
        using IDiskImage image = _opener.Open(_temp["disk"], Writable with { Log = log.Add });
        Assert.True(image.TryBeginOutsideWrites(out SafeFileHandle? file));
        RandomAccess.Write(file, "past"u8, Size);
        Assert.Equal(Size, image.Length);
        image.EndOutsideWrites();
        Assert.Equal(Size, new FileInfo(_temp["data"]).Length);
        Assert.Contains("4 bytes had been written past the end", Assert.Single(log), StringComparison.Ordinal);
        Assert.True(image.TryGetIdentityFile(out _));
        image.Close();
    }

    [SkippableFact]
    public void An_image_that_must_see_every_write_does_not_let_others_write()
    {
        MakeQcow2("data_file=data,data_file_raw=on,preallocation=metadata");
        RunQemuImg("bitmap", "--add", "disk", "backup");
        using IDiskImage image = _opener.Open(_temp["disk"], Writable);
        Assert.True(image.TryGetIdentityFile(out _));
        Assert.False(image.TryBeginOutsideWrites(out _));
        image.Close();
    }

    private void MakeQcow2(string options) => RunQemuImg("create", "-q", "-f", "qcow2", "-o", options, "disk", $"{Size}");

    // QEMU looks for a data file from where it was started.
    private void RunQemuImg(params string[] arguments)
    {
        Tools.Require("qemu-img");
        ChildProcess.Run("env", ["-C", _temp.Root, "qemu-img", .. arguments]).MustSucceed();
    }
}
