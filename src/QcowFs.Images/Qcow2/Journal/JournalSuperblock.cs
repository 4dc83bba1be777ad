// The journal's superblock: one sector, in two copies that are written in turn, so that one is always whole. Big-endian:
//   0 u64 magic | 8 u32 version | 12 u32 block size | 16 id | 32 u64 generation | 40 u64 ring offset | 48 u64 ring bytes
//   56 u64 tail sequence | 64 u64 tail offset | 72 u64 confirmed | 80 u64 adopted | 88 boot id | 104 u64 device | 112 u64 inode
//   120 u64 file length | 128 u64 virtual size | 136 u64 L1 offset | 144 u32 cluster bits | 148 zeros | 508 u32 CRC-32C of 0-507
using System.Buffers.Binary;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>What a superblock says.</summary>
internal readonly record struct JournalSuperblock
{
    private const ulong Magic = 0x51434F5746534A4C; // QCOWFSJL
    private const uint Version = 1;
    private const int CrcAt = JournalLayout.SuperblockSize - 4;

    /// <summary>Made anew for every journal, never shown to a guest, part of every record: what was not written by this journal is
    /// none of its records.</summary>
    public required UInt128 Id { get; init; }

    /// <summary>The higher one of two valid copies counts.</summary>
    public required ulong Generation { get; init; }

    public required long RingOffset { get; init; }

    public required long RingBytes { get; init; }

    /// <summary>Sequence of the first record that may not be in place yet.</summary>
    public required ulong TailSequence { get; init; }

    /// <summary>Where that record begins, from the ring's start on.</summary>
    public required long TailOffset { get; init; }

    /// <summary>Highest record whose sync is known to have returned (J2); 0: none.</summary>
    public required ulong Confirmed { get; init; }

    /// <summary>Not 0: a replay decided that the records up to this one count, and no other; it was interrupted.</summary>
    public required ulong Adopted { get; init; }

    /// <summary>The host's boot and file where the journal was written (J11).</summary>
    public required StorageIdentity Host { get; init; }

    /// <summary>The file was durably at least this long.</summary>
    public required long FileLength { get; init; }

    public required long VirtualSize { get; init; }

    public required long L1Offset { get; init; }

    public required int ClusterBits { get; init; }

    /// <summary>Writes the whole sector.</summary>
    public void WriteTo(Span<byte> sector)
    {
        sector[..JournalLayout.SuperblockSize].Clear();
        BinaryPrimitives.WriteUInt64BigEndian(sector, Magic);
        BinaryPrimitives.WriteUInt32BigEndian(sector[8..], Version);
        BinaryPrimitives.WriteUInt32BigEndian(sector[12..], JournalLayout.BlockSize);
        BinaryPrimitives.WriteUInt128BigEndian(sector[16..], Id);
        BinaryPrimitives.WriteUInt64BigEndian(sector[32..], Generation);
        BinaryPrimitives.WriteInt64BigEndian(sector[40..], RingOffset);
        BinaryPrimitives.WriteInt64BigEndian(sector[48..], RingBytes);
        BinaryPrimitives.WriteUInt64BigEndian(sector[56..], TailSequence);
        BinaryPrimitives.WriteInt64BigEndian(sector[64..], TailOffset);
        BinaryPrimitives.WriteUInt64BigEndian(sector[72..], Confirmed);
        BinaryPrimitives.WriteUInt64BigEndian(sector[80..], Adopted);
        BinaryPrimitives.WriteUInt128BigEndian(sector[88..], Host.Boot);
        BinaryPrimitives.WriteUInt64BigEndian(sector[104..], Host.Device);
        BinaryPrimitives.WriteUInt64BigEndian(sector[112..], Host.Inode);
        BinaryPrimitives.WriteInt64BigEndian(sector[120..], FileLength);
        BinaryPrimitives.WriteInt64BigEndian(sector[128..], VirtualSize);
        BinaryPrimitives.WriteInt64BigEndian(sector[136..], L1Offset);
        BinaryPrimitives.WriteInt32BigEndian(sector[144..], ClusterBits);
        BinaryPrimitives.WriteUInt32BigEndian(sector[CrcAt..], Crc32C.Compute(sector[..CrcAt]));
    }

    /// <summary>Reads a copy. False where it is not one, or its checksum is wrong. The fields are not bounded yet.</summary>
    public static bool TryParse(ReadOnlySpan<byte> sector, out JournalSuperblock superblock)
    {
        superblock = default;
        if (sector.Length < JournalLayout.SuperblockSize
            || BinaryPrimitives.ReadUInt64BigEndian(sector) != Magic
            || BinaryPrimitives.ReadUInt32BigEndian(sector[CrcAt..]) != Crc32C.Compute(sector[..CrcAt])
            || BinaryPrimitives.ReadUInt32BigEndian(sector[8..]) != Version
            || BinaryPrimitives.ReadUInt32BigEndian(sector[12..]) != JournalLayout.BlockSize)
        {
            return false;
        }

        superblock = new JournalSuperblock
        {
            Id = BinaryPrimitives.ReadUInt128BigEndian(sector[16..]),
            Generation = BinaryPrimitives.ReadUInt64BigEndian(sector[32..]),
            RingOffset = BinaryPrimitives.ReadInt64BigEndian(sector[40..]),
            RingBytes = BinaryPrimitives.ReadInt64BigEndian(sector[48..]),
            TailSequence = BinaryPrimitives.ReadUInt64BigEndian(sector[56..]),
            TailOffset = BinaryPrimitives.ReadInt64BigEndian(sector[64..]),
            Confirmed = BinaryPrimitives.ReadUInt64BigEndian(sector[72..]),
            Adopted = BinaryPrimitives.ReadUInt64BigEndian(sector[80..]),
            Host = new StorageIdentity(
                BinaryPrimitives.ReadUInt128BigEndian(sector[88..]),
                BinaryPrimitives.ReadUInt64BigEndian(sector[104..]),
                BinaryPrimitives.ReadUInt64BigEndian(sector[112..])),
            FileLength = BinaryPrimitives.ReadInt64BigEndian(sector[120..]),
            VirtualSize = BinaryPrimitives.ReadInt64BigEndian(sector[128..]),
            L1Offset = BinaryPrimitives.ReadInt64BigEndian(sector[136..]),
            ClusterBits = BinaryPrimitives.ReadInt32BigEndian(sector[144..]),
        };
        return true;
    }

    /// <summary>What is wrong with the fields of a whole copy, for an image with this header and area; or null.</summary>
    public string? FindProblem(Qcow2Header header, JournalArea area)
    {
        if (VirtualSize != header.VirtualSize || L1Offset != header.L1Offset || ClusterBits != header.ClusterBits)
            return "it was written for another image";
        if (RingOffset != area.RingOffset || RingBytes != area.RingBytes)
            return $"its ring is at byte {RingOffset} with {RingBytes} bytes, expected byte {area.RingOffset} and {area.RingBytes}";
        if (TailSequence is 0 or > JournalLayout.MaxSequence || Confirmed > JournalLayout.MaxSequence || Adopted > JournalLayout.MaxSequence)
            return $"its sequence numbers {TailSequence}, {Confirmed}, {Adopted} are impossible";
        if (TailOffset < 0 || TailOffset >= RingBytes || TailOffset % JournalLayout.BlockSize != 0)
            return $"its tail is at byte {TailOffset} of a ring of {RingBytes}";
        return FileLength < 0 ? $"its file length is {FileLength}" : null;
    }
}
