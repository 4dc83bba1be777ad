// VHDX images for simulation: small ones of each kind, made in memory, with blocks of 1 MiB.
using System.Buffers.Binary;
using System.Collections.Concurrent;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Vhdx;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Simulation.Tests.Vhdx;

/// <summary>What an image is when the simulation begins.</summary>
public enum VhdxKind
{
    Dynamic,
    /// <summary>Every block is written.</summary>
    Full,
    Fixed,
    /// <summary>Over a parent with data everywhere but in its last block.</summary>
    Differencing,
    /// <summary>The same with sectors of 4096 bytes.</summary>
    Differencing4K,
}

/// <summary>An image as bytes, its parent, and what it reads as.</summary>
internal sealed record PreparedVhdx(VhdxKind Kind, byte[] File, byte[]? Parent, byte[] Guest);

internal static class VhdxImages
{
    /// <summary>Not a multiple of the block size.</summary>
    public const int DiskSize = (3 << 20) + (300 << 10);

    private static readonly ConcurrentDictionary<VhdxKind, PreparedVhdx> Prepared = new();
    private static readonly ConcurrentDictionary<byte[], SimulatedDisk> Disks = new(); // only copied
    private static readonly ConcurrentDictionary<byte[], MemoryStorage> Parents = new(); // only read

    public static PreparedVhdx Prepare(VhdxKind kind) => Prepared.GetOrAdd(kind, Make);

    /// <summary>A disk with the image, a copy of one that is made once.</summary>
    public static SimulatedDisk DiskOf(PreparedVhdx image) => Disks.GetOrAdd(image.File, static file =>
    {
        SimulatedDisk disk = new();
        disk.Create("image", file);
        return disk;
    }).Kill();

