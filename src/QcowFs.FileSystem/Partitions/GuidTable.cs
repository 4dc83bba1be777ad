// GUID partition tables (UEFI specification, section 5.3): a header and an array of entries, twice, each covered by checksums.
using System.Buffers.Binary;

namespace QcowFs.FileSystem.Partitions;

/// <summary>Reads a GPT: the first copy, or the one at the end of the disk where the first is broken.</summary>
internal static class GuidTable
{
    private const int SmallestHeader = 92;
    private const int SmallestEntry = 128;
    private const int LargestEntry = 4096;

    // P2. The usual array is 16 KiB; this has room for 8,192 entries of the usual size.
    private const int LargestEntryArray = 1 << 20;

    private static readonly uint[] Remainders = MakeRemainders();

    /// <summary>Adds the partitions of a valid copy; false where there is none.</summary>
    public static bool TryRead(PartitionListing listing, ReadAt read)
    {
        if (listing.SectorCount < 3) return false;
        if (TryReadCopy(listing, read, headerSector: 1)) return true;
        if (!TryReadCopy(listing, read, listing.SectorCount - 1)) return false;
        listing.Warn("the first GPT is broken; its backup at the end of the disk is used");
        return true;
    }

    private static bool TryReadCopy(PartitionListing listing, ReadAt read, ulong headerSector)
    {
        byte[] header = new byte[listing.SectorSize];
        read((long)headerSector * listing.SectorSize, header);
        if (!IsHeader(header, headerSector)) return false;
        ulong entriesSector = BinaryPrimitives.ReadUInt64LittleEndian(header.AsSpan(72));
        uint count = BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(80));
        uint entrySize = BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(84));
        if (entrySize is < SmallestEntry or > LargestEntry || entrySize % 8 != 0 || count > LargestEntryArray / entrySize) return false;
        int bytes = (int)(count * entrySize);
        if (entriesSector >= listing.SectorCount || (long)entriesSector * listing.SectorSize > listing.DiskLength - bytes) return false;
        byte[] entries = new byte[bytes];
        read((long)entriesSector * listing.SectorSize, entries);
        if (Crc32(entries) != BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(88))) return false;
        for (int i = 0; i < (int)count; i++)
            if (!AddEntry(listing, i + 1, entries.AsSpan(i * (int)entrySize))) break;
        return true;
    }

    private static bool IsHeader(Span<byte> header, ulong headerSector)
    {
        const int checksumAt = 16;
        if (!header.StartsWith("EFI PART"u8)) return false;
        uint size = BinaryPrimitives.ReadUInt32LittleEndian(header[12..]);
        if (size < SmallestHeader || size > header.Length) return false;
        if (BinaryPrimitives.ReadUInt64LittleEndian(header[24..]) != headerSector) return false;
        uint stated = BinaryPrimitives.ReadUInt32LittleEndian(header[checksumAt..]);
        header.Slice(checksumAt, sizeof(uint)).Clear();
        return Crc32(header[..(int)size]) == stated;
    }

    private static bool AddEntry(PartitionListing listing, int number, ReadOnlySpan<byte> entry)
    {
        const int typeLength = 16;
        if (!entry[..typeLength].ContainsAnyExcept((byte)0)) return true; // not in use
        ulong first = BinaryPrimitives.ReadUInt64LittleEndian(entry[32..]);
        ulong last = BinaryPrimitives.ReadUInt64LittleEndian(entry[40..]);
        if (last < first || last - first == ulong.MaxValue)
        {
            listing.Warn($"partition {number} ends before it begins (sectors {first} to {last})");
            return listing.Add(number, first, 0);
        }
        return listing.Add(number, first, last - first + 1);
    }

    /// <summary>CRC-32 of IEEE 802.3, as UEFI has it.</summary>
    internal static uint Crc32(ReadOnlySpan<byte> bytes)
    {
        uint crc = uint.MaxValue;
        foreach (byte b in bytes) crc = Remainders[(crc ^ b) & 0xFF] ^ (crc >> 8);
        return ~crc;
    }

    /// <summary>What each byte leaves of the polynomial's division.</summary>
    private static uint[] MakeRemainders()
    {
        const uint reversedPolynomial = 0xEDB88320;
        uint[] remainders = new uint[256];
        for (int i = 0; i < remainders.Length; i++)
        {
            uint crc = (uint)i;
            for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? reversedPolynomial : 0);
            remainders[i] = crc;
        }
        return remainders;
    }
}
