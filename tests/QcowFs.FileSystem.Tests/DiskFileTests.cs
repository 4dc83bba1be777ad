// The disk's raw file, row by row of what PRODUCT section 3 promises of it.
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class DiskFileTests
{
    private const int Size = 1 << 20;
    private const int ReadWrite = 2;

    [Fact]
    public void Stat_tells_the_virtual_size_and_the_host_files_blocks_and_time()
    {
        Mount mount = new(new MemoryDisk(Size));
        FuseAttributes found = mount.Attributes(mount.Raw);
        Assert.Equal(Size, found.Size);
        Assert.Equal(77, found.Blocks);
        Assert.Equal(Mount.HostTime, found.ModifyTime);
        Assert.Equal(1001u, found.Uid);
        Assert.Equal(1002u, found.Gid);
        Assert.Equal(mount.Raw, found.Inode);
        Assert.Equal(1u, found.Links);
        Assert.Equal(65536u, found.BlockSize);
    }

    [Theory]
    [InlineData(true, null, "100400", "40500", "100400")]
    [InlineData(false, null, "100600", "40700", "100400")]
    [InlineData(false, 0x1B4u, "100664", "40775", "100444")]
    [InlineData(true, 0x124u, "100444", "40555", "100444")]
    public void Modes_follow_from_writability_or_are_stated(bool readOnly, uint? mode, string file, string directory, string facts)
    {
        Mount mount = new(new MemoryDisk(Size, readOnly), mode);
        Assert.Equal(file, Octal(mount.Attributes(mount.Raw).Mode));
        Assert.Equal(directory, Octal(mount.Attributes(IFuseFileSystem.RootNode).Mode));
        Assert.Equal(directory, Octal(mount.Find(".qcowfs/disk.qcow2").Attributes.Mode));
        Assert.Equal(facts, Octal(mount.Find(".qcowfs/disk.qcow2/info.json").Attributes.Mode));

        static string Octal(uint value) => Convert.ToString(value, 8);
    }

    [Theory]
    [InlineData(0, 4096, 4096)]
    [InlineData(Size - 100, 4096, 100)]
    [InlineData(Size, 4096, 0)]
    [InlineData((long)Size * 8, 4096, 0)]
    [InlineData(-1, 4096, 0)]
    public void Reads_are_short_only_at_the_end(long offset, int length, int expected)
    {
        MemoryDisk disk = new(Size, readOnly: true);
        new Random(55).NextBytes(disk.Bytes);
        Mount mount = new(disk);
        byte[] buffer = new byte[length];
        Assert.Equal(Errno.None, mount.System.Read(mount.Raw, mount.Open(mount.Raw), offset, buffer, out int count));
        Assert.Equal(expected, count);
        if (count > 0) Assert.Equal(disk.Bytes.AsSpan((int)offset, count), buffer.AsSpan(0, count));
    }

    [Theory]
    [InlineData(0, 4096, Errno.None, 4096)]
    [InlineData(7, 3, Errno.None, 3)]
    [InlineData(Size - 100, 4096, Errno.None, 100)]
    [InlineData(Size, 1, Errno.ENOSPC, 0)]
    [InlineData(Size + 512L, 4096, Errno.ENOSPC, 0)]
    [InlineData(Size, 0, Errno.None, 0)]
    public void A_write_past_the_end_is_cut_and_at_the_end_finds_no_space(long offset, int length, Errno expected, int expectedCount)
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk);
        byte[] data = new byte[length];
        Array.Fill(data, (byte)0xA5);
        Assert.Equal(expected, mount.System.Write(mount.Raw, mount.Open(mount.Raw, ReadWrite), offset, data, 0, out int count));
        Assert.Equal(expectedCount, count);
        Assert.Equal(expectedCount, disk.Bytes.Count(b => b == 0xA5));
    }

    [Theory]
    [InlineData(ReadWrite, false)]
    [InlineData(ReadWrite | 0x1000, true)]
    [InlineData(ReadWrite | 0x101000, true)]
    public void O_DSYNC_and_O_SYNC_writes_are_answered_after_the_sync(int openFlags, bool syncs)
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Equal(Errno.None, mount.System.Write(mount.Raw, handle, 0, new byte[512], openFlags, out _));
        Assert.Equal(syncs ? ["sync"] : [], disk.Calls);
    }

    [Fact]
    public void A_failed_sync_fails_the_write_that_asked_for_it()
    {
        MemoryDisk disk = new(Size) { FailSync = new StorageException(Errno.EIO, "sync", "x") };
        Mount mount = new(disk);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Throws<StorageException>(() => mount.System.Write(mount.Raw, handle, 0, new byte[512], 0x1000, out _));
        Assert.Throws<StorageException>(() => mount.System.Sync(mount.Raw, handle, dataOnly: true));
    }

    [Fact]
    public void Fsync_syncs_a_writable_disk_and_not_a_read_only_one()
    {
        MemoryDisk writable = new(Size);
        MemoryDisk readOnly = new(Size, readOnly: true);
        foreach (MemoryDisk disk in new[] { writable, readOnly })
        {
            Mount mount = new(disk);
            Assert.Equal(Errno.None, mount.System.Sync(mount.Raw, mount.Open(mount.Raw), dataOnly: false));
        }
        Assert.Equal(["sync"], writable.Calls);
        Assert.Empty(readOnly.Calls);
    }

    [Theory]
    [InlineData(3, 5, 1000, Errno.None, "discard 5+1000")]               // punch
    [InlineData(3, Size - 10, 1000, Errno.None, "discard 1048566+10")]   // punch over the end
    [InlineData(3, Size, 1000, Errno.None, null)]                        // punch past the end
    [InlineData(16, 5, 1000, Errno.None, "zero 5+1000")]                 // zero range
    [InlineData(17, 5, 1000, Errno.None, "zero 5+1000")]
    [InlineData(17, Size - 10, 1000, Errno.None, "zero 1048566+10")]
    [InlineData(16, Size - 10, 1000, Errno.ENOSPC, null)]                // would grow
    [InlineData(0, 5, 1000, Errno.None, "reserve 5+1000")]
    [InlineData(1, Size - 10, 1000, Errno.None, "reserve 1048566+10")]
    [InlineData(0, Size - 10, 1000, Errno.ENOSPC, null)]
    [InlineData(8, 0, 4096, Errno.EOPNOTSUPP, null)]                     // collapse
    [InlineData(32, 0, 4096, Errno.EOPNOTSUPP, null)]                    // insert
    [InlineData(64, 0, 4096, Errno.EOPNOTSUPP, null)]                    // unshare
    [InlineData(2, 0, 4096, Errno.EOPNOTSUPP, null)]                     // punch without KEEP_SIZE is not a mode
    [InlineData(3, 0, 0, Errno.EINVAL, null)]
    [InlineData(3, -1, 10, Errno.EINVAL, null)]
    public void Fallocate_row(int mode, long offset, long length, Errno expected, string? call)
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Equal(expected, mount.System.Allocate(mount.Raw, handle, offset, length, mode));
        Assert.Equal(call is null ? [] : [call], disk.Calls);
    }

    [Fact]
    public void Seek_follows_the_map()
    {
        MemoryDisk disk = new(Size, readOnly: true);
        disk.Map.AddRange(
        [
            (ExtentKind.Backing, 65536, -1, 1), (ExtentKind.Data, 65536, 0x50000, 0), (ExtentKind.Compressed, 65536, 777, 1),
            (ExtentKind.Zero, 65536, -1, 0), (ExtentKind.Data, 1000, 0x90000, 2),
        ]);
        Mount mount = new(disk);
        Check(0, 3, 65536);
        Check(0, 4, 0);
        Check(65536, 3, 65536);
        Check(65537, 3, 65537);
        Check(65537, 4, 3 * 65536);
        Check(3 * 65536, 3, 4 * 65536);
        Check(4 * 65536, 4, (4 * 65536) + 1000);
        Check((4 * 65536) + 1000, 3, null);
        Check((4 * 65536) + 1000, 4, (4 * 65536) + 1000);
        Check(Size, 3, null);
        Check(Size, 4, null);
        Check(-1, 4, null);

        void Check(long offset, int whence, long? expected)
        {
            Errno errno = mount.System.Seek(mount.Raw, 1, offset, whence, out long result);
            Assert.Equal(expected is null ? Errno.ENXIO : Errno.None, errno);
            if (expected is not null) Assert.Equal(expected, result);
        }
    }

    [Fact]
    public void A_disk_full_of_data_has_its_only_hole_at_the_end()
    {
        Mount mount = new(new MemoryDisk(Size, readOnly: true));
        Assert.Equal(Errno.None, mount.System.Seek(mount.Raw, 1, 5, 4, out long hole));
        Assert.Equal(Size, hole);
    }

    [Theory]
    [InlineData(0ul, 0L, Errno.None)]            // O_TRUNC, truncate(path, 0)
    [InlineData(0ul, (long)Size, Errno.None)]
    [InlineData(0ul, 4096L, Errno.EPERM)]
    [InlineData(1ul, 0L, Errno.EPERM)]           // ftruncate(fd, 0)
    [InlineData(1ul, (long)Size, Errno.None)]
    [InlineData(1ul, Size + 1L, Errno.EPERM)]
    public void The_size_stays(ulong handle, long size, Errno expected)
    {
        Mount mount = new(new MemoryDisk(Size));
        FuseSetAttributes change = new() { Handle = handle, Size = size };
        Assert.Equal(expected, mount.System.SetAttributes(mount.Raw, in change, out FuseAttributes after));
        Assert.Equal(Size, after.Size);
    }

    [Fact]
    public void A_read_only_disks_size_cannot_even_be_ignored()
    {
        Mount mount = new(new MemoryDisk(Size, readOnly: true));
        FuseSetAttributes change = new() { Size = 0 };
        Assert.Equal(Errno.EROFS, mount.System.SetAttributes(mount.Raw, in change, out _));
    }

    [Fact]
    public void Times_may_be_set_without_effect_and_access_may_not()
    {
        Mount mount = new(new MemoryDisk(Size));
        Set(new FuseSetAttributes { Times = true }, Errno.None);
        Set(new FuseSetAttributes { Mode = 0x180 }, Errno.None); // what it is already: rsync and cp -p ask for this
        Set(new FuseSetAttributes { Uid = 1001, Gid = 1002 }, Errno.None);
        Set(new FuseSetAttributes { Mode = 0x1FF }, Errno.EPERM);
        Set(new FuseSetAttributes { Uid = 0 }, Errno.EPERM);
        Set(new FuseSetAttributes { Gid = 0 }, Errno.EPERM);

        void Set(FuseSetAttributes change, Errno expected)
        {
            Assert.Equal(expected, mount.System.SetAttributes(mount.Raw, in change, out FuseAttributes after));
            Assert.Equal(Mount.HostTime, after.ModifyTime);
        }
    }

    [Theory]
    [InlineData(false, false, FuseOpenFlags.DirectIo | FuseOpenFlags.ParallelDirectWrites)]
    [InlineData(true, false, FuseOpenFlags.KeepCache)]
    [InlineData(true, true, FuseOpenFlags.DirectIo | FuseOpenFlags.ParallelDirectWrites)]
    public void The_kernel_caches_only_what_cannot_change(bool readOnly, bool alwaysDirect, FuseOpenFlags expected)
    {
        Mount mount = new(new MemoryDisk(Size, readOnly), alwaysDirect: alwaysDirect);
        foreach (int flags in readOnly ? new[] { 0 } : [0, 1, 2])
        {
            Assert.Equal(Errno.None, mount.System.Open(mount.Raw, flags, out FuseOpenResult result));
            Assert.Equal(expected, result.Flags);
        }
        Assert.Equal(readOnly, mount.Find("disk.qcow2.raw").Attributes.Valid > TimeSpan.Zero);
        Assert.Equal(readOnly, mount.Attributes(mount.Raw).Valid > TimeSpan.Zero);
    }

    [Fact]
    public void The_kernel_believes_the_attributes_of_an_image_in_a_directory_while_it_is_locked()
    {
        Mount mount = new(new MemoryDisk(Size, readOnly: true), staysOpen: false);
        List<string> order = mount.Hold.Calls;
        mount.System.NodeChanged = node => order.Add($"forget {node == mount.Raw}");
        Assert.Equal(TimeSpan.Zero, mount.Attributes(mount.Raw).Valid);
        ulong first = mount.Open(mount.Raw);
        ulong second = mount.Open(mount.Raw);
        Assert.NotEqual(TimeSpan.Zero, mount.Attributes(mount.Raw).Valid);
        mount.System.Release(mount.Raw, first);
        Assert.NotEqual(TimeSpan.Zero, mount.Attributes(mount.Raw).Valid);
        mount.System.Release(mount.Raw, second);
        Assert.Equal(["open ro", "forget True", "release"], order);
        Assert.Equal(TimeSpan.Zero, mount.Attributes(mount.Raw).Valid);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void A_read_only_disk_is_not_opened_for_writing(int flags)
    {
        Mount mount = new(new MemoryDisk(Size, readOnly: true));
        Assert.Equal(Errno.EROFS, mount.System.Open(mount.Raw, flags, out _));
        Assert.Equal(0, mount.System.Opens);
    }

    [Fact]
    public void The_last_close_commits_what_was_changed()
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk);
        ulong first = mount.Open(mount.Raw, ReadWrite);
        ulong second = mount.Open(mount.Raw, ReadWrite);
        mount.System.Write(mount.Raw, first, 0, new byte[512], 0, out _);
        Assert.Equal(2, mount.System.Opens);
        mount.System.Release(mount.Raw, first);
        Assert.Empty(disk.Calls);
        mount.System.Release(mount.Raw, second);
        Assert.Equal(["sync"], disk.Calls);
        mount.System.Release(mount.Raw, mount.Open(mount.Raw));
        Assert.Equal(["sync"], disk.Calls); // nothing new to commit
        Assert.Equal(0, mount.System.Opens);
    }

    [Fact]
    public void A_single_file_mount_is_the_disk()
    {
        Mount mount = new(new MemoryDisk(Size), rootIsDisk: true);
        Assert.True(mount.System.RootIsFile);
        Assert.Equal(0x8180u, mount.Attributes(IFuseFileSystem.RootNode).Mode);
        Assert.Equal(Size, mount.Attributes(IFuseFileSystem.RootNode).Size);
        Assert.Equal(Errno.ENOTDIR, mount.System.OpenDirectory(IFuseFileSystem.RootNode, out _));
        Assert.Equal(Errno.ENOTDIR, mount.System.Lookup(IFuseFileSystem.RootNode, "x"u8, out _));
        ulong handle = mount.Open(IFuseFileSystem.RootNode, ReadWrite);
        Assert.Equal(Errno.None, mount.System.Write(IFuseFileSystem.RootNode, handle, 0, "abc"u8, 0, out int count));
        Assert.Equal(3, count);
    }

    [Fact]
    public void Reads_and_writes_allocate_nothing()
    {
        Mount mount = new(new MemoryDisk(Size));
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        byte[] buffer = new byte[4096];
        Round(100);
        long before = GC.GetAllocatedBytesForCurrentThread();
        Round(10_000);
        // Less than a byte each: a collection that another test brings about counts what is left of this thread's piece of the heap.
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 10_000);

        void Round(int count)
        {
            for (int i = 0; i < count; i++)
            {
                mount.System.Read(mount.Raw, handle, (i * 4096L) % Size, buffer, out _);
                mount.System.Write(mount.Raw, handle, (i * 8192L) % Size, buffer, 0, out _);
            }
        }
    }
}
