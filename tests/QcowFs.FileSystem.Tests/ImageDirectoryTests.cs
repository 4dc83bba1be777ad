// A directory of real images: what is listed, what comes and goes, what is opened when.
using System.Text;
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class ImageDirectoryTests : IDisposable
{
    private const int Size = 1 << 20;
    private const int ReadWrite = 2;

    private readonly TempDirectory _temp = new();
    private readonly List<string> _log = [];
    private ImageDirectory? _directory;
    private DiskFileSystem? _system;

    public void Dispose()
    {
        _system?.Close();
        _directory?.Dispose();
        _temp.Dispose();
    }

    [Fact]
    public void Regular_files_with_a_known_magic_are_images_and_nothing_else_is()
    {
        Create("b.qcow2");
        Create("a");
        File.WriteAllText(_temp["text"], "text");
        File.WriteAllBytes(_temp["vmdk"], [.. "KDMV"u8, .. new byte[1000]]);
        File.WriteAllBytes(_temp["zeros.img"], new byte[4096]);
        Directory.CreateDirectory(_temp["sub"]);
        Create("sub/below.qcow2");
        File.CreateSymbolicLink(_temp["link"], "sub/below.qcow2");
        File.CreateSymbolicLink(_temp["out"], "/etc/passwd");
        Mount();
        Assert.Equal(["a.raw", "b.qcow2.raw", "link.raw", ".qcowfs"], Names(1));
        Assert.Equal(["a", "b.qcow2", "link"], Names(Find(".qcowfs")));
    }

    [Fact]
    public void Raw_images_are_those_that_are_stated_to_be()
    {
        File.WriteAllBytes(_temp["one.img"], new byte[5000]);
        File.WriteAllBytes(_temp["empty"], []);
        Mount(new OpenOptions { Format = "raw" });
        Assert.Equal(["empty.raw", "one.img.raw", ".qcowfs"], Names(1));
        Assert.Equal(5000, Attributes("one.img.raw").Size);
    }

    [Fact]
    public void Images_come_go_and_change_while_they_are_mounted()
    {
        Mount();
        Assert.Equal([".qcowfs"], Names(1));
        Create("a.qcow2");
        Assert.Equal(Size, Attributes("a.qcow2.raw").Size);
        ulong first = Find("a.qcow2.raw");
        Assert.Equal(["a.qcow2.raw", ".qcowfs"], Names(1));
        File.Delete(_temp["a.qcow2"]);
        Assert.Equal([".qcowfs"], Names(1));
        Assert.Equal(Errno.ENOENT, _system!.Lookup(1, "a.qcow2.raw"u8, out _));
        Assert.Equal(Errno.ESTALE, _system.Open(first, 0, out _));
        Create("a.qcow2", 2 * Size);
        Assert.Equal(2 * Size, Attributes("a.qcow2.raw").Size);
        Assert.NotEqual(first, Find("a.qcow2.raw"));
        File.WriteAllText(_temp["a.qcow2"], "no image any more");
        Assert.Equal([".qcowfs"], Names(1));
    }

    [Fact]
    public void A_file_that_becomes_an_image_after_it_was_looked_at_is_found()
    {
        File.WriteAllBytes(_temp["late.qcow2"], []);
        Mount();
        Assert.Equal([".qcowfs"], Names(1));
        File.Delete(_temp["late.qcow2"]);
        Create("late.qcow2");
        Assert.Equal(Size, Attributes("late.qcow2.raw").Size);
    }

    [Fact]
    public void What_is_open_stays_usable_when_its_file_goes()
    {
        Create("a.qcow2");
        Mount(new OpenOptions { Writable = true });
        ulong node = Find("a.qcow2.raw");
        ulong handle = Open(node, ReadWrite);
        File.Delete(_temp["a.qcow2"]);
        Assert.Equal([".qcowfs"], Names(1));
        Assert.Equal(Errno.None, _system!.Write(node, handle, 0, "abc"u8, 0, out _));
        byte[] read = new byte[3];
        Assert.Equal(Errno.None, _system.Read(node, handle, 0, read, out _));
        Assert.Equal("abc"u8, read);
        Create("a.qcow2"); // another of the same name
        Assert.NotEqual(node, Find("a.qcow2.raw"));
        Assert.Equal(1, _system.Opens);
        _system.Release(node, handle);
        Names(1);
        Assert.Equal(0, _system.Opens);
        Assert.Equal(3, _system.Close().Sum(r => r.Written));
    }

    [Fact]
    public void Nothing_is_open_before_it_is_used_nor_after()
    {
        for (int i = 0; i < 20; i++) Create($"{i}.qcow2");
        Mount(new OpenOptions { Writable = true });
        Assert.Equal(21, Names(1).Count);
        Assert.Equal(0, OpenFiles());
        ulong node = Find("7.qcow2.raw");
        ulong handle = Open(node);
        Assert.Equal(1, OpenFiles());
        Assert.Throws<ImageInUseException>(() => Opener.Open(_temp["7.qcow2"], new OpenOptions()));
        _system!.Release(node, handle);
        Assert.Equal(0, OpenFiles());
        Opener.Open(_temp["7.qcow2"], new OpenOptions { Writable = true }).Dispose();

        int OpenFiles() => Directory.GetFiles("/proc/self/fd").Count(f =>
            new FileInfo(f).LinkTarget is { } target && target.StartsWith(_temp.Root + "/", StringComparison.Ordinal));
    }

    [Fact]
    public void A_broken_image_says_why_and_the_others_work()
    {
        Create("good.qcow2");
        File.WriteAllBytes(_temp["bad.qcow2"], [.. "QFI\u00fb"u8[..3], 0xFB, 0, 0, 0, 9]);
        Create("lost.qcow2");
        new ImageCreator(HostFileSystem.Instance).Create(
            new ImageRequest { Path = _temp["child.qcow2"], Format = "qcow2", BackingName = "lost.qcow2", BackingFormat = "qcow2" });
        File.Delete(_temp["lost.qcow2"]);
        Mount();
        Assert.Equal(["bad.qcow2.raw", "child.qcow2.raw", "good.qcow2.raw", ".qcowfs"], Names(1));
        foreach (string broken in new[] { "bad.qcow2", "child.qcow2" })
        {
            FuseAttributes attributes = Attributes(broken + ".raw");
            Assert.Equal((0L, 0x8000u), (attributes.Size, attributes.Mode));
            Assert.Equal(Errno.EIO, _system!.Open(Find(broken + ".raw"), 0, out _));
            Assert.Equal(["error.txt"], Names(Find(".qcowfs/" + broken)));
        }
        Assert.Contains("\"lost.qcow2\": it does not exist", Text(".qcowfs/child.qcow2/error.txt"), StringComparison.Ordinal);
        Assert.EndsWith("\n", Text(".qcowfs/bad.qcow2/error.txt"), StringComparison.Ordinal);
        _system!.Release(Find("good.qcow2.raw"), Open(Find("good.qcow2.raw")));
        Create("lost.qcow2");
        File.SetLastWriteTimeUtc(_temp["child.qcow2"], DateTime.UnixEpoch); // changed: looked at again at once
        Names(1);
        Assert.Equal(Size, Attributes("child.qcow2.raw").Size);
        Assert.Equal(["info.json", "map.json", "stats.json"], Names(Find(".qcowfs/child.qcow2")));
    }

    [Fact]
    public void A_base_of_another_is_shown_read_only_while_it_is_one()
    {
        Create("base.qcow2");
        Create("alone.qcow2");
        Mount(new OpenOptions { Writable = true });
        Assert.Equal(0x8180u, Attributes("base.qcow2.raw").Mode);
        ulong before = Find("base.qcow2.raw");
        new ImageCreator(HostFileSystem.Instance).Create(
            new ImageRequest { Path = _temp["child.qcow2"], Format = "qcow2", BackingName = "base.qcow2", BackingFormat = "qcow2" });
        Names(1);
        Assert.Equal(0x8100u, Attributes("base.qcow2.raw").Mode);
        Assert.NotEqual(before, Find("base.qcow2.raw"));
        Assert.Equal(Errno.EROFS, _system!.Open(Find("base.qcow2.raw"), ReadWrite, out _));
        Assert.Equal(0x8180u, Attributes("child.qcow2.raw").Mode);
        Assert.Equal(0x8180u, Attributes("alone.qcow2.raw").Mode);
        // Both at the same time: the child for writing, its base for reading.
        ulong child = Find("child.qcow2.raw");
        ulong handle = Open(child, ReadWrite);
        ulong based = Find("base.qcow2.raw");
        _system.Release(based, Open(based));
        _system.Release(child, handle);
        File.Delete(_temp["child.qcow2"]);
        Names(1);
        Assert.Equal(0x8180u, Attributes("base.qcow2.raw").Mode);
    }

    [Fact]
    public void Partitions_and_snapshots_are_there_before_anything_is_opened()
    {
        Create("a.qcow2");
        PartitionBytes table = new PartitionBytes(Size).Gpt((100, 199), (200, 299));
        using (IDiskImage disk = Opener.Open(_temp["a.qcow2"], new OpenOptions { Writable = true }))
        {
            disk.Write(0, table.Bytes);
            disk.Close();
        }
        new ImageEditor(HostFileSystem.Instance, TimeProvider.System).EditSnapshot(_temp["a.qcow2"], null, SnapshotAction.Create, "x/y");
        Mount(new OpenOptions { Writable = true });
        string[] expected = ["a.qcow2.raw", "a.qcow2.p1.raw", "a.qcow2.p2.raw", "a.qcow2@x%2Fy.raw", ".qcowfs"];
        Assert.Equal(expected, Names(1));
        Assert.Equal(100 * 512, Attributes("a.qcow2.p2.raw").Size);
        Assert.Equal(Size, Attributes("a.qcow2@x%2Fy.raw").Size);

        // The table changes through the disk; what is open keeps its range.
        ulong disk1 = Find("a.qcow2.raw");
        ulong second = Find("a.qcow2.p2.raw");
        ulong whole = Open(disk1, ReadWrite);
        ulong part = Open(second, ReadWrite);
        _system!.Write(disk1, whole, 0, new PartitionBytes(Size).Gpt((100, 199), default, (300, 399)).Bytes, 0, out _);
        Assert.Equal(["a.qcow2.raw", "a.qcow2.p1.raw", "a.qcow2.p3.raw", "a.qcow2@x%2Fy.raw", ".qcowfs"], Names(1));
        Assert.Equal(Errno.None, _system.Write(second, part, 0, "abc"u8, 0, out _));
        byte[] read = new byte[3];
        _system.Read(disk1, whole, 200 * 512, read, out _);
        Assert.Equal("abc"u8, read);
        _system.Release(second, part);
        _system.Release(disk1, whole);
        Assert.Contains("a.qcow2.p3.raw", Names(1));
        // The snapshot is as it was.
        ulong snapshot = Find("a.qcow2@x%2Fy.raw");
        ulong handle = Open(snapshot);
        byte[] start = new byte[4096];
        _system.Read(snapshot, handle, 0, start, out _);
        Assert.Equal(table.Bytes[..4096], start);
        _system.Release(snapshot, handle);
    }

    [Fact]
    public void A_name_that_two_want_goes_to_the_disk_and_the_log_says_so()
    {
        Create("a.qcow2");
        using (IDiskImage disk = Opener.Open(_temp["a.qcow2"], new OpenOptions { Writable = true }))
        {
            disk.Write(0, new PartitionBytes(Size).Gpt((100, 199), (200, 299)).Bytes);
            disk.Close();
        }
        Create("a.qcow2.p1", 2 * Size);
        Mount();
        Assert.Equal(["a.qcow2.raw", "a.qcow2.p2.raw", "a.qcow2.p1.raw", ".qcowfs"], Names(1));
        Assert.Equal(2 * Size, Attributes("a.qcow2.p1.raw").Size);
        Names(1);
        Assert.Equal("\"a.qcow2.p1.raw\": another file has this name already; the later one is left out", Assert.Single(_log));
        File.Delete(_temp["a.qcow2.p1"]);
        Names(1);
        Assert.Equal(100 * 512, Attributes("a.qcow2.p1.raw").Size);
    }

    [Fact]
    public void A_table_that_is_wrong_is_told_in_the_log_and_in_error_txt()
    {
        Create("a.qcow2");
        using (IDiskImage disk = Opener.Open(_temp["a.qcow2"], new OpenOptions { Writable = true }))
        {
            disk.Write(0, new PartitionBytes(Size).Gpt((100, 199), (150, 9999)).Bytes);
            disk.Close();
        }
        Mount();
        Assert.Equal(["a.qcow2.raw", "a.qcow2.p1.raw", "a.qcow2.p2.raw", ".qcowfs"], Names(1));
        Assert.Equal(Size - (150 * 512), Attributes("a.qcow2.p2.raw").Size);
        Assert.Equal(2, _log.Count);
        Assert.Equal(2, Text(".qcowfs/a.qcow2/error.txt").Split('\n', StringSplitOptions.RemoveEmptyEntries).Length);
        Assert.Equal(["info.json", "map.json", "stats.json", "error.txt"], Names(Find(".qcowfs/a.qcow2")));
    }

    [Fact]
    public void Names_that_are_not_UTF_8_are_served_as_they_are()
    {
        Create("x");
        ChildProcess.Run("sh", "-c", $"mv {_temp["x"]} \"$(printf '{_temp.Root}/x\\377')\"").MustSucceed();
        Mount();
        byte[] name = [(byte)'x', 0xFF, .. ".raw"u8];
        Names(1);
        Assert.Equal(Errno.None, _system!.Lookup(1, name, out FuseEntry entry));
        Assert.Equal(Size, entry.Attributes.Size);
        _system.Release(entry.Node, Open(entry.Node));
        ChildProcess.Run("sh", "-c", $"rm {_temp.Root}/x*").MustSucceed(); // the runtime cannot name it
    }

    [Fact]
    public void An_image_that_another_process_writes_is_listed_and_busy()
    {
        Create("a.qcow2");
        using (IDiskImage other = Opener.Open(_temp["a.qcow2"], new OpenOptions { Writable = true }))
        {
            Mount();
            Assert.Equal(Size, Attributes("a.qcow2.raw").Size);
            Assert.Throws<ImageInUseException>(() => _system!.Open(Find("a.qcow2.raw"), 0, out _));
            Names(1);
            Assert.Contains("in use", Text(".qcowfs/a.qcow2/error.txt"), StringComparison.Ordinal);
        }
        _system!.Release(Find("a.qcow2.raw"), Open(Find("a.qcow2.raw")));
    }

    [Fact]
    public void Facts_of_an_image_that_nobody_uses_open_it_briefly()
    {
        Create("a.qcow2");
        Mount(new OpenOptions { Writable = true });
        Assert.Contains("\"virtual-size\": 1048576", Text(".qcowfs/a.qcow2/info.json"), StringComparison.Ordinal);
        Assert.Contains("\"kind\": \"hole\"", Text(".qcowfs/a.qcow2/map.json"), StringComparison.Ordinal);
        Assert.Contains("\"open\": false", Text(".qcowfs/a.qcow2/stats.json"), StringComparison.Ordinal);
        Opener.Open(_temp["a.qcow2"], new OpenOptions { Writable = true }).Dispose();
    }

    [Theory]
    [InlineData(1, false)]
    [InlineData(2, true)]
    public void Cached_pages_are_kept_only_where_the_file_is_the_same(int rounds, bool changes)
    {
        Create("a.qcow2");
        File.SetLastWriteTimeUtc(_temp["a.qcow2"], DateTime.UnixEpoch);
        Mount();
        ulong node = Find("a.qcow2.raw");
        Assert.Equal(FuseOpenFlags.None, FlagsOfOpen()); // the first: nothing to keep
        Assert.Equal(FuseOpenFlags.KeepCache, FlagsOfOpen());
        if (changes) File.SetLastWriteTimeUtc(_temp["a.qcow2"], DateTime.UnixEpoch.AddDays(rounds));
        Assert.Equal(changes ? FuseOpenFlags.None : FuseOpenFlags.KeepCache, FlagsOfOpen());

        FuseOpenFlags FlagsOfOpen()
        {
            Assert.Equal(Errno.None, _system!.Open(node, 0, out FuseOpenResult result));
            _system.Release(node, result.Handle);
            return result.Flags;
        }
    }

    private static ImageOpener Opener => new(HostFileSystem.Instance);

    private void Mount(OpenOptions? open = null)
    {
        open ??= new OpenOptions();
        _directory = new ImageDirectory(_temp.Root, new ImageDirectoryOptions { Open = open, Log = _log.Add });
        TreeSettings settings = new() { Uid = 0, Gid = 0, FileMode = open.Writable ? 0x180u : 0x100u };
        _system = DiskFileSystem.ForDirectory(_directory, settings, TimeProvider.System, _log.Add);
    }

    private void Create(string name, long size = Size) =>
        new ImageCreator(HostFileSystem.Instance).Create(new ImageRequest { Path = _temp[name], Format = "qcow2", Size = size });

    private ulong Find(string path)
    {
        FuseEntry entry = new() { Node = IFuseFileSystem.RootNode };
        foreach (string name in path.Split('/'))
            Assert.Equal(Errno.None, _system!.Lookup(entry.Node, Encoding.UTF8.GetBytes(name), out entry));
        return entry.Node;
    }

    private FuseAttributes Attributes(string path)
    {
        Assert.Equal(Errno.None, _system!.GetAttributes(Find(path), 0, out FuseAttributes attributes));
        return attributes;
    }

    private ulong Open(ulong node, int flags = 0)
    {
        Assert.Equal(Errno.None, _system!.Open(node, flags, out FuseOpenResult result));
        return result.Handle;
    }

    private string Text(string path)
    {
        ulong node = Find(path);
        ulong handle = Open(node);
        byte[] buffer = new byte[65536];
        Assert.Equal(Errno.None, _system!.Read(node, handle, 0, buffer, out int count));
        _system.Release(node, handle);
        return Encoding.UTF8.GetString(buffer, 0, count);
    }

    /// <summary>Names of a directory without the dots.</summary>
    private List<string> Names(ulong node) => [.. DirectoryNames.Of(_system!, node).Skip(2)];
}
