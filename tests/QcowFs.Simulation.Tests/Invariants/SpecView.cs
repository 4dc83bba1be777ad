// A reading of a qcow2 image by the published format alone: which cluster holds what, how often it is referred to, what its count is.
// It shares no code with the implementation, so that both would have to be wrong in the same way.
using System.Buffers.Binary;
using System.IO.Compression;

namespace QcowFs.Simulation.Tests.Invariants;

/// <summary>What a host cluster holds.</summary>
internal enum Role : byte
{
    Nothing,
    Header,
    L1Table,
    RefcountTable,
    RefcountBlock,
    L2Table,
    SnapshotTable,
    SnapshotL1Table,
    Data,
    Compressed,
}

/// <summary>Bytes of an image file: those on disk, or those that memory would make of them.</summary>
internal interface IImageBytes
{
    long Length { get; }

    /// <summary>Fills all of the destination; past the end with zeros.</summary>
    void Read(long offset, Span<byte> destination);
}

/// <summary>One image as it is at one moment. Reused from moment to moment, so that looking at it after every step is cheap.</summary>
internal sealed class SpecView
{
    private const ulong Copied = 1UL << 63;
    private const ulong CompressedBit = 1UL << 62;
    private const ulong OffsetMask = 0x00FF_FFFF_FFFF_FE00;

    private readonly byte[] _header = new byte[112];
    private readonly byte[] _entry = new byte[64];
    private byte[] _table = [];
    private byte[] _block = [];
    private byte[] _countTable = [];
    private byte[] _l1 = [];
    private int[] _lastTree = [];
    private IImageBytes _bytes = null!;
    private int _clusterBits;
    private int _tree;

    /// <summary>What is wrong with the image by itself, or null.</summary>
    public string? Problem { get; private set; }

    /// <summary>Clusters of the file, the last one perhaps in part.</summary>
    public int Clusters { get; private set; }

    public int ClusterSize => 1 << _clusterBits;

    public Role[] Roles { get; private set; } = [];

    /// <summary>How many references there are to each cluster.</summary>
    public int[] References { get; private set; } = [];

    /// <summary>The stored count of each cluster.</summary>
    public ulong[] Counts { get; private set; } = [];

    /// <summary>Whether the active tree refers to a cluster with a COPIED flag, without one, or not at all.</summary>
    public bool?[] CopiedFlags { get; private set; } = [];

    /// <summary>The sectors that compressed clusters name.</summary>
    public List<(long Start, long End)> Streams { get; } = [];

    /// <summary>Where the entries of the active tree are that have a COPIED flag set.</summary>
    public List<long> FlagsAt { get; } = [];

    /// <summary>Bytes in use behind the header: where the active L1 and the refcount table are.</summary>
    public (long L1, long RefcountTable) Places => (Int64(40), Int64(48));

    public IReadOnlyList<(string Name, long L1Offset, int L1Size, long Size)> Snapshots { get; private set; } = [];

    private int Version => (int)UInt32(4);

    private bool External => (Incompatible & 4) != 0;

    private bool Extended => (Incompatible & 16) != 0;

    private ulong Incompatible => Version < 3 ? 0 : BinaryPrimitives.ReadUInt64BigEndian(_header.AsSpan(72));

    private int CountOrder => Version < 3 ? 4 : (int)UInt32(96);

    private int EntrySize => Extended ? 16 : 8;

    /// <summary>Looks at an image. What it finds stays until the next call.</summary>
    public void Load(IImageBytes bytes)
    {
        _bytes = bytes;
        Problem = null;
        bytes.Read(0, _header);
        if (UInt32(0) != 0x514649FB)
        {
            Fail("the header has lost its magic number");
            return;
        }

        _clusterBits = (int)UInt32(20);
        Clusters = (int)((bytes.Length + ClusterSize - 1) >> _clusterBits);
        Resize();
        Claim(0, Role.Header);
        ClaimRange(Int64(40), UInt32(36) * 8L, Role.L1Table);
        ClaimRange(Int64(48), (long)UInt32(56) << _clusterBits, Role.RefcountTable);
        LoadCounts();
        _tree = 1;
        WalkTree(Int64(40), (int)UInt32(36), active: true);
        LoadSnapshots();
        foreach ((string _, long l1, int size, long _) in Snapshots)
        {
            _tree++;
            ClaimRange(l1, size * 8L, Role.SnapshotL1Table);
            WalkTree(l1, size, active: false);
        }
    }

