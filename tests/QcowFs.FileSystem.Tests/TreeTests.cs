// Directories, fact files, references and the end of a mount.
using System.Text;
using System.Text.Json;
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class TreeTests
{
    private const int Size = 1 << 20;

    [Theory]
    [InlineData(false, 4096)]
    [InlineData(true, 4096)]
    [InlineData(true, 200)] // one or two entries a reply
    public void Directories_list_the_tree_of_the_contract(bool plus, int replySize)
    {
        Mount mount = new(new MemoryDisk(Size));
        Assert.Equal([".", "..", "disk.qcow2.raw", "disk.qcow2@before.raw", ".qcowfs"], mount.List(IFuseFileSystem.RootNode, plus, replySize));
        Assert.Equal([".", "..", "disk.qcow2"], mount.List(mount.Find(".qcowfs").Node, plus, replySize));
        Assert.Equal(
            [".", "..", "info.json", "map.json", "stats.json"], mount.List(mount.Find(".qcowfs/disk.qcow2").Node, plus, replySize));
    }

    [Fact]
    public void What_is_not_there_is_not_found()
    {
        Mount mount = new(new MemoryDisk(Size));
        Assert.Equal(Errno.ENOENT, mount.System.Lookup(IFuseFileSystem.RootNode, "disk.qcow2"u8, out _));
        Assert.Equal(Errno.ENOTDIR, mount.System.Lookup(mount.Raw, "x"u8, out _));
        Assert.Equal(Errno.ESTALE, mount.System.Lookup(4711, "x"u8, out _));
        Assert.Equal(Errno.ESTALE, mount.System.GetAttributes(4711, 0, out _));
        Assert.Equal(Errno.EISDIR, mount.System.Open(IFuseFileSystem.RootNode, 0, out _));
        Assert.Equal(Errno.ENOTDIR, mount.System.OpenDirectory(mount.Raw, out _));
    }

    [Fact]
    public void Inode_numbers_differ_and_stay()
    {
        Mount mount = new(new MemoryDisk(Size));
        string[] paths = ["disk.qcow2.raw", ".qcowfs", ".qcowfs/disk.qcow2", ".qcowfs/disk.qcow2/info.json"];
        ulong[] first = [.. paths.Select(p => mount.Find(p).Attributes.Inode)];
        Assert.Equal(first.Length, first.Distinct().Count());
        Assert.DoesNotContain(IFuseFileSystem.RootNode, first);
        Assert.Equal(first, paths.Select(p => mount.Find(p).Attributes.Inode));
    }

    [Fact]
    public void A_facts_file_keeps_its_content_for_each_open()
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk);
        ulong node = mount.Find(".qcowfs/disk.qcow2/stats.json").Node;
        ulong first = mount.Open(node);
        disk.Statistics.AddWritten(1_000_000_000_000);
        ulong second = mount.Open(node);
        byte[] a = Read(first);
        byte[] b = Read(second);
        Assert.NotEqual(a.Length, b.Length);
        Assert.Equal(a.Length, mount.Attributes(node, first).Size);
        Assert.Equal(b.Length, mount.Attributes(node, second).Size);
        Assert.Equal(b.Length, mount.Attributes(node).Size);
        Assert.Equal(Errno.None, mount.System.Seek(node, first, 1, 4, out long hole));
        Assert.Equal(a.Length, hole);
        Assert.Equal(2, mount.System.Opens);
        mount.System.Release(node, first);
        mount.System.Release(node, second);
        Assert.Equal(Errno.EBADF, mount.System.Read(node, first, 0, new byte[10], out _));
        Assert.Equal(0, mount.System.Opens);

        byte[] Read(ulong handle)
        {
            byte[] all = new byte[65536];
            Assert.Equal(Errno.None, mount.System.Read(node, handle, 0, all, out int count));
            Assert.Equal(Errno.None, mount.System.Read(node, handle, count, all, out int atEnd));
            Assert.Equal(0, atEnd);
            return all[..count];
        }
    }

    [Fact]
    public void A_facts_file_is_only_read()
    {
        Mount mount = new(new MemoryDisk(Size));
        ulong node = mount.Find(".qcowfs/disk.qcow2/info.json").Node;
        Assert.Equal(Errno.EACCES, mount.System.Open(node, 2, out _));
        FuseSetAttributes truncation = new() { Size = 0 };
        Assert.Equal(Errno.EPERM, mount.System.SetAttributes(node, in truncation, out _));
        Assert.Equal(Errno.EOPNOTSUPP, mount.System.Allocate(node, 1, 0, 1, 3));
        Assert.Equal(Errno.EBADF, mount.System.Write(node, 1, 0, "x"u8, 0, out _));
        Assert.Equal(FuseOpenFlags.DirectIo, OpenFlagsOf(node));

        FuseOpenFlags OpenFlagsOf(ulong file)
        {
            Assert.Equal(Errno.None, mount.System.Open(file, 0, out FuseOpenResult result));
            return result.Flags;
        }
    }

    [Fact]
    public void Statfs_tells_the_block_size_of_the_mapping()
    {
        Mount mount = new(new MemoryDisk(Size + 1));
        Assert.Equal(Errno.None, mount.System.StatFs(mount.Raw, out FuseStatFs found));
        Assert.Equal(65536u, found.BlockSize);
        Assert.Equal((ulong)(Size / 65536) + 1, found.Blocks);
        Mount raw = new(new MemoryDisk(Size, blockSize: 0));
        Assert.Equal(Errno.None, raw.System.StatFs(IFuseFileSystem.RootNode, out found));
        Assert.Equal(4096u, found.BlockSize);
    }

    [Fact]
    public void The_map_merges_neighbours_and_names_layers()
    {
        MemoryDisk disk = new(Size, readOnly: true);
        disk.Info = disk.Info with { Backing = disk.Info with { Path = "dir/base.raw", Format = "raw" } };
        disk.Map.AddRange(
        [
            (ExtentKind.Data, 65536, 0x50000, 0), (ExtentKind.Data, 65536, 0x60000, 0), (ExtentKind.Data, 65536, 0x90000, 0),
            (ExtentKind.Compressed, 65536, 1000, 0), (ExtentKind.Compressed, 65536, 66536, 0),
            (ExtentKind.Zero, 65536, -1, 0), (ExtentKind.Data, 65536, 0, 1), (ExtentKind.Backing, 65536, -1, 1),
        ]);
        Assert.Equal(
        [
            new(0, 131072, "data", 0x50000, 0, "dir/disk.qcow2"),
            new(131072, 65536, "data", 0x90000, 0, "dir/disk.qcow2"),
            new(196608, 65536, "compressed", 1000, 0, "dir/disk.qcow2"),
            new(262144, 65536, "compressed", 66536, 0, "dir/disk.qcow2"),
            new(327680, 65536, "zero", -1, 0, null),
            new(393216, 65536, "data", 0, 1, "dir/base.raw"),
            new(458752, 65536, "hole", -1, 1, null),
            new(524288, Size - 524288, "hole", -1, 0, null),
        ],
            DiskMap.Entries(disk));
        using JsonDocument json = JsonDocument.Parse(new Mount(disk).ReadText(".qcowfs/disk.qcow2/map.json"));
        Assert.Equal(8, json.RootElement.GetArrayLength());
        JsonElement first = json.RootElement[0];
        Assert.Equal(
            ["offset", "length", "kind", "host-offset", "depth", "file"], first.EnumerateObject().Select(p => p.Name));
        Assert.Equal(0x50000, first.GetProperty("host-offset").GetInt64());
        Assert.Equal(JsonValueKind.Null, json.RootElement[4].GetProperty("host-offset").ValueKind);
    }

    [Fact]
    public void Info_has_qemus_keys_and_ours()
    {
        string expected =
            """{"filename":"dir/disk.qcow2","format":"qcow2","virtual-size":1048576,"actual-size":39424,"cluster-size":65536,"""
            + """ "backing-filename":"base","full-backing-filename":"dir/base","backing-filename-format":"raw","""
            + """ "snapshots":[{"id":"1","name":"before","vm-state-size":0,"date-sec":1700000000,"date-nsec":5,"vm-clock-sec":1,"""
            + """ "vm-clock-nsec":500000000,"disk-size":1048576}],"""
            + """ "format-specific":{"type":"qcow2","data":{"compat":"1.1","lazy-refcounts":false,"refcount-bits":16,"""
            + """ "bitmaps":[{"flags":["auto"],"name":"b"}]}},"dirty-flag":false,"log":null,"""
            + """ "lock":{"holder":"qcowfs (process """ + Environment.ProcessId + """)","writes":true}}""";
        using JsonDocument wanted = JsonDocument.Parse(expected);
        using JsonDocument found = JsonDocument.Parse(new Mount(new MemoryDisk(Size)).ReadText(".qcowfs/disk.qcow2/info.json"));
        Assert.True(JsonElement.DeepEquals(wanted.RootElement, found.RootElement), found.RootElement.ToString());
        Assert.Equal(
            wanted.RootElement.EnumerateObject().Select(p => p.Name), found.RootElement.EnumerateObject().Select(p => p.Name));
    }

    [Fact]
    public void A_map_beyond_the_limit_ends_in_one_coarse_entry_with_a_note()
    {
        MemoryDisk disk = new(Size, readOnly: true);
        for (int i = 0; i < 256; i++) disk.Map.Add((i % 2 == 0 ? ExtentKind.Data : ExtentKind.Zero, 4096, i % 2 == 0 ? i * 4096 : -1, 0));
        using JsonDocument json = JsonDocument.Parse(ImageFacts.Map(disk, limit: 2000));
        long covered = 0;
        foreach (JsonElement entry in json.RootElement.EnumerateArray())
        {
            Assert.Equal(covered, entry.GetProperty("offset").GetInt64());
            covered += entry.GetProperty("length").GetInt64();
        }
        Assert.Equal(Size, covered);
        JsonElement last = json.RootElement[json.RootElement.GetArrayLength() - 1];
        Assert.Contains("qcowfs map", last.GetProperty("note").GetString(), StringComparison.Ordinal);
        Assert.InRange(json.RootElement.GetArrayLength(), 5, 40);
    }

    [Fact]
    public void A_removed_node_stays_until_the_kernel_forgets_it()
    {
        NodeTable table = new();
        TreeSettings settings = new() { Uid = 0, Gid = 0, FileMode = 0x100 };
        table.Add(new DirectoryNode([], null, settings, default));
        DirectoryNode node = table.Add(new DirectoryNode("x"u8.ToArray(), null, settings, default));
        Assert.Equal(2ul, node.Number);
        Assert.True(table.TryReference(2));
        Assert.True(table.TryReference(2));
        table.Remove(node);
        Assert.True(table.TryGet(2, out _));
        table.Forget(2, 1);
        Assert.True(table.TryGet(2, out _));
        table.Forget(2, 1);
        Assert.False(table.TryGet(2, out _));
        Assert.False(table.TryReference(2));
        Assert.Equal(3ul, table.Add(new DirectoryNode("y"u8.ToArray(), null, settings, default)).Number); // numbers are not used again
        table.Forget(3, 99); // in the tree: stays, however much is forgotten
        Assert.True(table.TryGet(3, out _));
        table.Remove(table.TryGet(3, out Node? y) ? y : node);
        Assert.False(table.TryGet(3, out _)); // nobody held it
    }

    [Theory]
    [InlineData(false, 0)]
    [InlineData(true, 1)]
    public void Only_a_listing_with_attributes_counts_references(bool plus, int counted)
    {
        Mount mount = new(new MemoryDisk(Size));
        ulong facts = mount.Find(".qcowfs/disk.qcow2").Node;
        ulong info = mount.Find(".qcowfs/disk.qcow2/info.json").Node;
        Assert.Equal(1ul, mount.System.ReferencesTo(info)); // the lookup's
        mount.List(facts, plus, replySize: 200); // small replies: an entry that does not fit must not count
        Assert.Equal(1ul + (ulong)counted, mount.System.ReferencesTo(info));
    }

    [Fact]
    public void The_receipt_tells_what_was_done()
    {
        MemoryDisk disk = new(Size);
        disk.Info = disk.Info with { Recovery = "12 leaked clusters collected" };
        disk.Statistics.AddWritten(4096);
        disk.Statistics.AddDiscarded(65536);
        ImageReceipt receipt = new Mount(disk).Image.Close();
        Assert.Equal(new ImageReceipt("disk.qcow2", "12 leaked clusters collected", 4096, 65536, 0, "not run", null), receipt);
        Assert.Equal(["close", "dispose"], disk.Calls);
    }

    [Fact]
    public void The_receipt_tells_what_went_wrong()
    {
        MemoryDisk disk = new(Size) { FailClose = new StorageException(Errno.EIO, "sync", "dir/disk.qcow2") };
        Assert.Equal("dir/disk.qcow2: sync failed: input/output error", new Mount(disk).Image.Close().Error);
        Assert.Equal(["close", "dispose"], disk.Calls);
        MemoryDisk failed = new(Size) { Failure = "write failed earlier", FailClose = new StorageException(Errno.EIO, "sync", "x") };
        Assert.Equal("write failed earlier", new Mount(failed).Image.Close().Error);
    }

    [Fact]
    public void Faults_are_told_to_the_kernel_as_a_disk_would()
    {
        Assert.Equal(Errno.ENOSPC, ErrorMap.ToErrno(new StorageException(Errno.ENOSPC, "write", "x")));
        Assert.Equal(Errno.ENOSPC, ErrorMap.ToErrno(new StorageException(Errno.EDQUOT, "write", "x")));
        Assert.Equal(Errno.EBUSY, ErrorMap.ToErrno(new ImageInUseException("x", "qemu", writes: true)));
        Assert.Equal(Errno.EIO, ErrorMap.ToErrno(new StorageException(Errno.EACCES, "write", "x")));
        Assert.Equal(Errno.EIO, ErrorMap.ToErrno(new ImageFormatException("x", "L2 table", 0, "p", "a")));
        Assert.Equal(Errno.EIO, ErrorMap.ToErrno(new InvalidOperationException()));
    }

    [Fact]
    public void Names_are_bytes()
    {
        Mount mount = new(new MemoryDisk(Size));
        Assert.Equal("disk.qcow2.raw", Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(mount.List(1)[2])));
        Assert.Equal(Errno.ENOENT, mount.System.Lookup(1, "disk.qcow2.ra"u8, out _));
        Assert.Equal(Errno.ENOENT, mount.System.Lookup(1, "disk.qcow2.raw\0"u8, out _));
        Assert.Equal(Errno.ENOENT, mount.System.Lookup(1, [], out _));
    }
}
