// Mends single entries of L1 and L2 tables in place, 8 bytes at a time, which a sector holds whole. An entry is changed only where
// the table's clusters are nothing but that table: of a cluster that is a table to one and data to another, nobody can tell whose
// the bytes are. An exception is an L2 table that its own entries take for data: they would not be there if it were no table, so the bytes
// are the table's. It relies on reference counts that are right, so it comes after them.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Changes entries as a check finds them broken. Used by one thread.</summary>
/// <param name="header">The header.</param>
/// <param name="file">The image file, writable.</param>
internal sealed class EntryRepair(Qcow2Header header, IStorage file)
{
    private readonly RefcountTable _stored = new(header, file);
    private readonly byte[] _bytes = new byte[L2Entry.Size];
    private long _cluster = -1;
    private long _weight;
    private bool _isTableOnly;

    /// <summary>Whether any entry was changed.</summary>
    public bool Changed { get; private set; }

    /// <summary>Tells the table whose entries come next.</summary>
    /// <param name="offset">A byte of it.</param>
    /// <param name="weight">How many names of it the check knows; 0 for a part of the L1 table.</param>
    public void EnterTable(long offset, long weight)
    {
        long cluster = offset >> header.ClusterBits;
        if (cluster == _cluster && weight == _weight)
            return;
        _cluster = cluster;
        _weight = weight;
        ulong stored = _stored[cluster];
        _isTableOnly = weight == 0 ? stored == 1
            : stored == (ulong)weight || (stored % (ulong)weight == 0 && stored / (ulong)weight == 1 + (ulong)CountOwnNames(cluster));
    }

    // Entries of an L2 table that name the table itself.
    private int CountOwnNames(long cluster)
    {
        byte[] table = new byte[header.ClusterSize];
        file.Read(cluster << header.ClusterBits, table);
        int count = 0;
        for (int at = 0; at < table.Length; at += header.L2EntrySize)
        {
            L2Entry entry = L2Entry.Read(table.AsSpan(at));
            count += !entry.IsCompressed && entry.HostOffset.Value >> header.ClusterBits == cluster ? 1 : 0;
        }

        return count;
    }

    /// <summary>Sets or clears the COPIED flag of an L1 or L2 entry.</summary>
    public void SetCopied(long entryOffset, bool copied)
    {
        if (_isTableOnly)
            Write(entryOffset, Read(entryOffset).WithCopied(copied));
    }

    /// <summary>Takes the host cluster from an L2 entry that reads as zeros. With subclusters the bitmap goes on saying which of them
    /// do. Version 2 has no zero clusters.</summary>
    public void MakePlainZero(long entryOffset)
    {
        if (_isTableOnly && header.Version >= 3)
            Write(entryOffset, header.HasExtendedL2 ? L2Entry.Unallocated : L2Entry.Zero);
    }

    private L2Entry Read(long offset)
    {
        file.Read(offset, _bytes);
        return L2Entry.Read(_bytes);
    }

    private void Write(long offset, L2Entry entry)
    {
        entry.WriteTo(_bytes);
        file.Write(offset, _bytes);
        Changed = true;
    }
}
