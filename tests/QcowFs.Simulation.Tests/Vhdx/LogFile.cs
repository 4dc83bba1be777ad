// VHDX files with logs made by hand, entry by entry, for everything that a well-behaved writer does not write.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

/// <summary>What an entry changes.</summary>
/// <param name="Offset">First byte.</param>
/// <param name="Page">4096 bytes, or null for zeros.</param>
/// <param name="ZeroLength">Bytes that become zeros.</param>
internal readonly record struct LogChange(long Offset, byte[]? Page, long ZeroLength = 0);

/// <summary>One entry.</summary>
internal sealed record LogItem(ulong Sequence, params LogChange[] Changes)
{
    /// <summary>Ring offset, or -1 for behind the entry before.</summary>
    public int At { get; init; } = -1;

    /// <summary>Ring offset of the tail, or -1 for its own.</summary>
    public int Tail { get; init; } = -1;

    public Guid? Guid { get; init; }

    public long? FlushedFileOffset { get; init; }

    public long? LastFileOffset { get; init; }

    /// <summary>Damages the complete entry.</summary>
    public Action<byte[]>? Damage { get; init; }
}

/// <summary>A file of a small dynamic disk whose table says nothing, with four places that hold 1, 2, 3 and 4 throughout, and a log. An
/// entry that maps block 0 to one of them shows by what is read that it counted.</summary>
internal sealed class LogFile
{
    public const int RingOffset = 1 << 20;
    public const int RingLength = 1 << 20;
    public const int Sector = 4096;

    private const int FirstPlace = 4 << 20;
    private static readonly Guid LogGuid = new("11111111-2222-3333-4444-555555555555");

    public LogFile()
    {
        Bytes = new byte[8 << 20];
        VhdxImages.Create(new VhdxCreateOptions { VirtualSize = 4 << 20, BlockSize = 1 << 20, LogSize = RingLength, LogicalSectorSize = 512 }, 9).CopyTo(Bytes, 0);
        for (int place = 0; place < 4; place++)
            Bytes.AsSpan(FirstPlace + (place << 20), 1 << 20).Fill((byte)(place + 1));
    }

    public byte[] Bytes { get; private set; }

    /// <summary>Where the table is.</summary>
    public static long TableAt => 3 << 20;

    /// <summary>A page of the table that maps block 0 to the place that holds so many.</summary>
    public static LogChange Maps(int value)
    {
        byte[] page = new byte[Sector];
        BinaryPrimitives.WriteUInt64LittleEndian(page, (ulong)(FirstPlace + ((value - 1) << 20)) | 6);
        return new LogChange(TableAt, page);
    }

    /// <summary>Puts entries into the ring and says in both headers that the log is in use.</summary>
    public LogFile With(params LogItem[] items)
    {
        int at = 0;
        foreach (LogItem item in items)
        {
            at = item.At >= 0 ? item.At : at;
            byte[] entry = Compose(item, at);
            item.Damage?.Invoke(entry);
            for (int i = 0; i < entry.Length; i++)
                Bytes[RingOffset + ((at + i) % RingLength)] = entry[i];
            at = (at + entry.Length) % RingLength;
        }

        ChangeHeaders(header => LogGuid.TryWriteBytes(header.AsSpan(48)));
        return this;
    }

    /// <summary>Changes both headers.</summary>
    public LogFile ChangeHeaders(Action<byte[]> change)
    {
        foreach (int at in new[] { 0x10000, 0x20000 })
        {
            byte[] header = Bytes.AsSpan(at, Sector).ToArray();
            change(header);
            BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(4), VhdxReader.Checksum(header, 4));
            header.CopyTo(Bytes, at);
        }

