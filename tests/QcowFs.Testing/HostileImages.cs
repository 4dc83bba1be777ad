// Broken images in large numbers: valid ones that qemu-img made, with a few fields changed to values that hurt parsers. One seed gives
// one image. Where the fields are comes from the valid image's own structures.
using QcowFs.Images.Qcow2;
using QcowFs.Storage;

namespace QcowFs.Testing;

/// <summary>A valid image and its fields.</summary>
public sealed class Specimen
{
    private readonly byte[] _bytes;
    private readonly List<Field> _fields = [];
    private readonly Qcow2Header _header;

    private Specimen(string name, byte[] bytes)
    {
        Name = name;
        _bytes = bytes;
        using MemoryStorage file = Storage(bytes);
        _header = Qcow2HeaderReader.Read(file);
        FindFields(file);
    }

    /// <summary>What kind of image it is.</summary>
    public string Name { get; }

    /// <summary>One image of each kind, small so that thousands can be tried.</summary>
    public static IReadOnlyList<Specimen> MakeAll(TempDirectory temp) =>
    [
        Make(temp, "small", "cluster_size=512", "300k", compressed: false, snapshots: 2),
        Make(temp, "version 2", "compat=0.10,cluster_size=4k", "1M", compressed: false, snapshots: 1),
        Make(temp, "compressed", "cluster_size=4k", "1M", compressed: true, snapshots: 1),
        Make(temp, "zstd", "cluster_size=16k,compression_type=zstd", "1M", compressed: true, snapshots: 0),
        Make(temp, "extended", "cluster_size=16k,extended_l2=on", "1M", compressed: true, snapshots: 1),
        Make(temp, "8-bit counts", "cluster_size=1k,refcount_bits=8,lazy_refcounts=on", "1M", compressed: false, snapshots: 1),
        Make(temp, "64-bit counts", "cluster_size=4k,refcount_bits=64", "1M", compressed: false, snapshots: 1),
        Make(temp, "bitmaps", "cluster_size=4k", "1M", compressed: false, snapshots: 1, bitmaps: true),
        Make(temp, "ordinary", "", "8M", compressed: true, snapshots: 1, bitmaps: true),
        Make(temp, "external data", "cluster_size=4k,data_file=data", "1M", compressed: false, snapshots: 0),
        Make(temp, "raw external data", "cluster_size=16k,extended_l2=on,data_file=data,data_file_raw=on", "1M", compressed: false, snapshots: 0),
        Make(temp, "1-bit counts", "cluster_size=512,refcount_bits=1", "300k", compressed: false, snapshots: 0),
        Make(temp, "extended with backing", "cluster_size=16k,extended_l2=on", "1M", compressed: true, snapshots: 1, backing: true),
    ];

    /// <summary>The image of a seed: the valid one with one to five fields changed, now and then cut short.</summary>
    public byte[] Damage(int seed) => Damage(seed, _fields);

    /// <summary>As <see cref="Damage(int)"/>, the header spared, so that most of the images can be opened.</summary>
    public byte[] DamageBehindHeader(int seed) => Damage(seed, [.. _fields.Where(field => field.Offset >= _header.ClusterSize)]);

    private byte[] Damage(int seed, List<Field> fields)
    {
        Random random = new(seed);
        byte[] bytes = (byte[])_bytes.Clone();
        for (int i = random.Next(1, 6); i > 0; i--)
        {
            Field field = fields[random.Next(fields.Count)];
            Put(bytes, field, Value(random, Get(bytes, field)));
        }

        return random.Next(12) == 0 ? bytes[..random.Next(bytes.Length)] : bytes;
    }

    /// <summary>An image in memory.</summary>
    public static MemoryStorage Storage(byte[] bytes)
    {
        MemoryStorage file = new("image");
        file.Write(0, bytes);
        return file;
    }

    private static Specimen Make(
        TempDirectory temp, string name, string options, string size, bool compressed, int snapshots, bool bitmaps = false, bool backing = false)
    {
        string path = temp[$"{name}.qcow2"];
        if (backing)
            Qemu.Img("create", "-q", "-f", "raw", temp["data"], "1M");
        options = options.Replace("data_file=data", $"data_file={temp["data"]}", StringComparison.Ordinal);
        Qemu.Img(["create", "-q", "-f", "qcow2", .. options.Length == 0 ? Array.Empty<string>() : ["-o", options],
            .. backing ? ["-b", "data", "-F", "raw"] : Array.Empty<string>(), path, size]);
        if (bitmaps)
            Qemu.Img("bitmap", "--add", path, "bitmap");
        Qemu.Io("qcow2", path, "write -P 1 0 50k", "write -z 64k 32k", $"write {(compressed ? "-c " : "")}-P 2 128k 64k");
        for (int i = 0; i < snapshots; i++)
        {
            Qemu.Img("snapshot", "-c", $"snapshot{i}", path);
            Qemu.Io("qcow2", path, $"write -P {i} {i * 8}k 8k");
        }

        byte[] bytes = File.ReadAllBytes(path);
        File.Delete(temp["data"]);
        return new Specimen(name, bytes);
    }