    /// <summary>Opens the image on a disk.</summary>
    /// <param name="disk">The disk.</param>
    /// <param name="image">What it was made from.</param>
    /// <param name="writable">For writing.</param>
    /// <param name="session">Two sessions of one image must not make the same GUIDs.</param>
    /// <param name="logStart">Where in the ring the session begins.</param>
    /// <param name="cacheSize">Bytes of metadata cache.</param>
    public static CowImage Open(SimulatedDisk disk, PreparedVhdx image, bool writable = true, int session = 1, long logStart = 0, long cacheSize = 16 << 10)
    {
        SimulatedStorage file = disk.Open("image", readOnly: !writable);
        OpenOptions options = new() { Writable = writable, CommitInterval = TimeSpan.Zero, BackgroundRecovery = false, CacheSize = cacheSize };
        return VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), file, OpenParent(image), options) { Guids = new CountedGuids(session), LogStart = logStart });
    }

    /// <summary>What an independent reader makes of the image on a disk.</summary>
    public static byte[] ReadIndependently(SimulatedDisk disk, PreparedVhdx image) =>
        new VhdxReader(disk.Content("image"), image.Parent is null ? null : new VhdxReader(image.Parent)).ReadAll();

    /// <summary>Makes an empty image.</summary>
    public static byte[] Create(VhdxCreateOptions options, int seed)
    {
        using MemoryStorage file = new("image");
        VhdxCreator.Create(file, options, new CountedGuids(seed));
        return BytesOf(file);
    }

    private static CowImage? OpenParent(PreparedVhdx image)
    {
        if (image.Parent is null)
            return null;
        BorrowedStorage file = new(Parents.GetOrAdd(image.Parent, static bytes => StorageOf("parent", bytes)));
        return VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), file, null, new OpenOptions { CacheSize = 64 << 10 }));
    }

    private static PreparedVhdx Make(VhdxKind kind)
    {
        int sector = kind == VhdxKind.Differencing4K ? 4096 : 512;
        VhdxCreateOptions options = new()
        {
            VirtualSize = DiskSize,
            BlockSize = 1 << 20,
            LogSize = 1 << 20,
            LogicalSectorSize = sector,
            IsFixed = kind == VhdxKind.Fixed,
            BlocksBeginZero = kind == VhdxKind.Dynamic,
        };
        byte[] image = Create(options, 1000);
        if (kind is VhdxKind.Dynamic or VhdxKind.Fixed)
            return new PreparedVhdx(kind, image, null, new byte[DiskSize]);
        byte[] guest = new byte[DiskSize];
        Pattern.Fill(guest.AsSpan(0, kind == VhdxKind.Full ? DiskSize : 3 << 20), 5, 0);
        byte[] written = Write(image, guest);
        if (kind == VhdxKind.Full)
            return new PreparedVhdx(kind, written, null, guest);
        using MemoryStorage parent = new("parent");
        parent.Write(0, written);
        VhdxLayout layout = VhdxLayout.Read(parent);
        byte[] child = Create(options with { ParentPath = "parent", Parent = (layout.Headers.Current.DataWriteGuid, layout.Metadata.DiskId) }, 2000);
        return new PreparedVhdx(kind, child, written, guest);
    }

    private static byte[] Write(byte[] image, byte[] guest)
    {
        MemoryStorage file = new("image");
        file.Write(0, image);
        using (CowImage disk = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), new BorrowedStorage(file), null,
            new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero })
        { Guids = new CountedGuids(3000) }))
        {
            disk.Write(0, guest);
            disk.Close();
        }

        return BytesOf(file);
    }

    /// <summary>A differencing image with a sector bitmap, and in it bits of a block that is not present.</summary>
    public static byte[] WithStaleBits(PreparedVhdx prepared, int block)
    {
        SimulatedDisk disk = DiskOf(prepared);
        using (CowImage image = Open(disk, prepared))
        {
            image.Write(0, [1]);
            image.Close();
        }

        const int bytesPerBlock = (1 << 20) / 512 / 8;
        byte[] bytes = disk.Content("image");
        ulong bitmap = BinaryPrimitives.ReadUInt64LittleEndian(bytes.AsSpan((3 << 20) + (4096 * 8)));
        bytes.AsSpan((int)(bitmap & ~0xFFFFFUL) + (block * bytesPerBlock), bytesPerBlock).Fill(255);
        return bytes;
    }

    public static MemoryStorage StorageOf(string name, byte[] bytes)
    {
        MemoryStorage file = new(name);
        file.Write(0, bytes);
        return file;
    }

    public static byte[] BytesOf(MemoryStorage file)
    {
        byte[] bytes = new byte[file.Length];
        file.Read(0, bytes);
        return bytes;
    }

    /// <summary>GUIDs that repeat from run to run.</summary>
    internal sealed class CountedGuids(int session) : GuidSource
    {
        private int _count;

        public override Guid Next()
        {
            Span<byte> bytes = stackalloc byte[16];
            BinaryPrimitives.WriteInt32LittleEndian(bytes, session);
            BinaryPrimitives.WriteInt32LittleEndian(bytes[4..], Interlocked.Increment(ref _count));
            bytes[15] = 1;
            return new Guid(bytes);
        }
    }

    /// <summary>A file that outlives the image over it.</summary>
    internal sealed class Kept(IStorage inner) : IStorage
    {
        /// <summary>Is called when the length is asked for: a moment in the middle of a lookup or of a change of the map.</summary>
        public Action? OnLength { get; set; }

        public string Name => inner.Name;

        public long Length
        {
            get
            {
                OnLength?.Invoke();
                return inner.Length;
            }
        }

        public bool IsReadOnly => inner.IsReadOnly;

        public void Read(long offset, Span<byte> destination) => inner.Read(offset, destination);

        public void Write(long offset, ReadOnlySpan<byte> source) => inner.Write(offset, source);

        public void WriteZeroes(long offset, long length) => inner.WriteZeroes(offset, length);

        public void Discard(long offset, long length) => inner.Discard(offset, length);

        public void Reserve(long offset, long length) => inner.Reserve(offset, length);

        public void SetLength(long length) => inner.SetLength(length);

        public void Sync() => inner.Sync();

        public void Dispose()
        {
            // The file is not ours.
        }
    }
}
