// The size of a disk that programs may change, in place or by an edit.
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class GrowableTests
{
    private const int Size = 1 << 20;
    private const int ReadWrite = 2;
    private const int DataSync = 0x1000; // O_DSYNC

    [Theory]
    [InlineData(Size - 100, 4096, Size + 4096)]
    [InlineData(Size, 1, Size + 512)]
    [InlineData(Size, 512, Size + 512)]
    [InlineData(Size + 70_000, 3, Size + 70_144)]
    [InlineData(Size, 0, Size)]
    [InlineData(Size - 512, 512, Size)]
    public void A_write_past_the_end_makes_the_disk_hold_it(int offset, int length, int expected)
    {
        foreach (bool inPlace in new[] { true, false })
        {
            Mount mount = Grown(inPlace);
            ulong handle = mount.Open(mount.Raw, ReadWrite);
            byte[] data = new byte[length];
            Array.Fill(data, (byte)0xA5);
            Assert.Equal(Errno.None, mount.System.Write(mount.Raw, handle, offset, data, 0, out int count));
            Assert.Equal(length, count);
            Assert.Equal(expected, mount.Attributes(mount.Raw, handle).Size);
            Assert.Equal(data, mount.Disk.Bytes.AsSpan(offset, length).ToArray());
            Assert.Equal(length, mount.Disk.Bytes.Count(b => b == 0xA5));
            Assert.Equal(expected == Size || inPlace ? 0 : 1, mount.Hold.Calls.Count(c => c == $"set size {expected}"));
            // In place costs no close, and no sync.
            Assert.Equal(expected == Size || inPlace ? 0 : 1, mount.Disk.Calls.Count(c => c == "close"));
            Assert.DoesNotContain("sync", mount.Disk.Calls);
        }
    }

    [Theory]
    [InlineData(0ul, 0L, Size)]                          // O_TRUNC, truncate(path, 0)
    [InlineData(0ul, 4096L, 4096L)]                      // truncate(path, 4096)
    [InlineData(1ul, 0L, 0L)]                            // ftruncate(fd, 0)
    [InlineData(1ul, (long)Size, Size)]
    [InlineData(1ul, Size + 512L, Size + 512L)]
    [InlineData(0ul, 3L << 20, 3L << 20)]
    public void Truncating_gives_the_disk_another_size(ulong handle, long size, long expected)
    {
        foreach (bool inPlace in new[] { true, false })
        {
            Mount mount = Grown(inPlace);
            FuseSetAttributes change = new() { Handle = handle, Size = size };
            Assert.Equal(Errno.None, mount.System.SetAttributes(mount.Raw, in change, out FuseAttributes after));
            Assert.Equal(expected, after.Size); // what the kernel shows from now on
            Assert.Equal(expected, mount.Disk.Length);
        }
    }

    [Fact]
    public void Truncating_by_name_opens_an_image_that_nobody_uses_and_closes_it()
    {
        Mount mount = new(new MemoryDisk(Size), staysOpen: false, growable: true);
        FuseSetAttributes change = new() { Size = 2 * Size };
        Assert.Equal(Errno.None, mount.System.SetAttributes(mount.Raw, in change, out FuseAttributes after));
        Assert.Equal(2 * Size, after.Size);
        Assert.Equal(2 * Size, mount.Attributes(mount.Raw).Size);
        Assert.False(mount.Image.IsOpen);
    }

    [Theory]
    [InlineData(0, Size + 512L, Errno.None, "reserve")]
    [InlineData(1, Size, Errno.None, "reserve")]         // FALLOC_FL_KEEP_SIZE
    [InlineData(3, Size, Errno.None, "discard")]         // a hole keeps the size
    [InlineData(0x10, Size + 512L, Errno.None, "zero")]  // FALLOC_FL_ZERO_RANGE
    [InlineData(0x11, Size, Errno.None, "zero")]
    [InlineData(8, Size, Errno.EOPNOTSUPP, "")]          // FALLOC_FL_COLLAPSE_RANGE
    public void Allocating_past_the_end_grows_unless_it_is_to_keep_the_size(int mode, long expected, Errno errno, string call)
    {
        Mount mount = Grown(inPlace: true);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Equal(errno, mount.System.Allocate(mount.Raw, handle, Size - 512, 1000, mode));
        Assert.Equal(expected, mount.Disk.Length);
        if (call.Length > 0) Assert.Contains($"{call} {Size - 512}+{(expected == Size ? 512 : 1000)}", mount.Disk.Calls);
    }

    [Fact]
    public void O_DSYNC_makes_the_size_durable_with_the_data()
    {
        Mount mount = Grown(inPlace: true);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Equal(Errno.None, mount.System.Write(mount.Raw, handle, Size, new byte[512], DataSync, out _));
        Assert.Equal([$"size {Size + 512}", "sync"], mount.Disk.Calls);
    }

    [Fact]
    public void What_the_format_cannot_hold_is_too_big_and_what_cannot_shrink_is_invalid()
    {
        Mount mount = Grown(inPlace: false);
        mount.Hold.FailEdit = new ImageFormatException("dir/disk.qcow2", "size", -1, "clusters cannot map that", "convert it");
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Equal(Errno.EFBIG, mount.System.Write(mount.Raw, handle, Size, new byte[1], 0, out int count));
        Assert.Equal(0, count);
        Assert.Equal(Errno.EFBIG, SetSize(mount, Size + 1));
        Assert.Equal(Errno.EINVAL, SetSize(mount, 512));
        Assert.Contains(mount.Log, line => line.Contains("clusters cannot map that", StringComparison.Ordinal));
        Assert.Equal(Size, mount.Disk.Length);
        // The disk goes on.
        Assert.Equal(Errno.None, mount.System.Write(mount.Raw, handle, 0, new byte[512], 0, out _));
    }

    [Fact]
    public void A_frozen_disk_grows_when_it_thaws()
    {
        Mount mount = Grown(inPlace: true);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        mount.Image.Freeze();
        Errno errno = Errno.EIO;
        Thread writer = new(() => errno = mount.System.Write(mount.Raw, handle, Size, new byte[512], 0, out _));
        writer.Start();
        Assert.False(writer.Join(TimeSpan.FromMilliseconds(50)));
        Assert.Equal(Size, mount.Attributes(mount.Raw).Size);
        mount.Image.Thaw();
        writer.Join();
        Assert.Equal(Errno.None, errno);
        Assert.Equal(Size + 512, mount.Disk.Length);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Writers_that_extend_at_the_same_time_all_get_what_they_wrote(bool inPlace)
    {
        const int writers = 4;
        const int each = 64;
        Mount mount = Grown(inPlace);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Parallel.For(0, writers, new ParallelOptions { MaxDegreeOfParallelism = writers }, writer =>
        {
            byte[] data = new byte[512];
            Array.Fill(data, (byte)(writer + 1));
            for (int i = 0; i < each; i++)
            {
                Assert.Equal(Errno.None, mount.System.Write(mount.Raw, handle, Size + (i * writers + writer) * 512L, data, 0, out int count));
                Assert.Equal(512, count);
            }
        });
        Assert.Equal(Size + writers * each * 512, mount.Disk.Length);
        for (int block = 0; block < writers * each; block++)
            Assert.True(mount.Disk.Bytes.AsSpan(Size + block * 512, 512).IndexOfAnyExcept((byte)(block % writers + 1)) < 0, $"block {block}");
    }

    private static Mount Grown(bool inPlace) => new(new MemoryDisk(Size) { ResizesInPlace = inPlace }, growable: true);

    private static Errno SetSize(Mount mount, long size)
    {
        FuseSetAttributes change = new() { Handle = 1, Size = size };
        return mount.System.SetAttributes(mount.Raw, in change, out _);
    }
}
