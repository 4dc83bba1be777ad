// The refcount structures as they are on disk, read without any cache: what a check compares with.
using System.Runtime.InteropServices;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>The stored reference counts of an image. Used by one thread.</summary>
internal sealed class RefcountTable
{
    // INT64_MAX down to a multiple of the largest alignment that a file can ask for.
    private const long LongestFile = long.MaxValue & -(1L << 30);

    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly byte[] _block;
    private long _blockIndex = -1;

    /// <summary>Reads the table, at most 8 MiB; what lies past the end of the file reads as unallocated.</summary>
    public RefcountTable(Qcow2Header header, IStorage file)
    {
        _header = header;
        _file = file;
        _block = new byte[header.ClusterSize];
        byte[] table = new byte[header.RefcountTableClusters << header.ClusterBits];
        file.Read(header.RefcountTableOffset, table);
        Entries = new RefcountTableEntry[table.Length / RefcountTableEntry.Size];
        for (int i = 0; i < Entries.Length; i++)
            Entries[i] = RefcountTableEntry.Read(table.AsSpan(i * RefcountTableEntry.Size));
    }

    /// <summary>The table's entries as they are.</summary>
    public RefcountTableEntry[] Entries { get; }

    /// <summary>Byte offset of an entry in the image file.</summary>
    public long EntryOffset(long index) => _header.RefcountTableOffset + index * RefcountTableEntry.Size;

    /// <summary>Index of the block that holds a cluster's count.</summary>
    public long BlockOf(long cluster) => cluster / _header.RefcountsPerBlock;

    /// <summary>The first cluster whose count is in another block.</summary>
    public long BlockEnd(long cluster) => (BlockOf(cluster) + 1) * _header.RefcountsPerBlock;

    /// <summary>Whether a block can be read: false where its entry is misaligned or beyond what an offset can be, which ends where QEMU's
    /// files end. A block that is not there holds zeros.</summary>
    public bool IsReadable(long blockIndex) => blockIndex >= Entries.Length
        || (Entries[blockIndex].BlockOffset >= 0 && Entries[blockIndex].BlockOffset <= LongestFile - _header.ClusterSize
            && Entries[blockIndex].BlockOffset % _header.ClusterSize == 0);

    /// <summary>Whether a block is there and lies in the file.</summary>
    public bool HasBlock(long blockIndex)
    {
        if (blockIndex >= Entries.Length)
            return false;
        long offset = Entries[blockIndex].BlockOffset;
        return offset > 0 && offset < _file.Length && IsReadable(blockIndex);
    }

    /// <summary>The stored count of a cluster. Reads a block when the cluster lies in another than the last one asked for.</summary>
    public ulong this[long cluster]
    {
        get
        {
            long index = BlockOf(cluster);
            if (index != _blockIndex)
            {
                if (!HasBlock(index))
                    return 0;
                _blockIndex = -1;
                _file.Read(Entries[index].BlockOffset, _block);
                _blockIndex = index;
            }

            return RefcountEncoding.Get(_block, (int)(cluster % _header.RefcountsPerBlock), _header.RefcountOrder);
        }
    }

    /// <summary>The stored counts of clusters of one block, which is there, in a byte each: 255 for that and all above.</summary>
    public void CopySmall(long first, Span<byte> destination)
    {
        _ = this[first]; // reads the block
        int index = (int)(first % _header.RefcountsPerBlock);
        switch (_header.RefcountOrder)
        {
            case 3:
                _block.AsSpan(index, destination.Length).CopyTo(destination);
                break;
            case 4:
                RefcountEncoding.CopySmall16(MemoryMarshal.Cast<byte, ushort>(_block.AsSpan())[index..], destination);
                break;
            default:
                for (int i = 0; i < destination.Length; i++)
                    destination[i] = (byte)Math.Min(byte.MaxValue, RefcountEncoding.Get(_block, index + i, _header.RefcountOrder));
                break;
        }
    }

    /// <summary>The first cluster at or behind <paramref name="cluster"/> whose block is there, or long.MaxValue.</summary>
    public long NextStored(long cluster)
    {
        for (long index = BlockOf(cluster); index < Entries.Length; index++)
        {
            if (HasBlock(index))
                return Math.Max(cluster, index * _header.RefcountsPerBlock);
        }

        return long.MaxValue;
    }
}
