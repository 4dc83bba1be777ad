// Disks with partition tables, built byte by byte from the specifications.
using System.Buffers.Binary;
using QcowFs.FileSystem.Partitions;

namespace QcowFs.FileSystem.Tests;

internal sealed class PartitionBytes(int length, int sectorSize = 512)
{
    private const int GptEntrySize = 128;

    public byte[] Bytes { get; } = new byte[length];

    public int SectorSize { get; } = sectorSize;

    public int Sectors => Bytes.Length / SectorSize;

    public PartitionTable Read() => PartitionTable.Read(Bytes.Length, ReadChecked);

    /// <summary>Fails where anything outside the disk is read.</summary>
    public void ReadChecked(long offset, Span<byte> destination) =>
        Bytes.AsSpan(checked((int)offset), destination.Length).CopyTo(destination);

    /// <summary>Writes an entry of the MBR, or of a table of the chain.</summary>
    public PartitionBytes Mbr(int slot, byte type, uint first, uint count, uint tableSector = 0, byte status = 0)
    {
        Span<byte> sector = Bytes.AsSpan((int)tableSector * SectorSize, 512);
        sector[510] = 0x55;
        sector[511] = 0xAA;
        Span<byte> entry = sector.Slice(446 + (16 * slot), 16);
        entry[0] = status;
        entry[4] = type;
        BinaryPrimitives.WriteUInt32LittleEndian(entry[8..], first);
        BinaryPrimitives.WriteUInt32LittleEndian(entry[12..], count);
        return this;
    }

    /// <summary>Writes both copies of a GPT; an entry of (0, 0) is not in use.</summary>
    public PartitionBytes Gpt(params (ulong First, ulong Last)[] partitions)
    {
        Mbr(0, 0xEE, 1, (uint)(Sectors - 1));
        const int count = 128;
        byte[] entries = new byte[count * GptEntrySize];
        for (int i = 0; i < partitions.Length; i++)
        {
            if (partitions[i] == default) continue;
            Span<byte> entry = entries.AsSpan(i * GptEntrySize);
            entry[0] = 0xAF; // any type but zero
            BinaryPrimitives.WriteUInt64LittleEndian(entry[32..], partitions[i].First);
            BinaryPrimitives.WriteUInt64LittleEndian(entry[40..], partitions[i].Last);
        }
        int entrySectors = (entries.Length + SectorSize - 1) / SectorSize;
        Copy(1, Sectors - 1, 2);
        Copy(Sectors - 1, 1, Sectors - 1 - entrySectors);
        return this;

        void Copy(int at, int other, int entriesAt)
        {
            entries.CopyTo(Bytes, entriesAt * SectorSize);
            Span<byte> header = Bytes.AsSpan(at * SectorSize, 92);
            "EFI PART"u8.CopyTo(header);
            BinaryPrimitives.WriteUInt32LittleEndian(header[8..], 0x10000);
            BinaryPrimitives.WriteUInt32LittleEndian(header[12..], 92);
            BinaryPrimitives.WriteInt64LittleEndian(header[24..], at);
            BinaryPrimitives.WriteInt64LittleEndian(header[32..], other);
            BinaryPrimitives.WriteInt64LittleEndian(header[72..], entriesAt);
            BinaryPrimitives.WriteUInt32LittleEndian(header[80..], count);
            BinaryPrimitives.WriteUInt32LittleEndian(header[84..], GptEntrySize);
            BinaryPrimitives.WriteUInt32LittleEndian(header[88..], GuidTable.Crc32(entries));
            BinaryPrimitives.WriteUInt32LittleEndian(header[16..], GuidTable.Crc32(header));
        }
    }
}