        return this;
    }

    public LogFile Cut(int length)
    {
        Bytes = Bytes[..length];
        return this;
    }

    /// <summary>Fails the test unless every way to read the disk finds this value in block 0, and the replay in the file leaves a
    /// clean one.</summary>
    public void Reads(int value)
    {
        using (MemoryStorage file = VhdxImages.StorageOf("image", Bytes))
        {
            using CowImage image = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), new BorrowedStorage(file), null, new OpenOptions()));
            Assert.Equal(value, FirstByte(image));
            Assert.True(VhdxImages.BytesOf(file).AsSpan().SequenceEqual(Bytes), "reading changed the file");
        }

        Assert.Equal(value, new VhdxReader(Bytes).ReadAll()[0]);
        using MemoryStorage replayed = VhdxImages.StorageOf("image", Bytes);
        using (CowImage image = OpenToWrite(replayed))
            Assert.Equal(value, FirstByte(image));
        VhdxReader witness = new(VhdxImages.BytesOf(replayed));
        Assert.True(witness.LogIsEmpty);
        Assert.Equal(value, witness.ReadAll()[0]);
        Assert.Equal(0, VhdxChecker.Check(replayed).ExitCode);
    }

    /// <summary>Fails the test unless the file is refused for reading and for writing, unchanged, for this reason.</summary>
    public void IsRefused(string reason)
    {
        using MemoryStorage file = VhdxImages.StorageOf("image", Bytes);
        ImageFormatException refusal = Assert.Throws<ImageFormatException>(() => VhdxLayout.Read(file));
        Assert.Contains(reason, refusal.Message, StringComparison.Ordinal);
        Assert.Throws<ImageFormatException>(() => VhdxReplay.Run(file, new VhdxImages.CountedGuids(1)));
        Assert.True(VhdxImages.BytesOf(file).AsSpan().SequenceEqual(Bytes), "a refused file was changed");
    }

    public static CowImage OpenToWrite(MemoryStorage file) => VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), new BorrowedStorage(file), null,
        new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero })
    { Guids = new VhdxImages.CountedGuids(77) });

    private static int FirstByte(CowImage image)
    {
        byte[] read = new byte[1];
        image.Read(0, read);
        return read[0];
    }

    private byte[] Compose(LogItem item, int at)
    {
        int pages = item.Changes.Count(change => change.Page is not null);
        int dataAt = (64 + (item.Changes.Length * 32) + Sector - 1) / Sector * Sector;
        byte[] entry = new byte[dataAt + (pages * Sector)];
        Encoding.ASCII.GetBytes("loge", entry);
        BinaryPrimitives.WriteInt32LittleEndian(entry.AsSpan(8), entry.Length);
        BinaryPrimitives.WriteInt32LittleEndian(entry.AsSpan(12), item.Tail >= 0 ? item.Tail : at);
        BinaryPrimitives.WriteUInt64LittleEndian(entry.AsSpan(16), item.Sequence);
        BinaryPrimitives.WriteInt32LittleEndian(entry.AsSpan(24), item.Changes.Length);
        (item.Guid ?? LogGuid).TryWriteBytes(entry.AsSpan(32));
        BinaryPrimitives.WriteInt64LittleEndian(entry.AsSpan(48), item.FlushedFileOffset ?? Bytes.Length);
        BinaryPrimitives.WriteInt64LittleEndian(entry.AsSpan(56), item.LastFileOffset ?? Bytes.Length);
        for (int i = 0; i < item.Changes.Length; i++)
        {
            LogChange change = item.Changes[i];
            Span<byte> descriptor = entry.AsSpan(64 + (i * 32), 32);
            BinaryPrimitives.WriteInt64LittleEndian(descriptor[16..], change.Offset);
            BinaryPrimitives.WriteUInt64LittleEndian(descriptor[24..], item.Sequence);
            if (change.Page is null)
            {
                Encoding.ASCII.GetBytes("zero", descriptor);
                BinaryPrimitives.WriteInt64LittleEndian(descriptor[8..], change.ZeroLength);
                continue;
            }

            Encoding.ASCII.GetBytes("desc", descriptor);
            change.Page.AsSpan(4092, 4).CopyTo(descriptor[4..]);
            change.Page.AsSpan(0, 8).CopyTo(descriptor[8..]);
            Span<byte> data = entry.AsSpan(dataAt, Sector);
            change.Page.CopyTo(data);
            Encoding.ASCII.GetBytes("data", data);
            BinaryPrimitives.WriteUInt32LittleEndian(data[4..], (uint)(item.Sequence >> 32));
            BinaryPrimitives.WriteUInt32LittleEndian(data[4092..], (uint)(item.Sequence & uint.MaxValue));
            dataAt += Sector;
        }

        BinaryPrimitives.WriteUInt32LittleEndian(entry.AsSpan(4), VhdxReader.Checksum(entry, 4));
        return entry;
    }
}
