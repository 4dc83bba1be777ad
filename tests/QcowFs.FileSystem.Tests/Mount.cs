// A file system over one disk in memory, and the few calls that tests make again and again.
using System.Text;
using QcowFs.Fuse;
using QcowFs.Native;
using Xunit;

namespace QcowFs.FileSystem.Tests;

/// <summary>A tree over one <see cref="MemoryDisk"/>.</summary>
internal sealed class Mount
{
    public static readonly DateTimeOffset HostTime = new(2024, 5, 6, 7, 8, 9, TimeSpan.Zero);

    public static readonly QcowFs.Images.ImageFileFacts Facts = new()
    {
        Path = "dir/disk.qcow2",
        Format = "qcow2",
        VirtualSize = 1 << 20,
        ClusterSize = 65536,
        BackingName = "base",
        FullBackingName = "dir/base",
        BackingFormat = "raw",
        Snapshots = [new("1", "before", 0, 1700000000, 5, 1_500_000_000, null, 1 << 20)],
        FormatSpecific =
        [
            new("compat", "1.1"), new("lazy-refcounts", false), new("refcount-bits", 16L),
            new("bitmaps", new List<IReadOnlyList<QcowFs.Images.FormatFact>> { new QcowFs.Images.FormatFact[] { new("flags", new List<string> { "auto" }), new("name", "b") } }),
        ],
        Lock = new("qcowfs (process 1)", true),
    };

    public Mount(MemoryDisk disk, uint? mode = null, bool alwaysDirect = false, bool rootIsDisk = false, bool staysOpen = true,
        TimeSpan? releasePatience = null, PassthroughRule passthrough = PassthroughRule.None, bool growable = false)
    {
        Disk = disk;
        TreeSettings settings = new()
        {
            Uid = 1001,
            Gid = 1002,
            FileMode = mode ?? (disk.IsReadOnly ? 0x100u : 0x180u),
            AlwaysDirect = alwaysDirect,
            Passthrough = Passthrough = new Passthrough(passthrough, Log.Add),
        };
        Hold = new MemoryHold(disk, Facts, new HostFileFacts(77, HostTime));
        Image = new MountedImage(
            new MountedImageOptions
            {
                Name = "disk.qcow2",
                Writable = !disk.IsReadOnly,
                StaysOpen = staysOpen,
                Growable = growable,
                Log = Log.Add,
                ReleasePatience = releasePatience ?? TimeSpan.Zero,
            },
            () => Hold);
        if (!staysOpen)
            Image.SetShape(new ImageShape("qcow2", disk.Length, 65536, Facts.Snapshots, Partitions.PartitionTable.None), null);
        System = rootIsDisk
            ? DiskFileSystem.ForFile(Image, settings)
            : DiskFileSystem.ForImage(Image, settings, TimeProvider.System, Log.Add);
        Raw = rootIsDisk ? IFuseFileSystem.RootNode : Find("disk.qcow2.raw").Node;
    }

    public MemoryDisk Disk { get; }

    public MountedImage Image { get; }

    public Passthrough Passthrough { get; }

    public MemoryHold Hold { get; }

    public List<string> Log { get; } = [];

    public DiskFileSystem System { get; }

    /// <summary>Node id of the disk's file.</summary>
    public ulong Raw { get; }

    public FuseEntry Find(string path)
    {
        FuseEntry entry = new() { Node = IFuseFileSystem.RootNode };
        foreach (string name in path.Split('/'))
            Assert.Equal(Errno.None, System.Lookup(entry.Node, Encoding.UTF8.GetBytes(name), out entry));
        return entry;
    }

    public ulong Open(ulong node, int flags = 0)
    {
        Assert.Equal(Errno.None, System.Open(node, flags, out FuseOpenResult result));
        Assert.NotEqual(0ul, result.Handle);
        return result.Handle;
    }

    public FuseAttributes Attributes(ulong node, ulong handle = 0)
    {
        Assert.Equal(Errno.None, System.GetAttributes(node, handle, out FuseAttributes attributes));
        return attributes;
    }

    public string ReadText(string path)
    {
        ulong node = Find(path).Node;
        ulong handle = Open(node);
        byte[] buffer = new byte[1 << 20];
        Assert.Equal(Errno.None, System.Read(node, handle, 0, buffer, out int count));
        System.Release(node, handle);
        return Encoding.UTF8.GetString(buffer, 0, count);
    }

    /// <summary>Names of a directory, in listing order, read in replies of <paramref name="replySize"/> bytes.</summary>
    public List<string> List(ulong node, bool plus = false, int replySize = 4096) => DirectoryNames.Of(System, node, plus, replySize);
}