    /// <summary>Whether a cluster holds one of the image's own structures.</summary>
    public bool IsMetadata(long cluster) => cluster < Clusters && Roles[cluster] is not (Role.Nothing or Role.Data or Role.Compressed);

    /// <summary>Whether anything refers to a cluster.</summary>
    public bool IsReferred(long cluster) => cluster < Clusters && References[cluster] > 0;

    /// <summary>What the guest reads through an L1 table.</summary>
    public void ReadGuest(long l1Offset, int l1Size, Span<byte> guest, ReadOnlySpan<byte> backing)
    {
        byte[] l1 = new byte[l1Size * 8];
        _bytes.Read(l1Offset, l1);
        byte[] cluster = new byte[ClusterSize];
        int perTable = ClusterSize / EntrySize;
        for (int at = 0; at < guest.Length; at += ClusterSize)
        {
            long number = at >> _clusterBits;
            cluster.AsSpan().Clear();
            if (at < backing.Length)
                backing[at..Math.Min(at + ClusterSize, backing.Length)].CopyTo(cluster);
            long table = (long)(UInt64(l1, (int)(number / perTable) * 8) & OffsetMask);
            if (table != 0)
                ReadCluster(table + (number % perTable * EntrySize), cluster);
            int length = Math.Min(ClusterSize, guest.Length - at);
            cluster.AsSpan(0, length).CopyTo(guest[at..]);
        }
    }

    /// <summary>The active disk.</summary>
    public byte[] ReadActive(ReadOnlySpan<byte> backing)
    {
        byte[] guest = new byte[Int64(24)];
        ReadGuest(Int64(40), (int)UInt32(36), guest, backing);
        return guest;
    }

    private void ReadCluster(long entryOffset, Span<byte> cluster)
    {
        byte[] slot = new byte[16];
        _bytes.Read(entryOffset, slot);
        ulong entry = UInt64(slot, 0);
        if ((entry & CompressedBit) != 0)
        {
            (long offset, int length) = Stream(entry);
            byte[] stream = new byte[length];
            _bytes.Read(offset, stream);
            using DeflateStream inflate = new(new MemoryStream(stream), CompressionMode.Decompress);
            inflate.ReadExactly(cluster);
            return;
        }

        int parts = Extended ? 32 : 1;
        ulong bitmap = Extended ? UInt64(slot, 8) : (entry & 1) != 0 ? 1UL << 32 : (entry & OffsetMask) != 0 ? 1 : 0UL;
        int size = ClusterSize / parts;
        for (int i = 0; i < parts; i++)
        {
            Span<byte> part = cluster.Slice(i * size, size);
            if ((bitmap >> (32 + i) & 1) != 0)
                part.Clear();
            else if ((bitmap >> i & 1) != 0)
                _bytes.Read((long)(entry & OffsetMask) + (i * size), part);
        }
    }

    private void LoadCounts()
    {
        long table = Int64(48);
        int length = (int)(UInt32(56) << _clusterBits);
        int order = CountOrder;
        int perBlock = (ClusterSize * 8) >> order;
        if (_countTable.Length < length)
            _countTable = new byte[length];
        _bytes.Read(table, _countTable.AsSpan(0, length));
        for (int i = 0; i < length / 8; i++)
        {
            ulong entry = UInt64(_countTable, i * 8);
            if (entry == 0)
                continue;
            if ((entry & 511) != 0)
                Fail($"refcount table entry {i} has reserved bits");
            long cluster = (long)(entry & ~511UL) >> _clusterBits;
            Claim(cluster, Role.RefcountBlock);
            _bytes.Read(cluster << _clusterBits, _block);
            long first = (long)i * perBlock;
            for (int j = 0; j < perBlock; j++)
            {
                ulong count = CountAt(j, order);
                if (first + j < Clusters)
                    Counts[first + j] = count;
                else if (count != 0)
                    Beyond(first + j);
            }
        }
    }

