// Real images changed while they are used: concurrent writers through the disk and its partitions against a model of every byte,
// snapshots taken in between, sizes changed under open files.
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class OnlineEditTests : IDisposable
{
    private const int Size = 8 << 20;
    private const int Sector = 512;
    private const int ReadWrite = 2;
    private const int Punch = 3;

    private readonly TempDirectory _temp = new();
    private readonly MountedImage _image;
    private readonly DiskFileSystem _system;
    private readonly ulong _disk;
    private readonly ulong _handle;

    public OnlineEditTests()
    {
        new ImageCreator(HostFileSystem.Instance).Create(new ImageRequest { Path = _temp["a.qcow2"], Format = "qcow2", Size = Size });
        _image = new MountedImage(
            new MountedImageOptions { Name = "a.qcow2", Writable = true, StaysOpen = true, ReleasePatience = TimeSpan.Zero },
            () => new ImageHold(HostFileSystem.Instance, _temp["a.qcow2"], new OpenOptions { Writable = true }));
        _system = DiskFileSystem.ForImage(_image, new TreeSettings { Uid = 0, Gid = 0, FileMode = 0x180 }, TimeProvider.System, static _ => { });
        _disk = Find("a.qcow2.raw");
        _handle = Open(_disk, ReadWrite);
    }

    public void Dispose()
    {
        _system.Close();
        _temp.Dispose();
    }

    [Fact]
    public void Partitions_and_the_disk_are_one_under_concurrent_writers()
    {
        ulong seed = Seeds.Between(1, 1).Single();
        byte[] model = new PartitionBytes(Size).Gpt((2048, 6143), (6144, 12287)).Bytes;
        Write(_disk, 0, model);
        (ulong Node, int Start, int Length)[] files = [Part(1, 2048, 4096), Part(2, 6144, 6144), (_disk, 0, Size)];

        // Each thread owns every third run of sectors, and reaches it through whatever file covers it.
        const int run = 24 * Sector;
        RunAll(3, own =>
        {
            Random random = new((int)seed + own);
            byte[] data = new byte[run];
            for (int round = 0; round < 400; round++)
            {
                int block = 90 + (3 * random.Next(((Size - (200 * Sector)) / run / 3) - 31)) + own;
                int at = (block * run) + random.Next(run / 2);
                int length = random.Next(1, run / 2);
                (ulong node, int start, int size) = files[random.Next(files.Length)];
                if (at < start || at + length > start + size) continue;
                random.NextBytes(data.AsSpan(0, length));
                if (random.Next(5) == 0)
                {
                    data.AsSpan(0, length).Clear();
                    Assert.Equal(Errno.None, _system.Allocate(node, 1, at - start, length, random.Next(2) == 0 ? Punch : 16));
                }
                else
                {
                    Write(node, at - start, data.AsSpan(0, length));
                }
                data.AsSpan(0, length).CopyTo(model.AsSpan(at)); // nobody else's bytes
                if (random.Next(20) == 0) Assert.Equal(Errno.None, _system.Sync(node, 1, dataOnly: true));
                (node, start, size) = files[random.Next(files.Length)];
                if (at >= start && at + length <= start + size) Assert.Equal(model[at..(at + length)], Read(node, at - start, length));
            }
        });
        foreach ((ulong node, int start, int length) in files) Assert.Equal(model[start..(start + length)], Read(node, 0, length));

        (ulong, int, int) Part(int number, int first, int sectors) => (Find($"a.qcow2.p{number}.raw"), first * Sector, sectors * Sector);
    }

    [Fact]
    public void A_snapshot_taken_under_a_writer_holds_exactly_what_was_written_before_it()
    {
        const int block = 4096, blocks = Size / block;
        Exception? failure = null;
        int written = 0;
        Thread writer = new(() =>
        {
            try
            {
                byte[] data = new byte[block];
                for (int i = 0; i < blocks; i++)
                {
                    data.AsSpan().Fill((byte)(1 + (i % 250)));
                    Write(_disk, (long)i * block, data);
                    Volatile.Write(ref written, i + 1);
                }
            }
            catch (Exception fault)
            {
                failure = fault;
            }
        });
        writer.Start();
        List<(string Name, int Least, int Most)> taken = [];
        for (int i = 0; i < 6; i++)
        {
            Wait.Until(() => Volatile.Read(ref written) >= blocks * i / 7 || !writer.IsAlive, "something more was written");
            int least = Volatile.Read(ref written);
            _image.EditSnapshot(SnapshotAction.Create, $"s{i}");
            taken.Add(($"s{i}", least, Volatile.Read(ref written)));
            if (i == 3) _image.EditSnapshot(SnapshotAction.Delete, "s1");
        }
        writer.Join();
        Assert.Null(failure);
        _system.Refresh();
        foreach ((string name, int least, int most) in taken.Where(t => t.Name != "s1"))
        {
            ulong node = Find($"a.qcow2@{name}.raw");
            ulong handle = Open(node);
            byte[] content = Read(node, 0, Size);
            int prefix = 0;
            while (prefix < blocks && content[prefix * block] != 0) prefix++;
            Assert.InRange(prefix, least, most + 1); // the writer may have been between its write and its note
            for (int i = 0; i < blocks; i++)
                Assert.True(content.AsSpan(i * block, block).IndexOfAnyExcept(i < prefix ? (byte)(1 + (i % 250)) : (byte)0) < 0, $"{name}: block {i} of {prefix}");
            _system.Release(node, handle);
        }
        Assert.Equal(0, _image.Check().ExitCode);
        Assert.Null(_image.Close(static hold => hold.Check().ExitCode.ToString()).Error);
    }

    [Fact]
    public void An_open_snapshot_stays_readable_while_others_come_and_go()
    {
        Write(_disk, 0, [1, 2, 3]);
        _image.EditSnapshot(SnapshotAction.Create, "kept");
        _image.EditSnapshot(SnapshotAction.Create, "other");
        _system.Refresh();
        ulong kept = Find("a.qcow2@kept.raw");
        ulong handle = Open(kept);
        Write(_disk, 0, [9, 9, 9]);
        _image.EditSnapshot(SnapshotAction.Delete, "other");
        _image.EditSnapshot(SnapshotAction.Create, "third");
        Write(_disk, 0, [8, 8, 8]);
        Assert.Equal([1, 2, 3], Read(kept, 0, 3));
        Assert.Throws<ImageBusyException>(() => _image.EditSnapshot(SnapshotAction.Apply, "kept"));
        _system.Release(_disk, _handle);
        _image.EditSnapshot(SnapshotAction.Apply, "kept");
        Assert.Equal([1, 2, 3], Read(kept, 0, 3));
        Open(_disk, ReadWrite);
        Assert.Equal([1, 2, 3], Read(_disk, 0, 3));
        _system.Release(kept, handle);
        _image.EditSnapshot(SnapshotAction.Delete, "kept");
        Assert.Equal(0, _image.Check().ExitCode);
    }

    [Fact]
    public void A_size_changes_under_an_open_file()
    {
        Write(_disk, Size - 3, [1, 2, 3]);
        Assert.Equal(2 * Size, _image.Resize(new SizeChange(Size, +1), mayShrink: false));
        Assert.Equal([1, 2, 3, 0, 0], Read(_disk, Size - 3, 5));
        Write(_disk, (2 * Size) - 3, [4, 5, 6]);
        Assert.Throws<ImageFormatException>(() => _image.Resize(new SizeChange(Size), mayShrink: false));
        Assert.Equal(Size, _image.Resize(new SizeChange(Size), mayShrink: true));
        Assert.Equal(Errno.None, _system.GetAttributes(_disk, _handle, out FuseAttributes attributes));
        Assert.Equal(Size, attributes.Size);
        Assert.Equal(Errno.ENOSPC, _system.Write(_disk, _handle, Size, [1], 0, out _));
        Assert.Equal([1, 2, 3], Read(_disk, Size - 3, 5));
    }

    [Fact]
    public void A_frozen_images_file_is_as_after_an_unmount()
    {
        Write(_disk, 0, [1, 2, 3]);
        _system.Freeze();
        File.Copy(_temp["a.qcow2"], _temp["copy.qcow2"]);
        _system.Thaw();
        Write(_disk, 0, [4, 5, 6]);
        ImageOpener opener = new(HostFileSystem.Instance);
        Assert.Null(opener.ReadInfo(_temp["copy.qcow2"]).Log); // no mark of being in use
        Assert.Equal(0, opener.Check(_temp["copy.qcow2"]).ExitCode);
        using IDiskImage copy = opener.Open(_temp["copy.qcow2"], new OpenOptions());
        byte[] start = new byte[3];
        copy.Read(0, start);
        Assert.Equal([1, 2, 3], start);
    }

    /// <summary>Runs threads to their ends; the first failure comes out here.</summary>
    private static void RunAll(int count, Action<int> work)
    {
        Exception? first = null;
        Thread[] threads = [.. Enumerable.Range(0, count).Select(own => new Thread(() =>
        {
            try
            {
                work(own);
            }
            catch (Exception fault)
            {
                first ??= fault;
            }
        }))];
        foreach (Thread thread in threads) thread.Start();
        foreach (Thread thread in threads) thread.Join();
        if (first is not null) throw first;
    }

    private ulong Find(string name)
    {
        Assert.Equal(Errno.None, _system.Lookup(IFuseFileSystem.RootNode, System.Text.Encoding.UTF8.GetBytes(name), out FuseEntry entry));
        return entry.Node;
    }

    private ulong Open(ulong node, int flags = 0)
    {
        Assert.Equal(Errno.None, _system.Open(node, flags, out FuseOpenResult result));
        return result.Handle;
    }

    private void Write(ulong node, long offset, ReadOnlySpan<byte> data)
    {
        Assert.Equal(Errno.None, _system.Write(node, 1, offset, data, 0, out int count));
        Assert.Equal(data.Length, count);
    }

    private byte[] Read(ulong node, long offset, int length)
    {
        byte[] data = new byte[length];
        Assert.Equal(Errno.None, _system.Read(node, 1, offset, data, out int count));
        return data[..count];
    }
}
