// Resizing where the bitmap takes another cluster of the add-cow file, or gives it up; crashes in it are the simulation's.
using QcowFs.Testing;

namespace QcowFs.Images.Tests.AddCow;

public sealed class AddCowResizeTests : IDisposable
{
    private const long PerBitmapCluster = 4096L * 8 * 4096;
    private readonly TempDirectory _temp = new();

    public void Dispose() => _temp.Dispose();

    [Fact]
    public void The_bitmap_follows_the_disk()
    {
        ImageOpener opener = new(HostFileSystem.Instance);
        File.WriteAllBytes(_temp["base"], Pattern.Bytes(1, 0, 10_000));
        new ImageCreator(HostFileSystem.Instance).Create(new ImageRequest
        {
            Path = _temp["overlay"],
            Format = "add-cow",
            Size = PerBitmapCluster,
            BackingName = "base",
            BackingFormat = "raw",
            Options = [new("image_file", "image"), new("cluster_size", "4k")],
        });
        Write(PerBitmapCluster - 100);
        foreach (long size in new[] { PerBitmapCluster + 1, PerBitmapCluster * 3, PerBitmapCluster + 1, PerBitmapCluster - 5000, PerBitmapCluster })
        {
            new ImageEditor(HostFileSystem.Instance, TimeProvider.System).Resize(_temp["overlay"], new OpenOptions(), new SizeChange(size), mayShrink: true);
            Assert.Equal(size, new FileInfo(_temp["image"]).Length);
            Assert.Equal(4096 + ((size + PerBitmapCluster - 1) / PerBitmapCluster * 4096), new FileInfo(_temp["overlay"]).Length);
            Assert.Equal(0, opener.Check(_temp["overlay"]).ExitCode);
        }

        byte[] bytes = new byte[100];
        using IDiskImage image = opener.Open(_temp["overlay"], new OpenOptions());
        image.Read(PerBitmapCluster - 100, bytes);
        Assert.False(bytes.AsSpan().ContainsAnyExcept((byte)0)); // it was cut off once
        image.Read(0, bytes);
        Assert.Equal(Pattern.Bytes(1, 0, 100), bytes);
    }

    [Fact]
    public void Nothing_shrinks_unasked_and_nothing_grows_beyond_reason()
    {
        File.WriteAllBytes(_temp["overlay"], new AddCowBytes { DiskSize = 10_000 }.Final());
        File.WriteAllBytes(_temp["image"], new byte[10_000]);
        ImageEditor editor = new(HostFileSystem.Instance, TimeProvider.System);
        Assert.Throws<ImageFormatException>(() => editor.Resize(_temp["overlay"], new OpenOptions(), new SizeChange(9_999), mayShrink: false));
        Assert.Throws<ImageFormatException>(() => editor.Resize(_temp["overlay"], new OpenOptions(), new SizeChange(long.MaxValue), mayShrink: false));
        Assert.Equal(10_000, new FileInfo(_temp["image"]).Length);
        Assert.Equal(12_000, editor.Resize(_temp["overlay"], new OpenOptions(), new SizeChange(2_000, 1), mayShrink: false));
    }

    [Fact]
    public void The_size_of_an_image_file_that_is_not_raw_is_not_changed()
    {
        Qemu.Img("create", "-q", "-f", "qcow2", _temp["image"], "1M");
        File.WriteAllBytes(_temp["overlay"], new AddCowBytes { DiskSize = 1 << 20, ImageFormat = "qcow2" }.Final());
        ImageEditor editor = new(HostFileSystem.Instance, TimeProvider.System);
        Assert.EndsWith("size: the image file is qcow2, not raw; convert it to raw with qemu-img convert first",
            Assert.Throws<ImageFormatException>(() => editor.Resize(_temp["overlay"], new OpenOptions(), new SizeChange(2 << 20), mayShrink: false)).Message, StringComparison.Ordinal);
        Assert.Equal(0, Qemu.Check(_temp["image"]).ExitCode);
    }

    private void Write(long offset)
    {
        using IDiskImage image = new ImageOpener(HostFileSystem.Instance).Open(_temp["overlay"], new OpenOptions { Writable = true });
        image.Write(offset, Pattern.Bytes(2, offset, 100));
        image.Close();
    }
}