    // A reservation for a chunk of host space extends the file before a cluster of it is used, so nothing past the end is counted.
    private void Beyond(long cluster) => Fail($"cluster {cluster} past the end of the file is counted");

    // Widths below a byte are packed from the lowest bit on; a byte and more are big-endian.
    private ulong CountAt(int index, int order) => order switch
    {
        3 => _block[index],
        4 => BinaryPrimitives.ReadUInt16BigEndian(_block.AsSpan(index * 2)),
        5 => BinaryPrimitives.ReadUInt32BigEndian(_block.AsSpan(index * 4)),
        6 => UInt64(_block, index * 8),
        _ => (ulong)(_block[(index << order) / 8] >> ((index << order) % 8)) & ((1UL << (1 << order)) - 1),
    };

    private void WalkTree(long l1Offset, int l1Size, bool active)
    {
        if (_l1.Length < l1Size * 8)
            _l1 = new byte[l1Size * 8];
        _bytes.Read(l1Offset, _l1.AsSpan(0, l1Size * 8));
        for (int i = 0; i < l1Size; i++)
        {
            ulong entry = UInt64(_l1, i * 8);
            if ((entry & ~(Copied | OffsetMask)) != 0)
                Fail($"L1 entry {i}, {entry:x16}, has reserved bits");
            long table = (long)(entry & OffsetMask);
            if (table == 0)
                continue;
            if (table % ClusterSize != 0)
                Fail($"the L2 table at byte {table} is not aligned");
            Claim(table >> _clusterBits, Role.L2Table);
            if (active)
                NoteFlag(table >> _clusterBits, entry, l1Offset + (i * 8));
            _bytes.Read(table, _table);
            for (int at = 0; at < ClusterSize; at += EntrySize)
                WalkEntry(table, at, active);
        }
    }

    private void WalkEntry(long table, int at, bool active)
    {
        ulong entry = UInt64(_table, at);
        ulong bitmap = Extended ? UInt64(_table, at + 8) : 0;
        if (entry == 0 && bitmap == 0)
            return;
        if ((entry & CompressedBit) != 0)
        {
            if ((entry & Copied) != 0 || bitmap != 0 || External)
                Fail($"a compressed entry, {entry:x16}, is marked as what it cannot be");
            (long offset, int length) = Stream(entry);
            Streams.Add((offset & ~511L, offset + length));
            for (long cluster = offset >> _clusterBits; cluster <= (offset + length - 1) >> _clusterBits; cluster++)
                Claim(cluster, Role.Compressed);
            return;
        }

        bool mayBeZero = Version >= 3 && !Extended;
        if ((entry & ~(Copied | OffsetMask | (mayBeZero ? 1UL : 0))) != 0)
            Fail($"L2 entry {entry:x16} has reserved bits");
        if ((bitmap & 0xFFFF_FFFF & bitmap >> 32) != 0)
            Fail($"subclusters {bitmap:x16} are data and zeros at once");
        long host = (long)(entry & OffsetMask);
        if (host == 0 && (bitmap & 0xFFFF_FFFF) != 0 && !External)
            Fail($"subclusters {bitmap:x16} are data without a cluster");
        if (host % ClusterSize != 0)
            Fail($"the cluster at byte {host} is not aligned");
        if (host == 0 || External)
            return;
        Claim(host >> _clusterBits, Role.Data);
        if (active)
            NoteFlag(host >> _clusterBits, entry, table + at);
    }

