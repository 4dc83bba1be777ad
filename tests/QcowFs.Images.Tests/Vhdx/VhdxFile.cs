// A VHDX file on disk to be damaged by hand: fields by name, checksums made right again.
using System.Buffers.Binary;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Vhdx;

/// <summary>The bytes of an image in memory, and where its parts are.</summary>
internal sealed class VhdxFile
{
    public const int Header1 = 0x10000;
    public const int Header2 = 0x20000;
    public const int Regions1 = 0x30000;
    public const int Regions2 = 0x40000;

    public VhdxFile(byte[] bytes)
    {
        Bytes = bytes;
        using MemoryStorage file = Storage();
        VhdxLayout layout = VhdxLayout.Read(file);
        Bat = layout.Regions.Bat.Offset;
        Metadata = layout.Regions.Metadata.Offset;
    }

    public byte[] Bytes { get; private set; }

    public long Bat { get; }

    public long Metadata { get; }

    /// <summary>A dynamic disk of 8 MiB in blocks of 1 MiB with data in two of them.</summary>
    public static VhdxFile Sample(int sectorSize = 512)
    {
        MemoryStorage file = new("image");
        VhdxCreateOptions options = new() { VirtualSize = 8 << 20, BlockSize = 1 << 20, LogSize = 1 << 20, LogicalSectorSize = sectorSize };
        VhdxCreator.Create(file, options, Native.GuidSource.System);
        byte[] empty = new byte[file.Length];
        file.Read(0, empty);
        using (IDiskImage image = new ImageOpener(new Support.OneImage(empty, file)).Open("image", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero }))
        {
            image.Write(0, Pattern.Bytes(1, 0, 3000));
            image.Write(5 << 20, Pattern.Bytes(2, 0, 3000));
            image.Close();
        }

        byte[] bytes = new byte[file.Length];
        file.Read(0, bytes);
        return new VhdxFile(bytes);
    }

    public MemoryStorage Storage()
    {
        MemoryStorage file = new("image");
        file.Write(0, Bytes);
        return file;
    }

    public ulong Get64(long at) => BinaryPrimitives.ReadUInt64LittleEndian(Bytes.AsSpan((int)at));

    /// <summary>Changes bytes, and makes the checksum right of whatever they belong to.</summary>
    public VhdxFile Set(long at, int width, ulong value)
    {
        for (int i = 0; i < width; i++)
            Bytes[at + i] = (byte)(value >> (8 * i) & 0xFF);
        return Seal();
    }

    public VhdxFile Cut(int length)
    {
        Bytes = Bytes[..length];
        return this;
    }

    public VhdxFile Seal()
    {
        foreach ((int at, int size) in new[] { (Header1, 4096), (Header2, 4096), (Regions1, 65536), (Regions2, 65536) })
            BinaryPrimitives.WriteUInt32LittleEndian(Bytes.AsSpan(at + 4), VhdxReader.Checksum(Bytes.AsSpan(at, size), 4));
        return this;
    }

    /// <summary>Where in the metadata table an item's entry is.</summary>
    public long ItemEntry(Guid id)
    {
        for (int i = 0; i < 6; i++)
        {
            long at = Metadata + 32 + (i * 32);
            if (new Guid(Bytes.AsSpan((int)at, 16)) == id)
                return at;
        }

        throw new InvalidOperationException("there is no such item");
    }

    /// <summary>Where an item is.</summary>
    public long Item(Guid id) => Metadata + BinaryPrimitives.ReadInt32LittleEndian(Bytes.AsSpan((int)ItemEntry(id) + 16));
}
