// The defects that other programs shipped, as fixtures: each image made by hand, each answered by a refusal, a finding or the right
// bytes, in bounded memory, with nothing opened that the image names.
using System.IO.Compression;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class KnownDefectTests : IDisposable
{
    private readonly TempDirectory _temp = new();
    private readonly RecordingFiles _files = new();
    private readonly ImageOpener _opener;

    public KnownDefectTests() => _opener = new ImageOpener(_files);

    public void Dispose() => _temp.Dispose();

    // CVE-2014-0143, -0144, -0145, -0147: sizes and offsets of tables that overflow when they are multiplied or added.
    [Theory]
    [InlineData(Qcow2HeaderLayout.ClusterBitsAt, 4, 0)]
    [InlineData(Qcow2HeaderLayout.ClusterBitsAt, 4, 63)]
    [InlineData(Qcow2HeaderLayout.ClusterBitsAt, 4, 0x80000000)]
    [InlineData(Qcow2HeaderLayout.L1SizeAt, 4, 0x20000001)]
    [InlineData(Qcow2HeaderLayout.L1SizeAt, 4, 0xFFFFFFFF)]
    [InlineData(Qcow2HeaderLayout.L1OffsetAt, 8, 0x7FFFFFFFFFFF0000)]
    [InlineData(Qcow2HeaderLayout.RefcountTableClustersAt, 4, 0xFFFFFFFF)]
    [InlineData(Qcow2HeaderLayout.RefcountTableClustersAt, 4, 0x20000)]
    [InlineData(Qcow2HeaderLayout.RefcountTableOffsetAt, 8, 0xFFFFFFFFFFFF0000)]
    [InlineData(Qcow2HeaderLayout.SnapshotCountAt, 4, 0xFFFFFFFF)]
    [InlineData(Qcow2HeaderLayout.SnapshotsOffsetAt, 8, 0x7FFFFFFFFFFF0000)]
    [InlineData(Qcow2HeaderLayout.VirtualSizeAt, 8, 0x7FFFFFFFFFFFFE00)]
    [InlineData(Qcow2HeaderLayout.VirtualSizeAt, 8, 0xFFFFFFFFFFFFFFFF)]
    [InlineData(Qcow2HeaderLayout.BackingNameOffsetAt, 8, 0xFFFFFFFFFFFFFFF0)]
    [InlineData(Qcow2HeaderLayout.HeaderLengthAt, 4, 0xFFFFFFF8)]
    public void Header_fields_that_overflow_are_refused(int offset, int width, ulong value)
    {
        string path = WithSnapshot();
        using (Damage hands = new(path))
        {
            if (width == 4)
                hands.Set32(offset, (uint)value);
            else
                hands.Set(offset, value);
        }

        foreach (Action use in (Action[])
            [
                () => _opener.ReadInfo(path), () => _opener.Check(path),
                () => _opener.Open(path, new OpenOptions()).Dispose(), () => _opener.Open(path, new OpenOptions { Writable = true }).Dispose(),
            ])
        {
            Assert.Throws<ImageFormatException>(() => Measured(use));
        }
    }

    // CVE-2014-0143, -0145: a snapshot's L1 table of 4 billion entries. CVE-2014-0146: the open that fails on the way.
    [Theory]
    [InlineData(0xFFFFFFFF, 0x30000)]
    [InlineData(0x10000000, 0x30000)]
    [InlineData(4 << 20, 0x7FFFFFFFFFFF0000)]
    [InlineData(1, 0xFFFFFFFFFFFF0000)]
    public void A_snapshot_with_an_impossible_L1_table_is_found(uint size, ulong offset)
    {
        string path = WithSnapshot();
        using (Damage hands = new(path))
        {
            hands.Set(hands.Header.SnapshotsOffset, offset);
            hands.Set32(hands.Header.SnapshotsOffset + 8, size);
        }

        CheckReport report = Measured(() => _opener.Check(path));
        Assert.Equal(2, report.ExitCode);
        Measured(() => _opener.ReadInfo(path));
        Measured(() => _opener.Open(path, new OpenOptions()).Dispose());
    }

    // CVE-2014-0145: names and extra data that reach out of the table.
    [Theory]
    [InlineData(12, 0xFFFF0000)]
    [InlineData(12, 0x0000FFFF)]
    [InlineData(36, 0xFFFFFFFF)]
    [InlineData(36, 1025)]
    public void A_snapshot_entry_longer_than_the_file_is_refused(int field, uint value)
    {
        string path = WithSnapshot();
        using (Damage hands = new(path))
            hands.Set32(hands.Header.SnapshotsOffset + field, value);
        Assert.Throws<ImageFormatException>(() => Measured(() => _opener.ReadInfo(path)));
        Assert.Throws<ImageFormatException>(() => Measured(() => _opener.Check(path)));
    }

    // CVE-2008-2004, CVE-2010-3851, CVE-2013-1922, CVE-2026-27211: the guest writes a qcow2 header into its raw disk.
    [Fact]
    public void A_raw_disk_that_looks_like_qcow2_stays_raw_where_that_is_stated_and_leads_nowhere_where_it_is_not()
    {
        string path = Made("disk.raw", new Qcow2CreateOptions { VirtualSize = 1 << 20, BackingName = "/etc/shadow", BackingFormat = "raw" });
        byte[] bytes = File.ReadAllBytes(path);
        using (IDiskImage image = _opener.Open(path, new OpenOptions { Format = "raw", Writable = true }))
        {
            byte[] read = new byte[image.Length];
            image.Read(0, read);
            Assert.Equal(bytes, read);
        }

        Assert.Throws<ImageFormatException>(() => _opener.Open(path, new OpenOptions()));
        Assert.All(_files.Opened, o => Assert.Equal(path, o.Path));
    }

    // CVE-2026-24708: the guest writes a qcow2 header into its raw disk, and the host resizes the disk without stating its format.
    [Fact]
    public void A_raw_disk_that_looks_like_qcow2_is_resized_as_raw_where_that_is_stated_and_else_not_at_all()
    {
        string victim = _temp["victim"];
        File.WriteAllBytes(victim, [.. Enumerable.Range(0, 100_000).Select(i => (byte)(i % 251))]);
        byte[] precious = File.ReadAllBytes(victim);
        foreach (Qcow2CreateOptions options in (Qcow2CreateOptions[])
            [
                new() { VirtualSize = 1 << 20, BackingName = "/etc/shadow", BackingFormat = "raw" },
                new() { VirtualSize = 1 << 20, DataFileName = victim },
                new() { VirtualSize = 1 << 20, DataFileName = "/etc/shadow" },
            ])
        {
            string path = Made("disk.raw", options);
            byte[] bytes = File.ReadAllBytes(path);
            ImageEditor editor = new(_files, TimeProvider.System);
            OpenOptions none = new() { References = ReferencePolicy.None };
            Assert.Throws<ImageFormatException>(() => editor.Resize(path, none, new SizeChange(2 << 20), mayShrink: false));
            Assert.Equal(bytes, File.ReadAllBytes(path));
            editor.Resize(path, none with { Format = "raw" }, new SizeChange(2 << 20), mayShrink: false);
            Assert.Equal([.. bytes, .. new byte[(2 << 20) - bytes.Length]], File.ReadAllBytes(path));
        }

        Assert.Equal(precious, File.ReadAllBytes(victim));
        Assert.All(_files.Opened, o => Assert.Equal(_temp["disk.raw"], o.Path));
    }

    // CVE-2015-1851, -5163 (backing file), CVE-2024-32498, -40767 (data file), CVE-2024-4467 (json: in a name, met by mere `info`).
    [Fact]
    public void Names_of_host_files_are_told_and_not_followed()
    {
        foreach (string name in (string[])["/etc/shadow", "../../../../../../etc/shadow",
            "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}}", "json:{}", "fat:/etc", "nbd:unix:/x"])
        {
            string backing = Made("b.qcow2", new Qcow2CreateOptions { VirtualSize = 1 << 20, BackingName = name, BackingFormat = "raw" });
            string data = Made("d.qcow2", new Qcow2CreateOptions { VirtualSize = 1 << 20, DataFileName = name });
            foreach (string path in (string[])[backing, data])
            {
                ImageFileFacts facts = _opener.ReadInfo(path);
                Assert.Equal(name, facts.BackingName ?? facts.DataFileName);
                Assert.False(Assert.Single(_opener.Inspect(path, null, ReferencePolicy.Directory)).IsAllowed);
                _opener.Check(path);
                foreach (bool writable in (bool[])[false, true])
                    Assert.Throws<ImageFormatException>(() => _opener.Open(path, new OpenOptions { Writable = writable }));
            }
        }

        // ".." is only known to lead out when the kernel walks it, beneath the directory.
        Assert.All(_files.Opened, o => Assert.StartsWith(_temp.Root, o.Path, StringComparison.Ordinal));
    }

    // CVE-2015-5162: a small image that costs much. Every entry of 256 L2 tables of 2 MiB is the same short stream, which inflates to a
    // whole cluster: 128 GiB of zeros from a few hundred KiB.
    [Fact]
    public void A_bomb_of_compressed_clusters_takes_bounded_memory()
    {
        string path = Bomb(out int clusterSize, deflated => deflated);
        using IDiskImage image = _opener.Open(path, new OpenOptions());
        byte[] buffer = new byte[64 << 10];
        Measured(() =>
        {
            for (long cluster = 0; cluster < 40; cluster++)
            {
                buffer.AsSpan().Fill(1);
                image.Read(cluster * 1000 * clusterSize, buffer);
                Assert.Equal(new byte[buffer.Length], buffer);
            }
        });
        Assert.Equal(2, Measured(() => _opener.Check(path)).ExitCode);
    }

    // A stream that ends early or is none must not serve what an earlier cluster left in a buffer.
    [Fact]
    public void A_bad_compressed_stream_is_an_error_and_never_stale_bytes()
    {
        foreach (Func<byte[], byte[]> spoil in (Func<byte[], byte[]>[])
            [deflated => deflated[..(deflated.Length / 4)], _ => new byte[100], _ => [.. Enumerable.Repeat((byte)0xFF, 100)]])
        {
            using IDiskImage image = _opener.Open(Bomb(out _, spoil), new OpenOptions());
            Assert.Throws<ImageFormatException>(() => image.Read(0, new byte[4096]));
        }
    }

    private string Bomb(out int clusterSize, Func<byte[], byte[]> spoil)
    {
        clusterSize = 2 << 20;
        using MemoryStream stream = new();
        using (DeflateStream deflate = new(stream, CompressionLevel.SmallestSize, leaveOpen: true))
            deflate.Write(new byte[clusterSize + 100_000]);
        byte[] deflated = spoil(stream.ToArray());
        string path = Made("bomb.qcow2", new Qcow2CreateOptions { VirtualSize = 128L << 30, ClusterBits = 21 });
        using Damage hands = new(path);
        long table = hands.Length;
        long at = table + clusterSize;
        hands.SetLength(at + clusterSize);
        hands.Write(at, deflated);
        byte[] entries = new byte[clusterSize];
        for (int i = 0; i < clusterSize; i += 8)
            CompressedDescriptor.Entry(at, deflated.Length, 21).WriteTo(entries.AsSpan(i));
        hands.Write(table, entries);
        for (int i = 0; i < hands.Header.L1Size; i++)
            hands.Set(hands.L1At(i), (ulong)table);
        return path;
    }

    private string WithSnapshot()
    {
        string path = _temp["snapshot.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", path, "1M");
        Qemu.Img("snapshot", "-c", "one", path);
        return path;
    }

    private string Made(string name, Qcow2CreateOptions options)
    {
        File.Delete(_temp[name]);
        using FileStorage file = HostFiles.Open(_temp[name], StorageAccess.Create);
        Qcow2Creator.Create(file, null, options);
        return _temp[name];
    }

    private static void Measured(Action action) => Measured<object?>(() =>
    {
        action();
        return null;
    });

    private static T Measured<T>(Func<T> action)
    {
        long before = GC.GetAllocatedBytesForCurrentThread();
        try
        {
            return action();
        }
        finally
        {
            Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 128 << 20);
        }
    }
}
