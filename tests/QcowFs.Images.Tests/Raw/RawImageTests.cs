// A raw image is its file, byte for byte, of whatever size.
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Raw;

public sealed class RawImageTests : IDisposable
{
    private readonly TempDirectory _temp = new();
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(511)]
    [InlineData(100_001)]
    public void Every_byte_is_the_files_and_no_change_leaves_the_disk(int size)
    {
        Random random = new(size);
        byte[] model = new byte[size];
        random.NextBytes(model);
        File.WriteAllBytes(_temp["disk"], model);
        using (IDiskImage image = _opener.Open(_temp["disk"], new OpenOptions { Format = "raw", Writable = true }))
        {
            Assert.Equal(size, image.Length);
            for (int i = 0; i < 300; i++)
            {
                int offset = random.Next(size + 1);
                int length = random.Next(size - offset + 1);
                byte[] data = new byte[length];
                random.NextBytes(data);
                switch (random.Next(4))
                {
                    case 0:
                        image.Write(offset, data);
                        data.CopyTo(model, offset);
                        break;
                    case 1:
                        image.WriteZeroes(offset, length);
                        model.AsSpan(offset, length).Clear();
                        break;
                    case 2:
                        image.Discard(offset, length);
                        model.AsSpan(offset, length).Clear();
                        break;
                    default:
                        image.Read(offset, data);
                        Assert.Equal(model[offset..(offset + length)], data);
                        break;
                }
            }

            byte[] beyond = [.. Enumerable.Repeat((byte)9, 16)];
            image.Read(size, beyond);
            Assert.Equal(new byte[16], beyond);
            Assert.Equal(Errno.ENOSPC, Assert.Throws<StorageException>(() => image.Write(size, [1])).Errno);
            Assert.Equal(Errno.ENOSPC, Assert.Throws<StorageException>(() => image.WriteZeroes(0, size + 1)).Errno);
            Assert.Equal(Errno.EPERM, Assert.Throws<StorageException>(() => image.SetLength(size + 1)).Errno);
            image.Close();
        }

        Assert.Equal(model, File.ReadAllBytes(_temp["disk"]));
    }

    [Fact]
    public void Extents_are_those_of_the_file()
    {
        using (FileStorage file = HostFiles.Open(_temp["disk"], StorageAccess.Create))
        {
            file.SetLength(10 << 20);
            file.Write(4 << 20, new byte[1 << 20]);
        }

        using IDiskImage image = _opener.Open(_temp["disk"], new OpenOptions { Format = "raw" });
        List<Extent> extents = [];
        for (long at = 0; at < image.Length; at += extents[^1].Length)
            extents.Add(image.QueryExtent(at, image.Length - at));
        Assert.Equal(
            [
                new Extent(ExtentKind.Backing, 4 << 20), new(ExtentKind.Data, 1 << 20, 4 << 20, Writable: true),
                new(ExtentKind.Backing, 5 << 20),
            ], extents);
        Assert.Equal(0, image.QueryExtent(image.Length, 100).Length);
        Assert.Equal(100, image.QueryExtent(0, 100).Length);
    }

    [Fact]
    public void The_kernel_can_be_given_the_file_as_long_as_it_is_as_long_as_the_disk()
    {
        File.WriteAllBytes(_temp["disk"], new byte[4096]);
        using IDiskImage image = _opener.Open(_temp["disk"], new OpenOptions { Format = "raw" });
        Assert.True(image.TryGetIdentityFile(out SafeFileHandle? handle));
        Assert.False(handle.IsInvalid);
    }

    [Fact]
    public void Without_permission_to_write_nothing_changes()
    {
        File.WriteAllBytes(_temp["disk"], new byte[4096]);
        using IDiskImage image = _opener.Open(_temp["disk"], new OpenOptions { Format = "raw" });
        Assert.Equal(Errno.EROFS, Assert.Throws<StorageException>(() => image.Write(0, [1])).Errno);
        Assert.Equal(Errno.EROFS, Assert.Throws<StorageException>(() => image.WriteZeroes(0, 1)).Errno);
        Assert.Equal(Errno.EROFS, Assert.Throws<StorageException>(() => image.Discard(0, 1)).Errno);
        image.Sync();
        image.Close();
    }

    [Fact]
    public void A_failed_sync_latches_and_close_reports_it()
    {
        SimulatedDisk disk = new();
        disk.Create("disk", 4096);
        IDiskImage image = new ImageOpener(disk).Open("disk", new OpenOptions { Format = "raw", Writable = true });
        image.Write(0, [1]);
        disk.Fail(StorageCalls.Sync, Errno.EIO);
        Assert.Throws<StorageException>(image.Sync);
        Assert.NotNull(image.Failure);
        Assert.Throws<StorageException>(() => image.Write(0, [2]));
        Assert.Throws<StorageException>(image.Close);
    }

    [Fact]
    public void What_was_synced_survives_a_crash()
    {
        SimulatedDisk disk = new();
        disk.Create("disk", 8192);
        IDiskImage image = new ImageOpener(disk).Open("disk", new OpenOptions { Format = "raw", Writable = true });
        image.Write(0, [1, 2, 3]);
        image.Sync();
        Assert.Equal(1, disk.Count(StorageCalls.Sync));
        image.Write(4096, [4]);
        Assert.Equal([1, 2, 3], disk.DurableContent("disk")[..3]);
        image.Close();
        Assert.Equal(4, disk.DurableContent("disk")[4096]);
    }
}
