// An image whose journal is full to the last block, as no writer leaves it: the most that a replay can have to do.
using System.Buffers.Binary;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Testing;

/// <summary>Fills journals.</summary>
public static class FullJournal
{
    /// <summary>Gives an image with preallocated metadata a journal in which every record takes a block and gives one L2 entry the value that
    /// it has, so that a replay changes nothing. Returns how many records there are.</summary>
    public static int Make(IStorage file, long ringBytes)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        List<(long Offset, byte[] Bytes)> entries = [.. EntriesOf(file, header)];
        long clusterMask = header.ClusterSize - 1L;
        long offset = (file.Length + clusterMask) & ~clusterMask;
        JournalArea area = new(offset, JournalArea.ClustersFor(ringBytes, header.ClusterBits) << header.ClusterBits);
        JournalSuperblock superblock = new()
        {
            Id = 1,
            Generation = 0,
            RingOffset = area.RingOffset,
            RingBytes = area.RingBytes,
            TailSequence = 1,
            TailOffset = 0,
            Confirmed = 0,
            Adopted = 0,
            Host = default,
            FileLength = 0,
            VirtualSize = header.VirtualSize,
            L1Offset = header.L1Offset,
            ClusterBits = header.ClusterBits,
        };
        JournalRing ring = JournalRing.Format(file, area, superblock);
        JournalHeader.Make(file, area);
        uint zeros = Crc32C.Compute(new byte[JournalLayout.BlockSize]);
        int count = 0;
        for (RedoBuffer redo = new(); ring.FreeBlocks > 0; count++)
        {
            (long at, byte[] bytes) = entries[(int)(count * 7919L % entries.Count)];
            redo.Add(at, bytes);
            long data = (long)(BinaryPrimitives.ReadUInt64BigEndian(bytes) & 0x00FF_FFFF_FFFF_FE00);
            JournalCheck check = new(data, JournalLayout.BlockSize, zeros);
            _ = ring.Append(new JournalContent(JournalRecordKind.Commit, (ulong)count, DataIsDurable: false, [], [check]), redo);
            redo.Clear();
        }

        file.Sync();
        return count;
    }

    private static IEnumerable<(long Offset, byte[] Bytes)> EntriesOf(IStorage file, Qcow2Header header)
    {
        for (int i = 0; i < header.L1Size; i++)
        {
            byte[] entry = new byte[sizeof(ulong)];
            file.Read(header.L1Offset + (i * sizeof(ulong)), entry);
            long table = (long)(BinaryPrimitives.ReadUInt64BigEndian(entry) & 0x00FF_FFFF_FFFF_FE00);
            for (long at = table; table != 0 && at < table + header.ClusterSize; at += sizeof(ulong))
            {
                byte[] mapping = new byte[sizeof(ulong)];
                file.Read(at, mapping);
                if (BinaryPrimitives.ReadUInt64BigEndian(mapping) != 0)
                    yield return (at, mapping);
            }
        }
    }
}
