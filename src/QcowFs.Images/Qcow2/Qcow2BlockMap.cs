// Where guest clusters live in a qcow2 image: L1 table, L2 tables, and the answers that the engine asks for.
//
// M1. A lookup takes no lock when the L2 page is cached: it reads entries between two looks at the page's sequence and judges them
//     only when the page did not change meanwhile.
// M2. Changes happen under the gate with every page that they need pinned, so that a change is complete or has not begun.
// M3. An L2 table is changed only if it is this image's own (COPIED in its L1 entry); a shared one is copied first (Qcow2Space).
// M4. What a change unmaps goes to the list of removals and is freed after the commit that makes the removal durable (I3).
using System.Buffers.Binary;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>The block map of one qcow2 image.</summary>
internal sealed partial class Qcow2BlockMap : ICompressingMap
{
    // Confirm, punch and sync, lower the counts.
    private const int CommitsToFree = 3;

    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly IStorage _data;
    private readonly bool _external;
    private readonly bool _hasBacking;
    private readonly MetadataCache _cache;
    private readonly CompressedBlockCache _compressed;
    private readonly Qcow2State _state;
    private readonly Qcow2Commit _commit;
    private readonly LeakCollector? _collector;
    private readonly Qcow2Space _space;
    private readonly CompressedSpace? _compressedSpace;
    private readonly JournalSession? _journal;
    private readonly Lock _commitLock = new();
    private bool _begun;
    private readonly int _clusterBits;
    private readonly long _clusterMask;
    private readonly int _subBits;
    private readonly int _entryBits;
    private readonly int _tableBits;
    private readonly bool _extended;

    /// <param name="parts">The image's parts.</param>
    /// <param name="state">What is shared with the commit.</param>
    /// <param name="collector">Collects what a crash left, or null.</param>
    public Qcow2BlockMap(Qcow2Parts parts, Qcow2State state, LeakCollector? collector)
    {
        _header = parts.Header;
        _file = state.File;
        _data = state.Data;
        _external = state.HasExternalData;
        _hasBacking = parts.Backing is not null;
        _state = state;
        _commit = new Qcow2Commit(state);
        _collector = collector;
        _cache = state.Cache;
        _clusterBits = _header.ClusterBits;
        _clusterMask = _header.ClusterSize - 1L;
        _extended = _header.HasExtendedL2;
        _entryBits = _extended ? 4 : 3;
        _tableBits = _clusterBits - _entryBits;
        _subBits = _extended ? _clusterBits - 5 : _clusterBits;
        _compressed = state.Compressed;
        _space = new Qcow2Space(state);
        if (parts.Options is { Writable: true, Compress: true } && !_external)
            state.CompressedSpace = _compressedSpace = new CompressedSpace(state, _space);
        if (parts.Options is { Writable: true, Journal: { } options })
            _journal = new JournalSession(state, _space, _commit, options, parts.Options.BackgroundRecovery, parts.Options.Log);
        Traits = new BlockMapTraits(_header.ClusterSize, 1 << _subBits);
    }

    public BlockMapTraits Traits { get; }

    public long MetadataReads => _cache.Misses;

    public bool NeedsCommit => _cache.NeedsCommit || _state.RemovalCount + _state.Pending.Count > Qcow2State.RemovalLimit;

    /// <summary>The journal's commits; null while there is no journal.</summary>
    internal JournalCommit? JournalCommit => _journal?.Commit;

    public bool IsDirty => _state.IsDirty || _state.Pending.Count > 0;

    public IWriteGuard? Guard => _journal?.Guard;

    /// <summary>Makes room in the file.</summary>
    public Qcow2Space Space => _space;

    /// <summary>What the image is made of. For tests.</summary>
    internal Qcow2State State => _state;

    private ResidentTable L1 => _state.L1;

    public Extent Lookup(long offset, long length)
    {
        int shift = _clusterBits + _tableBits;
        int index = (int)(offset >> shift);
        length = Math.Min(length, ((index + 1L) << shift) - offset);
        L1Entry l1 = new(L1[index]);
        if (!l1.IsAllocated)
            return new Extent(ExtentKind.Backing, length);
        long pageOffset = PageOf(EntryOffset(CheckTable(l1, index), offset));
        while (true)
        {
            MetadataPage page = _cache.Get(pageOffset);
            int sequence = page.Sequence;
            if ((sequence & 1) == 0 && page.Offset == pageOffset)
            {
                Scan scan = _extended ? ScanExtended(page, offset, length) : ScanStandard(page, offset, length);
                Volatile.ReadBarrier();
                if (page.Sequence == sequence)
                    return scan.Problem is null ? scan.Extent : throw BadEntry(pageOffset, offset, scan);
            }

            Thread.SpinWait(8);
        }
    }

    public void ReadCompressed(long descriptor, int offset, Span<byte> destination) => _compressed.Read(descriptor, offset, destination);