    private void FindFields(MemoryStorage file)
    {
        foreach ((int offset, int width) in (ReadOnlySpan<(int, int)>)
            [(4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8)])
        {
            Add(offset, width, "header", 3);
        }

        if (_header.Version >= 3)
        {
            foreach ((int offset, int width) in (ReadOnlySpan<(int, int)>)[(72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 1)])
                Add(offset, width, "header", 3);
        }

        foreach (HeaderExtension extension in _header.Extensions)
        {
            Add(extension.Offset, 4, "extension type");
            Add(extension.Offset + 4, 4, "extension length");
            for (int at = 0; at + 8 <= Math.Min(extension.Data.Length, 24); at += 8)
                Add(extension.DataOffset + at, 8, "extension data");
        }

        RefcountTable refcounts = new(_header, file);
        for (int i = 0; i < Math.Min(refcounts.Entries.Length, 4); i++)
            Add(refcounts.EntryOffset(i), 8, "refcount table", 4);
        for (int i = 0; i < 40; i++)
            Add(refcounts.Entries[0].BlockOffset + i * 2, 2, "refcount block");
        AddL1(file, _header.L1Offset, _header.L1Size);
        foreach (Qcow2Snapshot snapshot in Qcow2SnapshotTable.Read(_header, file).Snapshots)
        {
            foreach ((int offset, int width) in (ReadOnlySpan<(int, int)>)[(0, 8), (8, 4), (12, 2), (14, 2), (32, 4), (36, 4), (48, 8)])
                Add(snapshot.Offset + offset, width, "snapshot", 2);
            AddL1(file, snapshot.L1Offset, (int)snapshot.L1Size);
        }

        foreach (Qcow2Bitmap bitmap in BitmapDirectory.Read(_header, file))
        {
            foreach ((int offset, int width) in (ReadOnlySpan<(int, int)>)[(0, 8), (8, 4), (12, 4), (16, 1), (17, 1), (18, 2), (20, 4)])
                Add(bitmap.Offset + offset, width, "bitmap directory", 2);
            Add(bitmap.TableOffset, 8, "bitmap table", 2);
        }
    }

    private void AddL1(MemoryStorage file, long offset, int size)
    {
        byte[] entry = new byte[8];
        for (int i = 0; i < Math.Min(size, 4); i++)
        {
            Add(offset + i * 8, 8, "L1", 3);
            file.Read(offset + i * 8, entry);
            long table = L1Entry.Read(entry).TableOffset;
            for (int j = 0; table != 0 && j < Math.Min(_header.ClusterSize / 8, 40); j++)
                Add(table + j * 8, 8, "L2");
        }
    }

    private void Add(long offset, int width, string name, int times = 1)
    {
        for (int i = 0; i < times; i++)
            _fields.Add(new Field(offset, width, name));
    }

    private ulong Value(Random random, ulong old) => random.Next(12) switch
    {
        0 => 0,
        1 => ulong.MaxValue,
        2 => 1UL << random.Next(64),
        3 => old ^ 1UL << random.Next(64),
        4 => unchecked(old + 512),
        5 => (ulong)(random.Next(_bytes.Length / _header.ClusterSize + 2) * (long)_header.ClusterSize) | 1UL << 63,
        6 => (ulong)(random.Next(_bytes.Length / _header.ClusterSize + 2) * (long)_header.ClusterSize),
        7 => (ulong)_bytes.Length,
        8 => unchecked((ulong)random.NextInt64() | (ulong)random.Next(2) << 62),
        9 => (ulong)random.Next(300),
        10 => random.Next(2) == 0 ? 0x7FFF_FFFFUL : 0x7FFF_FFFF_FFFF_FFFF,
        _ => unchecked(old + (ulong)random.Next(-2, 3)),
    };

    private static ulong Get(byte[] bytes, Field field)
    {
        ulong value = 0;
        for (int i = 0; i < field.Width && field.Offset + i < bytes.Length; i++)
            value = value << 8 | bytes[field.Offset + i];
        return value;
    }

    private static void Put(byte[] bytes, Field field, ulong value)
    {
        for (int i = 0; i < field.Width && field.Offset + i < bytes.Length; i++)
            bytes[field.Offset + i] = (byte)(value >> ((field.Width - 1 - i) * 8) & 0xFF);
    }

    /// <summary>A place worth damaging.</summary>
    private readonly record struct Field(long Offset, int Width, string Name);
}
