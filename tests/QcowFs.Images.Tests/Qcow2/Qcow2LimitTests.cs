// Every limit of the format at one below, at, and one above: when an image is opened, with QEMU's verdict on the same file, and when one
// is made. Limits of single header fields that need no file around them are in Qcow2HeaderTests.
using System.Buffers.Binary;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class Qcow2LimitTests : IDisposable
{
    private const int Cluster = 65536;

    private readonly TempDirectory _temp = new();
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    [Theory]
    [InlineData("l1_size", Qcow2HeaderLayout.L1SizeAt, 1, false)]
    [InlineData("l1_size", Qcow2HeaderLayout.L1SizeAt, 2, true)]
    [InlineData("l1_size", Qcow2HeaderLayout.L1SizeAt, 3, true)]
    [InlineData("l1_size", Qcow2HeaderLayout.L1SizeAt, (4 << 20) - 1, true)]
    [InlineData("l1_size", Qcow2HeaderLayout.L1SizeAt, 4 << 20, true)]
    [InlineData("l1_size", Qcow2HeaderLayout.L1SizeAt, (4 << 20) + 1, false)]
    [InlineData("refcount_table_clusters", Qcow2HeaderLayout.RefcountTableClustersAt, 0, false)]
    [InlineData("refcount_table_clusters", Qcow2HeaderLayout.RefcountTableClustersAt, 1, true)]
    [InlineData("refcount_table_clusters", Qcow2HeaderLayout.RefcountTableClustersAt, 127, true)]
    [InlineData("refcount_table_clusters", Qcow2HeaderLayout.RefcountTableClustersAt, 128, true)]
    [InlineData("refcount_table_clusters", Qcow2HeaderLayout.RefcountTableClustersAt, 129, false)]
    [InlineData("refcount_order", Qcow2HeaderLayout.RefcountOrderAt, 6, true)]
    [InlineData("refcount_order", Qcow2HeaderLayout.RefcountOrderAt, 7, false)]
    [InlineData("header_length", Qcow2HeaderLayout.HeaderLengthAt, 103, false)]
    [InlineData("header_length", Qcow2HeaderLayout.HeaderLengthAt, Cluster, true)]
    [InlineData("header_length", Qcow2HeaderLayout.HeaderLengthAt, Cluster + 8, false)]
    [InlineData("cluster_bits", Qcow2HeaderLayout.ClusterBitsAt, 8, false)]
    [InlineData("cluster_bits", Qcow2HeaderLayout.ClusterBitsAt, 22, false)]
    [InlineData("version", Qcow2HeaderLayout.VersionAt, 1, false)]
    [InlineData("version", Qcow2HeaderLayout.VersionAt, 4, false)]
    public void A_field_of_the_header(string field, int at, uint value, bool accepted)
    {
        string path = Made("1G");
        using (Damage hands = new(path))
        {
            // Room for any table, behind everything else.
            long end = End(hands);
            hands.SetLength(end + (34 << 20));
            if (field == "l1_size" && value > 2)
                hands.Set(Qcow2HeaderLayout.L1OffsetAt, (ulong)end);
            if (field == "refcount_table_clusters")
            {
                hands.Set(end, hands.Get(hands.Header.RefcountTableOffset));
                hands.Set(Qcow2HeaderLayout.RefcountTableOffsetAt, (ulong)end);
            }

            hands.Set32(at, value);
        }

        AssertOpens(path, accepted, writable: field.StartsWith("refcount_table", StringComparison.Ordinal));
    }

    // A table may end with the file. QEMU reads zeros up to the end of the sector.
    [Theory]
    [InlineData(0, true)]
    [InlineData(1, false)]
    public void A_table_that_ends_with_the_file(int entriesMissing, bool accepted)
    {
        string path = Made("1G");
        using (Damage hands = new(path))
        {
            long end = End(hands);
            hands.Set(Qcow2HeaderLayout.L1OffsetAt, (ulong)end);
            hands.SetLength(end + 16 - (entriesMissing * 8));
        }

        Assert.Equal(accepted, IsAccepted(() => _opener.Open(path, new OpenOptions()).Dispose()));
    }

    [Theory]
    [InlineData(65535, 64, true)]
    [InlineData(65536, 64, true)]
    [InlineData(65537, 64, false)]
    [InlineData(65536, 1024, true)]
    [InlineData(65536, 1032, false)]
    public void The_snapshot_table(int count, int entrySize, bool accepted)
    {
        string path = Made("1G");
        byte[] table = new byte[(long)count * entrySize];
        for (int i = 0; i < count; i++)
            PutSnapshot(table.AsSpan(i * entrySize, entrySize), Qcow2Snapshot.Version3ExtraSize + entrySize - 64);
        PutSnapshotTable(path, count, table);

        // QEMU agrees, but takes seconds to read so many.
        Assert.Equal(accepted, IsAccepted(() =>
        {
            _opener.Open(path, new OpenOptions { Writable = true }).Dispose();
            Assert.Equal(count, _opener.ReadInfo(path).Snapshots.Count);
        }));
    }

    [Theory]
    [InlineData(15, true)] // the check names it
    [InlineData(16, true)]
    [InlineData(1023, true)]
    [InlineData(1024, true)]
    [InlineData(1025, false)]
    public void The_extra_data_of_a_snapshot(int length, bool accepted)
    {
        string path = Made("1G");
        byte[] table = new byte[2048];
        PutSnapshot(table, length);
        PutSnapshotTable(path, 1, table);
        AssertOpens(path, accepted, info: true);
    }

    [Theory]
    [InlineData((4 << 20) - 1, 3 * Cluster, 0)]
    [InlineData(4 << 20, 3 * Cluster, 0)]
    [InlineData((4 << 20) + 1, 3 * Cluster, 2)]
    [InlineData(2, 3 * Cluster + 8, 2)]
    [InlineData(2, 1L << 56, 2)]
    public void The_L1_table_of_a_snapshot(uint entries, long offset, int exitCode)
    {
        string path = Made("1G");
        byte[] table = new byte[64];
        PutSnapshot(table, Qcow2Snapshot.Version3ExtraSize);
        long end = PutSnapshotTable(path, 1, table);
        using (Damage hands = new(path))
        {
            hands.SetLength(end + (33 << 20));
            hands.Set(end - Cluster, (ulong)(offset == 3 * Cluster ? end : offset));
            hands.Set32(end - Cluster + 8, entries);
        }

        // What it counts besides is not the point here.
        CheckReport report = _opener.Check(path);
        Assert.Equal(exitCode == 2, report.Findings.Any(f => f.Kind == "snapshot-l1"));
        OpenOptions options = new();
        _opener.Open(path, options).Dispose();
    }

    [Theory]
    [InlineData(17, 1, 8, false)] // granularity
    [InlineData(17, 1, 9, true)]
    [InlineData(17, 1, 31, true)]
    [InlineData(17, 1, 32, false)]
    [InlineData(16, 1, 0, false)] // type
    [InlineData(16, 1, 2, false)]
    [InlineData(8, 4, 0, false)] // entries of the table
    [InlineData(8, 4, 1, true)]
    [InlineData(8, 4, 8192, true)] // 512 MiB of bitmap
    [InlineData(8, 4, 8193, false)]
    [InlineData(0, 8, 0, false)] // place of the table
    [InlineData(0, 8, 8, false)]
    public void An_entry_of_the_bitmap_directory(int at, int width, ulong value, bool accepted)
    {
        string path = Made("4M"); // small enough for one cluster of the finest bitmap
        Qemu.Img("bitmap", "--add", path, "bitmap");
        using (Damage hands = new(path))
        {
            long entry = hands.Header.Bitmaps!.DirectoryOffset;
            if (width == 8)
                hands.Set(entry, value);
            else if (width == 4)
                hands.Set32(entry + at, (uint)value);
            else
                hands.Write(entry + at, [(byte)value]);

            // A table of the largest size, behind everything else. QEMU reads that of a consistent bitmap, which must fit the disk.
            if (at == 8 && value > 1)
            {
                hands.Set32(entry + 12, (uint)BitmapFlags.InUse);
                long end = End(hands);
                hands.SetLength(end + (2 * Cluster));
                hands.Set(entry, (ulong)end);
            }
        }

        Assert.Equal(accepted, IsAccepted(() => _opener.Check(path)));
        Assert.Equal(accepted, Qemu.TryImg("info", "-f", "qcow2", path).ExitCode == 0);
    }

    [Theory]
    [InlineData(1, true)]
    [InlineData(1023, true)]
    [InlineData(1024, false)]
    public void The_name_of_a_bitmap(int length, bool accepted)
    {
        string path = Made("4M");
        Qemu.Img("bitmap", "--add", path, "bitmap");
        using (Damage hands = new(path))
        {
            long entry = hands.Header.Bitmaps!.DirectoryOffset;
            hands.SetLength(End(hands));
            hands.Write(entry + 24, [.. Enumerable.Repeat((byte)'x', length)]);
            hands.Set16(entry + 18, (ushort)length);
            HeaderExtension extension = hands.Header.Extensions.Single(e => e.Type == HeaderExtensionType.Bitmaps);
            hands.Set(extension.DataOffset + 8, (ulong)((24 + length + 7) & ~7));
        }

        Assert.Equal(accepted, IsAccepted(() => _opener.Check(path)));
        Assert.Equal(accepted, Qemu.TryImg("info", "-f", "qcow2", path).ExitCode == 0);
    }

    // Distance of an entry's cluster from the end of the file, in bytes.
    [Theory]
    [InlineData(-Cluster, true)]
    [InlineData(0, false)]
    [InlineData(-Cluster + 512, false)]
    [InlineData(Cluster, false)]
    public void The_cluster_of_an_entry(int fromEnd, bool accepted)
    {
        string path = Made("1G");
        Qemu.Io("qcow2", path, "write -P 1 0 128k");
        using (Damage hands = new(path))
        {
            hands.SetLength(End(hands));
            hands.Set(hands.L2At(0), (ulong)(hands.Length + fromEnd) | L2Entry.CopiedBit);
        }

        using IDiskImage image = _opener.Open(path, new OpenOptions());
        Assert.Equal(accepted, IsAccepted(() => image.Read(0, new byte[512])));
    }

    [Theory]
    [InlineData(-512, true)]
    [InlineData(0, false)]
    [InlineData(512, false)]
    public void The_place_of_a_compressed_cluster(int fromEnd, bool inside)
    {
        string path = Made("1G");
        Qemu.Io("qcow2", path, "write -P 1 0 64k");
        using (Damage hands = new(path))
        {
            hands.SetLength(End(hands));
            hands.Set(hands.L2At(0), CompressedDescriptor.Entry(hands.Length + fromEnd, 512, 16).Raw);
        }

        using IDiskImage image = _opener.Open(path, new OpenOptions());
        string fault = Assert.Throws<ImageFormatException>(() => image.Read(0, new byte[512])).Message;
        Assert.Equal(inside, fault.Contains("does not give a whole cluster", StringComparison.Ordinal));
        Assert.Equal(!inside, fault.Contains("past the end of the file", StringComparison.Ordinal));
    }

    [Theory]
    [InlineData(-1, true)]
    [InlineData(0, true)]
    [InlineData(1, false)]
    public void The_depth_of_a_chain(int more, bool accepted)
    {
        int depth = ImageOpener.MaxChainDepth + more;
        for (int i = 0; i < depth; i++)
        {
            using FileStorage file = HostFiles.Open(_temp[$"{i}"], StorageAccess.Create);
            Qcow2Creator.Create(file, null, new Qcow2CreateOptions
            {
                VirtualSize = 4096,
                ClusterBits = 9,
                BackingName = i == 0 ? null : $"{i - 1}",
                BackingFormat = i == 0 ? null : "qcow2",
            });
        }

        Assert.Equal(accepted, IsAccepted(() => _opener.Open(_temp[$"{depth - 1}"], new OpenOptions()).Dispose()));
        Assert.Equal(accepted, IsAccepted(() => _opener.Open(_temp[$"{depth - 1}"], new OpenOptions { Writable = true }).Dispose()));
    }

    // 4 Mi entries of an L1 table map 2^61 bytes where a cluster has 2 MiB.
    [Theory]
    [InlineData("cluster_size=2M", (1L << 61) - 512, true)]
    [InlineData("cluster_size=2M", 1L << 61, true)]
    [InlineData("cluster_size=2M", (1L << 61) + 512, false)]
    [InlineData("cluster_size=512", (128L << 30) - 512, true)]
    [InlineData("cluster_size=512", 128L << 30, true)]
    [InlineData("cluster_size=512", (128L << 30) + 512, false)]
    [InlineData("cluster_size=16k,extended_l2=on", (64L << 40) - 512, true)]
    [InlineData("cluster_size=16k,extended_l2=on", 64L << 40, true)]
    [InlineData("cluster_size=16k,extended_l2=on", (64L << 40) + 512, false)]
    public void The_size_of_a_new_disk(string options, long size, bool accepted)
    {
        string path = _temp["new.qcow2"];
        Assert.Equal(accepted, IsMade(path, size, options));
        if (!accepted)
            return;
        using IDiskImage image = _opener.Open(path, new OpenOptions { Writable = true });
        Assert.Equal(size, image.Length);
        image.Write(size - 512, new byte[] { 1, 2, 3 });
        image.Close();
        Assert.Equal(0, _opener.Check(path).ExitCode);
    }

    [Theory]
    [InlineData(1022, true)]
    [InlineData(1023, true)]
    [InlineData(1024, false)]
    public void The_backing_name_of_a_new_image(int length, bool accepted)
    {
        // A path may be that long where each part of it is short.
        string name = string.Concat(Enumerable.Repeat("./", (length - 4) / 2)) + (length % 2 == 0 ? "base" : "/base");
        Assert.Equal(length, name.Length);
        Qemu.Img("create", "-q", "-f", "qcow2", _temp["base"], "1M");
        ImageRequest request = new() { Path = _temp["new.qcow2"], Format = "qcow2", BackingName = name, BackingFormat = "qcow2" };
        Assert.Equal(accepted, IsMade(request));
        if (accepted)
            _opener.Open(request.Path, new OpenOptions()).Dispose();
    }

    // The header, its extensions and the name share the first cluster. QEMU leaves the table of feature names out of small ones.
    [Theory]
    [InlineData(375, true)]
    [InlineData(376, true)]
    [InlineData(377, false)]
    public void The_backing_name_in_the_smallest_cluster(int length, bool accepted)
    {
        string name = string.Concat(Enumerable.Repeat("./", (length - 4) / 2)) + (length % 2 == 0 ? "base" : "/base");
        Qemu.Img("create", "-q", "-f", "qcow2", _temp["base"], "1M");
        ImageRequest request = new()
        {
            Path = _temp["new.qcow2"],
            Format = "qcow2",
            BackingName = name,
            BackingFormat = "qcow2",
            Options = [new("cluster_size", "512")],
        };
        Assert.Equal(accepted, IsMade(request));
        if (!accepted)
            return;
        _opener.Open(request.Path, new OpenOptions()).Dispose();
        Qemu.CheckClean(request.Path);
    }

    private string Made(string size)
    {
        string path = _temp["limit.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", path, size);
        return path;
    }

    // Where the next cluster begins.
    private static long End(Damage hands) => (hands.Length + Cluster - 1) / Cluster * Cluster;

    private static void PutSnapshot(Span<byte> entry, int extra)
    {
        BinaryPrimitives.WriteInt64BigEndian(entry, 3 * Cluster);
        BinaryPrimitives.WriteInt32BigEndian(entry[8..], 2);
        BinaryPrimitives.WriteInt16BigEndian(entry[12..], 1);
        BinaryPrimitives.WriteInt16BigEndian(entry[14..], 1);
        BinaryPrimitives.WriteInt32BigEndian(entry[36..], extra);
        BinaryPrimitives.WriteInt64BigEndian(entry[48..], 1L << 30);
        entry[40 + extra] = (byte)'1';
        entry[41 + extra] = (byte)'a';
    }

    /// <summary>Puts a table behind everything else. Returns the end of the file, which is one of clusters again.</summary>
    private static long PutSnapshotTable(string path, int count, byte[] table)
    {
        using Damage hands = new(path);
        long at = End(hands);
        hands.SetLength(at + ((table.Length + Cluster - 1) / Cluster * (long)Cluster));
        hands.Write(at, table);
        hands.Set32(Qcow2HeaderLayout.SnapshotCountAt, (uint)count);
        hands.Set(Qcow2HeaderLayout.SnapshotsOffsetAt, (ulong)at);
        return hands.Length;
    }

    private void AssertOpens(string path, bool accepted, bool info = false, bool writable = false)
    {
        Assert.Equal(accepted, IsAccepted(() =>
        {
            using IDiskImage image = _opener.Open(path, new OpenOptions { Writable = writable });
            image.Read(0, new byte[4096]);
            if (info)
                _opener.ReadInfo(path);
        }));
        Assert.Equal(accepted, Qemu.TryImg("info", "-f", "qcow2", path).ExitCode == 0);
    }

    private bool IsMade(string path, long size, string options) => IsMade(new ImageRequest
    {
        Path = path,
        Format = "qcow2",
        Size = size,
        Options = [.. options.Split(',').Select(o => o.Split('=')).Select(o => new KeyValuePair<string, string>(o[0], o[1]))],
    });

    private static bool IsMade(ImageRequest request)
    {
        try
        {
            new ImageCreator(HostFileSystem.Instance).Create(request);
            return true;
        }
        catch (ImageOptionException refusal)
        {
            Assert.DoesNotContain('\n', refusal.Message);
            Assert.False(File.Exists(request.Path));
            return false;
        }
    }

    private static bool IsAccepted(Action use)
    {
        try
        {
            use();
            return true;
        }
        catch (ImageFormatException refusal)
        {
            Assert.DoesNotContain('\n', refusal.Message);
            return false;
        }
    }
}