    public bool Commit(Func<bool> takeDataDirty)
    {
        if (_journal is null)
            return _commit.Run(takeDataDirty);
        lock (_commitLock)
        {
            if (_journal.Commit is not { } commit)
                return _commit.Run(takeDataDirty);
            bool written = commit.Run(takeDataDirty);

            // Who found the host full waits for what is being freed, which takes syncs of its own (J6).
            for (int i = 0; i < CommitsToFree && _state.Allocator!.IsStarved && _state.Pending.Count > 0; i++)
                _ = commit.Run(static () => false);
            _state.Allocator!.IsStarved = false;
            return written;
        }
    }

    public void BeginUse()
    {
        lock (_commitLock)
        {
            if (_begun)
                return;
            _commit.BeginUse();
            _journal?.Begin();
            _begun = true;
        }
    }

    public IRecovery? Recovery => _collector;

    public void EndUse()
    {
        lock (_commitLock)
        {
            _journal?.End();
            CommitRest();
            if (_journal is not null && NeedsSweep)
            {
                // With a journal, counts fall as late as here.
                Sweep(CommitRest, static () => false);
                CommitRest();
            }

            _commit.EndUse(recovered: _collector is null || _collector.IsComplete);
            _begun = false;
        }
    }

    private void CommitRest()
    {
        while (_state.IsDirty)
            _ = _commit.Run(static () => false);
    }

    public void Dispose()
    {
        _collector?.Dispose();
        _journal?.Dispose();
        _compressedSpace?.Dispose();
    }

    /// <summary>What a look at a page found. A problem is believed only when the page did not change meanwhile.</summary>
    private readonly record struct Scan(Extent Extent, string? Problem, ulong Entry)
    {
        public static Scan Bad(string problem, ulong entry) => new(default, problem, entry);
    }

    private Scan ScanStandard(MetadataPage page, long offset, long length)
    {
        ReadOnlySpan<ulong> entries = page.Entries;
        int index = (int)((EntryOffsetInTable(offset) & (_cache.PageSize - 1)) >> 3);
        long covered = -(offset & _clusterMask);
        Extent extent = default;
        for (int i = index; i < entries.Length && covered < length; i++, covered += _clusterMask + 1)
        {
            L2Entry entry = new(FromDisk(entries[i]));
            string? problem = Classify(entry, offset + covered, out ExtentKind kind, out long host);
            if (problem is not null)
            {
                // A neighbour's defect is reported when that neighbour is asked for.
                return i == index ? Scan.Bad(problem, entry.Raw) : new Scan(extent with { Length = covered }, null, 0);
            }

            if (i == index)
            {
                if (kind == ExtentKind.Compressed)
                    return new Scan(new Extent(kind, Math.Min(length, covered + _clusterMask + 1), host), null, 0);
                extent = new Extent(kind, 0, kind == ExtentKind.Data ? host - covered : -1, kind == ExtentKind.Data && entry.Copied);
            }
            else if (kind != extent.Kind
                || (kind == ExtentKind.Data && (host != extent.Host + covered || entry.Copied != extent.Writable)))
            {
                break;
            }
        }

        return new Scan(extent with { Length = Math.Min(length, covered) }, null, 0);
    }

    private Scan ScanExtended(MetadataPage page, long offset, long length)
    {
        ReadOnlySpan<ulong> entries = page.Entries;
        int index = (int)((EntryOffsetInTable(offset) & (_cache.PageSize - 1)) >> 4);
        long subMask = (1L << _subBits) - 1;
        long covered = -(offset & subMask);
        Extent extent = default;
        bool first = true;
        while (covered < length)
        {
            long at = offset + covered;
            int i = index + (int)((at >> _clusterBits) - (offset >> _clusterBits));
            if ((2 * i) + 1 >= entries.Length)
                break;
            L2Entry entry = new(FromDisk(entries[2 * i]));
            SubclusterBitmap bitmap = new(FromDisk(entries[(2 * i) + 1]));
            string? problem = ClassifyExtended(entry, bitmap, at, out ExtentKind kind, out long host);
            if (problem is not null)
                return first ? Scan.Bad(problem, entry.Raw) : new Scan(extent with { Length = covered }, null, 0);
            if (first)
            {
                if (kind == ExtentKind.Compressed)
                    return new Scan(new Extent(kind, Math.Min(length, (at | _clusterMask) + 1 - offset), host), null, 0);
                extent = new Extent(kind, 0, kind == ExtentKind.Data ? host - covered : -1, kind == ExtentKind.Data && entry.Copied);
                first = false;
            }
            else if (kind != extent.Kind
                || (kind == ExtentKind.Data && (host != extent.Host + covered || entry.Copied != extent.Writable)))
            {
                break;
            }

            covered += subMask + 1;
        }

        return new Scan(extent with { Length = Math.Min(length, covered) }, null, 0);
    }

