// Which host clusters hold the image's own structures: a guard against images that lie about it.
//
// A corrupt image may count a structure's cluster as free, or name it twice. Whoever believed it would write guest data over metadata,
// or metadata over metadata, and lose the disk. So the structures are listed when the image is opened for writing, from what is in
// memory anyway, and the list is kept up to date:
// P1. No two structures share a cluster; an image where they do is not opened for writing.
// P2. No cluster of the list is ever handed out.
// P3. No L2 entry that names a cluster of the list is used, for reading or writing, or given up.
// P4. A cluster enters the list in the change that links it and leaves it before the allocator gets it.
using System.Collections.Concurrent;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Qcow2;

/// <summary>The clusters of header, L1 table, active L2 tables, refcount table and blocks, snapshot table, and bitmaps. Asked from any thread
/// without a lock; changed under the metadata cache's gate.</summary>
internal sealed class MetadataMap
{
    public const string L2Table = "L2 table";
    public const string RefcountBlock = "refcount block";
    public const string RefcountTable = "refcount table";

    private const string Advice = "run `qcowfs check` on the unmounted image; it can still be read without -w";

    private readonly ConcurrentDictionary<long, string> _structures = new();
    private readonly string _file;
    private readonly int _clusterBits;
    private readonly FailureLatch _latch;

    /// <summary>Lists the structures of an image. Throws <see cref="ImageFormatException"/> where they overlap or do not lie in the
    /// file.</summary>
    public MetadataMap(Qcow2Parts parts, ResidentTable l1, ResidentTable counts, FailureLatch latch)
    {
        Qcow2Header header = parts.Header;
        _file = parts.File.Name;
        _clusterBits = header.ClusterBits;
        _latch = latch;
        Claim(0, 1, "header");
        Claim(header.L1Offset, l1.Length * 8L, "L1 table");
        Claim(counts.Offset, counts.Length * 8L, RefcountTable);
        Claim(header.SnapshotsOffset, Qcow2SnapshotTable.Read(header, parts.File).Length, "snapshot table");
        for (int i = 0; i < counts.Length; i++)
        {
            RefcountTableEntry entry = new(counts[i]);
            if (entry.IsAllocated)
                ClaimNamed(entry.BlockOffset, entry.Reserved, RefcountBlock, RefcountTable, counts.Offset + (i * 8L), parts.File.Length);
        }

        for (int i = 0; i < l1.Length; i++)
        {
            L1Entry entry = new(l1[i]);
            if (entry.IsAllocated)
                ClaimNamed(entry.TableOffset, entry.Reserved, L2Table, "L1 table", l1.Offset + (i * 8L), parts.File.Length);
        }
    }

    /// <summary>What a cluster holds, or null where it holds none of the structures.</summary>
    public string? this[long cluster] => _structures.GetValueOrDefault(cluster);

    /// <summary>Notes new structures (P4).</summary>
    public void Add(long first, long count, string structure)
    {
        for (long cluster = first; cluster < first + count; cluster++)
        {
            bool isNew = _structures.TryAdd(cluster, structure);
            Invariant.Require(isNew, "P2: a structure's cluster is not handed out");
        }
    }

    /// <summary>Lists a structure that an image may do without. False, with nothing listed, where it shares a cluster with another.</summary>
    public bool TryClaim(long offset, long length, string structure)
    {
        long first = offset >> _clusterBits;
        long end = (offset + length - 1 >> _clusterBits) + 1;
        for (long cluster = first; cluster < end; cluster++)
        {
            if (_structures.ContainsKey(cluster))
                return false;
        }

        Add(first, end - first, structure);
        return true;
    }

    /// <summary>Notes that clusters are about to be free.</summary>
    public void Remove(long first, long count)
    {
        for (long cluster = first; cluster < first + count; cluster++)
            _structures.TryRemove(cluster, out _);
    }

    /// <summary>Fails the image for good where a cluster that its counts call free holds a structure (P2).</summary>
    public void RequireFree(long first, long count)
    {
        for (long cluster = first; cluster < first + count; cluster++)
        {
            if (this[cluster] is not { } structure)
                continue;
            ImageFormatException defect = new(
                _file, structure, cluster << _clusterBits, "its cluster is in use but counted as free", Advice);
            _latch.Fail(defect.Message);
            throw defect;
        }
    }

    private void ClaimNamed(long offset, ulong reserved, string structure, string table, long entryOffset, long fileLength)
    {
        if (reserved != 0 || offset <= 0 || (offset & ((1L << _clusterBits) - 1)) != 0 || offset >= fileLength)
        {
            throw new ImageFormatException(
                _file, table, entryOffset, $"the entry does not point at a {structure} inside the file (byte {offset})", Advice);
        }

        Claim(offset, 1, structure);
    }

    private void Claim(long offset, long length, string structure)
    {
        if (length == 0)
            return;
        long last = (offset + length - 1) >> _clusterBits;
        for (long cluster = offset >> _clusterBits; cluster <= last; cluster++)
        {
            if (!_structures.TryAdd(cluster, structure))
            {
                throw new ImageFormatException(
                    _file, structure, cluster << _clusterBits, $"its cluster is also that of the {_structures[cluster]}", Advice);
            }
        }
    }
}