    private (long Offset, int Length) Stream(ulong entry)
    {
        int x = 70 - _clusterBits;
        long offset = (long)(entry & ((1UL << x) - 1));
        int sectors = (int)((entry & (CompressedBit - 1)) >> x) + 1;
        return (offset, (sectors * 512) - (int)(offset & 511));
    }

    private void LoadSnapshots()
    {
        int count = (int)UInt32(60);
        if (count == 0)
        {
            Snapshots = [];
            return;
        }

        List<(string, long, int, long)> found = [];
        long start = Int64(64);
        long at = start;
        byte[] entry = _entry;
        for (int i = 0; i < count; i++)
        {
            _bytes.Read(at, entry);
            int idLength = BinaryPrimitives.ReadUInt16BigEndian(entry.AsSpan(12));
            int nameLength = BinaryPrimitives.ReadUInt16BigEndian(entry.AsSpan(14));
            int extra = BinaryPrimitives.ReadInt32BigEndian(entry.AsSpan(36));
            byte[] name = new byte[nameLength];
            _bytes.Read(at + 40 + extra + idLength, name);
            long size = extra >= 16 ? (long)UInt64(entry, 48) : Int64(24);
            found.Add((System.Text.Encoding.UTF8.GetString(name), (long)UInt64(entry, 0), BinaryPrimitives.ReadInt32BigEndian(entry.AsSpan(8)), size));
            at += (40 + extra + idLength + nameLength + 7) & ~7L;
        }

        Snapshots = found;
        ClaimRange(start, at - start, Role.SnapshotTable);
    }

    private void NoteFlag(long cluster, ulong entry, long at)
    {
        if (cluster < Clusters)
            CopiedFlags[cluster] = (entry & Copied) != 0;
        if ((entry & Copied) != 0)
            FlagsAt.Add(at);
    }

    private void ClaimRange(long offset, long length, Role role)
    {
        for (long cluster = offset >> _clusterBits; cluster < (offset + length + ClusterSize - 1) >> _clusterBits; cluster++)
            Claim(cluster, role);
    }

    // One role for each cluster. Trees may share tables and data with each other, a tree shares nothing with itself but the host
    // clusters of compressed streams.
    private void Claim(long cluster, Role role)
    {
        if (cluster >= Clusters)
        {
            Fail($"{role} in cluster {cluster} lies past the end of the file of {Clusters} clusters");
            return;
        }

        bool shareable = role is Role.L2Table or Role.Data or Role.Compressed;
        Role old = Roles[cluster];
        if (old != Role.Nothing && (old != role || !shareable))
            Fail($"cluster {cluster} is {old} and {role}");
        if (role is Role.L2Table or Role.Data && _lastTree[cluster] == _tree)
            Fail($"cluster {cluster} is {role} twice in one disk");
        _lastTree[cluster] = _tree;
        Roles[cluster] = role;
        References[cluster]++;
    }

    private void Resize()
    {
        if (Roles.Length < Clusters)
        {
            int length = Clusters * 2;
            Roles = new Role[length];
            References = new int[length];
            Counts = new ulong[length];
            CopiedFlags = new bool?[length];
            _lastTree = new int[length];
        }

        Array.Clear(Roles, 0, Clusters);
        Array.Clear(References, 0, Clusters);
        Array.Clear(Counts, 0, Clusters);
        Array.Clear(CopiedFlags, 0, Clusters);
        Array.Clear(_lastTree, 0, Clusters);
        if (_table.Length != ClusterSize)
        {
            _table = new byte[ClusterSize];
            _block = new byte[ClusterSize];
        }

        FlagsAt.Clear();
        Streams.Clear();
        _tree = 0;
    }

    private void Fail(string problem) => Problem ??= problem;

    private uint UInt32(int at) => BinaryPrimitives.ReadUInt32BigEndian(_header.AsSpan(at));

    private long Int64(int at) => BinaryPrimitives.ReadInt64BigEndian(_header.AsSpan(at));

    private static ulong UInt64(byte[] bytes, int at) => BinaryPrimitives.ReadUInt64BigEndian(bytes.AsSpan(at));
}