    /// <summary>Judges a standard entry. Returns the problem, or null.</summary>
    /// <param name="entry">The entry.</param>
    /// <param name="guest">The guest offset of its cluster, rounded down to the asked place's cluster.</param>
    /// <param name="kind">What the cluster is.</param>
    /// <param name="host">The host offset of the cluster, or the compressed descriptor.</param>
    private string? Classify(L2Entry entry, long guest, out ExtentKind kind, out long host)
    {
        host = entry.HostOffset.Value;
        if (entry.IsCompressed)
        {
            kind = ExtentKind.Compressed;
            host = (long)(entry.Raw & (L2Entry.CompressedBit - 1));
            return _external || entry.Copied ? "a compressed cluster cannot be here" : JudgeStream(entry);
        }

        if (entry.Raw == 0)
        {
            kind = ExtentKind.Backing;
            return null;
        }

        kind = entry.IsZeroFlag ? ExtentKind.Zero : entry.HasHostCluster ? ExtentKind.Data : ExtentKind.Backing;
        if (entry.Reserved != 0 || (entry.IsZeroFlag && _header.Version < 3))
            return "reserved bits are set";
        // A zero cluster's place is judged too: a write uses it or gives it up.
        return entry.HasHostCluster ? JudgeHost(host, guest & ~_clusterMask) : null;
    }

    private string? ClassifyExtended(L2Entry entry, SubclusterBitmap bitmap, long guest, out ExtentKind kind, out long host)
    {
        host = entry.HostOffset.Value;
        if (entry.IsCompressed)
        {
            kind = ExtentKind.Compressed;
            host = (long)(entry.Raw & (L2Entry.CompressedBit - 1));
            return _external || entry.Copied || bitmap.Raw != 0
                ? "a compressed cluster has subclusters or cannot be here" : JudgeStream(entry);
        }

        uint bit = 1u << (int)((guest & _clusterMask) >> _subBits);
        bool allocated = (bitmap.Allocated & bit) != 0;
        kind = allocated ? ExtentKind.Data : (bitmap.ReadsZero & bit) != 0 ? ExtentKind.Zero : ExtentKind.Backing;
        if ((entry.Reserved | (entry.Raw & L2Entry.ZeroBit)) != 0)
            return "reserved bits are set";
        if (!bitmap.IsWellFormed)
            return "a subcluster is marked as data and as zeros";
        if (bitmap.Allocated != 0 && !entry.HasHostCluster)
            return "subclusters are marked as data without a host cluster";
        if (!entry.HasHostCluster)
            return null;
        string? problem = JudgeHost(host, guest & ~_clusterMask);
        host += guest & _clusterMask & -(1L << _subBits);
        return problem;
    }

    private string? JudgeHost(long host, long guest)
    {
        if ((host & _clusterMask) != 0)
            return "the host offset is not aligned to a cluster";
        if (_external)
            return host == guest ? null : "the host offset differs from the guest offset, with an external data file";
        if (host == 0)
            return "the host offset is that of the header";
        if (host >> _clusterBits >= _state.FileClusters)
            return "the host offset lies past the end of the file";
        return _state.Metadata?[host >> _clusterBits] is { } structure ? $"the host offset is that of the {structure}" : null;
    }

    private string? JudgeStream(L2Entry entry)
    {
        CompressedDescriptor stream = CompressedDescriptor.Of(entry, _clusterBits);
        if ((stream.End - 1) >> _clusterBits >= _state.FileClusters)
            return "the compressed data lies past the end of the file";
        for (long cluster = stream.Offset >> _clusterBits; cluster <= (stream.End - 1) >> _clusterBits; cluster++)
        {
            if (_state.Metadata?[cluster] is { } structure)
                return $"the compressed data lies in the {structure}";
        }

        return null;
    }

    private ImageFormatException BadEntry(long pageOffset, long guest, Scan scan) => new(
        _file.Name,
        "L2 table",
        pageOffset + (EntryOffsetInTable(guest) & (_cache.PageSize - 1)),
        $"entry {scan.Entry:x16} for guest offset {guest}: {scan.Problem}",
        "run `qcowfs check` on the unmounted image");

    /// <summary>The L2 table's offset, or the image's defect.</summary>
    private long CheckTable(L1Entry entry, int index)
    {
        long table = entry.TableOffset;
        if (entry.Reserved == 0 && (table & _clusterMask) == 0 && table >> _clusterBits < _state.FileClusters)
            return table;
        throw new ImageFormatException(
            _file.Name,
            "L1 table",
            L1.Offset + (index * 8L),
            $"entry {entry.Raw:x16} does not point at an L2 table inside the file",
            "run `qcowfs check` on the unmounted image");
    }

    private long EntryOffsetInTable(long guest) => ((guest >> _clusterBits) & ((1L << _tableBits) - 1)) << _entryBits;

    private long EntryOffset(long table, long guest) => table + EntryOffsetInTable(guest);

    private long PageOf(long offset) => offset & -_cache.PageSize;

    private static ulong FromDisk(ulong entry) => BitConverter.IsLittleEndian ? BinaryPrimitives.ReverseEndianness(entry) : entry;

    private static ulong ToDisk(ulong entry) => FromDisk(entry);
}
