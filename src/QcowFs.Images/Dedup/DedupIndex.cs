// The index of one image: which guest block probably holds the bytes with this hash. See DESIGN.md beside this file for the
// invariants D1 to D8, which the comments cite.
//
// One lock guards everything in memory. Lookups read pages without it and validate them (D2). Whatever the file's errors, nothing
// leaves this class but a pause (D6).
using System.Buffers;
using System.Buffers.Binary;
using System.Collections;
using QcowFs.Storage;

namespace QcowFs.Images.Dedup;

/// <summary>The index. Thread-safe, except <see cref="Dispose"/>.</summary>
internal sealed partial class DedupIndex : IDisposable
{
    private const int PlacesPerHash = 4;

    private readonly Lock _lock = new();
    private readonly IStorage _file;
    private readonly DedupSettings _settings;
    private readonly BlockHash _hash;
    private readonly Action<string>? _log;
    private readonly IndexGeometry _geometry;
    private readonly HashLog[] _logs;
    private readonly List<FrozenTable> _tables = []; // oldest first
    private readonly byte[] _page = new byte[IndexPage.Size];
    private IndexSuperblock _superblock;
    private HashLog _active;
    private ulong _order;
    private Thread? _freezer;
    private volatile bool _closing;
    private volatile string? _paused;
    private long _buildMemory;
    private long _hashed;
    private long _hits;
    private long _bytesShared;
    private long _dropped;

    private DedupIndex(IStorage file, DedupSettings settings, IndexSuperblock superblock, IndexGeometry geometry, Action<string>? log)
    {
        _file = file;
        _settings = settings;
        _superblock = superblock;
        _geometry = geometry;
        _log = log;
        _hash = new BlockHash(superblock.Hash, superblock.Key, settings.TestHash);
        _logs = [new HashLog(file, geometry, 0), new HashLog(file, geometry, 1)];
        _active = _logs[0];
    }

    /// <summary>Why the index is not used any more in this session, or null (D6).</summary>
    public string? Paused => _paused;

    public IndexGeometry Geometry => _geometry;

    /// <summary>How blocks are hashed.</summary>
    public DedupHash HashKind => _superblock.Hash;

    /// <summary>Entries in memory's reach, deletes in logs among them.</summary>
    public long Entries
    {
        get
        {
            lock (_lock)
                return _logs[0].Entries + _logs[1].Entries + _tables.Sum(table => table.Region.Entries);
        }
    }

    /// <summary>Inserts that found no room while both logs were full.</summary>
    public long Dropped => Interlocked.Read(ref _dropped);

    /// <summary>Bytes of memory that the index holds now (D4).</summary>
    public long Memory
    {
        get
        {
            lock (_lock)
                return _logs[0].Memory + _logs[1].Memory + _tables.Sum(table => table.Memory) + Volatile.Read(ref _buildMemory);
        }
    }

    /// <summary>Frozen tables.</summary>
    public int TableCount
    {
        get
        {
            lock (_lock)
                return _tables.Count;
        }
    }

    /// <summary>Where a scan of the image goes on.</summary>
    public long ScanOffset => _superblock.ScanOffset;

    /// <summary>Hash of a block's bytes under the index's key.</summary>
    public UInt128 HashOf(ReadOnlySpan<byte> block) => _hash.Of(block);

    /// <summary>Counts what became of hashed blocks, for `dedup status`.</summary>
    public void Count(long hashed, long hits, long bytesShared)
    {
        Interlocked.Add(ref _hashed, hashed);
        Interlocked.Add(ref _hits, hits);
        Interlocked.Add(ref _bytesShared, bytesShared);
    }

    /// <summary>Looks up several hashes at once.</summary>
    /// <param name="hashes">The hashes.</param>
    /// <param name="found">For each of them what is probably there, or null.</param>
    public void Find(ReadOnlySpan<UInt128> hashes, Span<IndexEntry?> found)
    {
        found[..hashes.Length].Clear();
        if (_paused is not null)
            return;
        Place[] places = ArrayPool<Place>.Shared.Rent(hashes.Length * PlacesPerHash);
        byte[] page = ArrayPool<byte>.Shared.Rent(IndexPage.Size);
        try
        {
            lock (_lock)
            {
                for (int i = 0; i < hashes.Length; i++)
                    found[i] = FindPlaces(hashes[i], places.AsSpan(i * PlacesPerHash, PlacesPerHash));
            }

            Place last = default;
            for (int i = 0; i < hashes.Length; i++)
            {
                for (int j = 0; found[i] is null && j < PlacesPerHash && places[(i * PlacesPerHash) + j].Id != 0; j++)
                    found[i] = ReadPlace(places[(i * PlacesPerHash) + j], hashes[i], page, ref last);
            }
        }
        catch (StorageException exception)
        {
            Pause(exception);
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(page);
            ArrayPool<Place>.Shared.Return(places);
        }
    }

    /// <summary>Indexes a block. An older entry with the same hash is found no more.</summary>
    public void Insert(in IndexEntry entry)
    {
        if (_paused is not null || entry.Guest > IndexEntry.LargestBlock || entry.Host > IndexEntry.LargestBlock)
            return;
        lock (_lock)
            TryDo(entry, static (index, one) => index.Append(one, LogEntryType.Insert));
    }

    /// <summary>Takes an entry out that proved wrong, or whose block is gone (D7).</summary>
    public void Remove(in IndexEntry entry)
    {
        if (_paused is not null)
            return;
        lock (_lock)
        {
            TryDo(entry, static (index, one) =>
            {
                if (index.Forget(one))
                    index.Append(one, LogEntryType.Delete);
            });
        }
    }

    /// <summary>Makes everything durable and believes nothing new from here on. False: something failed, and the image must not carry
    /// the mark (D8).</summary>
    /// <param name="tableBits">Bit i: the table of the image's L1 entry i may hold a mapping that lacks its flag; null: nothing is
    /// known.</param>
    public bool TryFlush(BitArray? tableBits)
    {
        StopFreezing();
        lock (_lock)
        {
            if (_paused is not null)
                return false;
            TryDo(default, (index, _) =>
            {
                if (!index._active.IsFull)
                    index._active.Flush();
                foreach (FrozenTable table in index._tables)
                    table.SaveTags(index._page, all: false);
                index.SaveTableBits(tableBits);
                index._file.Sync();
            });
            return _paused is null;
        }
    }

    /// <summary>Binds the index to the image as it is now, after its last write. Ends what <see cref="TryFlush"/> began.</summary>
    public void Bind(ImageBinding binding)
    {
        lock (_lock)
        {
            if (_paused is not null)
                return;
            _superblock = _superblock with { Binding = binding };
            TryDo(default, static (index, _) =>
            {
                index.WriteSuperblock();
                index._file.Sync();
            });
        }
    }

    /// <summary>Notes how far a scan of the image came; durable with the next flush.</summary>
    public void NoteScan(long offset)
    {
        lock (_lock)
        {
            if (_paused is not null)
                return;
            _superblock = _superblock with { ScanOffset = offset };
            TryDo(default, static (index, _) =>
            {
                if (!index._active.IsFull)
                    index._active.Flush();
                index.WriteSuperblock();
            });
        }
    }

    /// <summary>Releases the file without writing anything.</summary>
    public void Dispose()
    {
        StopFreezing();
        _file.Dispose();
    }

    private void StopFreezing()
    {
        _closing = true;
        Thread? freezer;
        lock (_lock)
            freezer = _freezer;
        freezer?.Join();
    }

    private void Pause(StorageException exception)
    {
        if (_paused is not null)
            return;
        _paused = exception.Message;
        _log?.Invoke($"{_file.Name}: {exception.Message}; deduplication pauses until the next mount");
    }

    private void TryDo(in IndexEntry entry, Action<DedupIndex, IndexEntry> act)
    {
        try
        {
            act(this, entry);
        }
        catch (StorageException exception)
        {
            Pause(exception); // D6
        }
    }

    /// <summary>Collects where the hash may be, newest first; an answer at once where it is on the open page.</summary>
    private IndexEntry? FindPlaces(UInt128 hash, Span<Place> places)
    {
        places.Clear();
        int count = 0;
        Span<long> numbers = stackalloc long[PlacesPerHash];
        for (int i = 0; i < 2; i++)
        {
            HashLog log = i == 0 ? _active : Other(_active);
            if (log.Region.State == RegionState.Free)
                continue;
            int found = log.Find(hash, numbers);
            for (int j = 0; j < found && count < PlacesPerHash; j++)
            {
                if (HashLog.PageOf(numbers[j]) < log.Pages)
                    places[count++] = new Place(log.Region.Id, Place.FirstLog + log.Place, HashLog.PageOf(numbers[j]), HashLog.IndexOf(numbers[j]));
                else if (count == 0 && log.TryGetOpen(numbers[j], out IndexEntry entry) && entry.Hash == hash)
                    return entry;
            }
        }

        ushort tag = IndexEntry.TagOf(hash);
        for (int t = _tables.Count - 1; t >= 0 && count < PlacesPerHash; t--)
        {
            long bucket = _tables[t].BucketOf(hash);
            ReadOnlySpan<ushort> tags = _tables[t].TagsOf(bucket);
            int from = 0;
            while (count < PlacesPerHash && tags[from..].IndexOf(tag) is var at && at >= 0)
            {
                places[count++] = new Place(_tables[t].Id, _tables[t].Place, bucket, from + at);
                from += at + 1;
            }
        }

        return null;
    }

    private IndexEntry? ReadPlace(in Place place, UInt128 hash, byte[] page, ref Place last)
    {
        bool isLog = place.Where >= Place.FirstLog;
        if (last.Id != place.Id || last.Page != place.Page)
        {
            last = default;
            long offset = isLog ? _geometry.LogOffset(place.Where - Place.FirstLog) : _geometry.TableOffset(place.Where);
            _file.Read(offset + (place.Page * IndexPage.Size), page.AsSpan(0, IndexPage.Size));
            bool valid = isLog
                ? IndexPage.TryOpen(page, PageKind.Log, place.Id, place.Page, IndexEntry.PerLogPage, out _)
                : IndexPage.TryOpen(page, PageKind.Bucket, place.Id, place.Page, IndexEntry.PerBucket, out _);
            if (!valid)
                return null; // D2: lost, or reused since
            last = place;
        }

        if (isLog)
            return HashLog.ReadEntry(page, place.Index, out IndexEntry entry) == LogEntryType.Insert && entry.Hash == hash ? entry : null;
        IndexEntry frozen = FrozenTable.EntryAt(page, place.Index);
        return frozen.Hash == hash ? frozen : null;
    }

    /// <summary>Takes an entry out of memory. False: it was not there. Under the lock.</summary>
    private bool Forget(in IndexEntry entry)
    {
        bool found = false;
        Span<long> numbers = stackalloc long[PlacesPerHash];
        foreach (HashLog log in _logs)
        {
            if (log.Region.State == RegionState.Free)
                continue;
            int count = log.Find(entry.Hash, numbers);
            for (int i = 0; i < count; i++)
            {
                IndexEntry? present = log.TryGetOpen(numbers[i], out IndexEntry open) ? open : ReadLogEntry(log, numbers[i]);
                if (present is not { } one || one.Hash != entry.Hash || one.Host != entry.Host)
                    continue;
                log.Forget(entry.Hash, numbers[i]);
                found = true;
            }
        }

        foreach (FrozenTable table in _tables)
            found |= table.Remove(entry, _page);
        return found;
    }

    private IndexEntry? ReadLogEntry(HashLog log, long number)
    {
        bool valid = log.TryReadPage(log.Region.Id, HashLog.PageOf(number), _page, out _);
        return valid && HashLog.ReadEntry(_page, HashLog.IndexOf(number), out IndexEntry entry) == LogEntryType.Insert ? entry : null;
    }

    private void Append(in IndexEntry entry, LogEntryType type)
    {
        if (_active.IsFull && !TrySwitchLogs())
        {
            Interlocked.Increment(ref _dropped);
            return;
        }

        _active.Append(entry, type);
        if (_active.IsFull)
            _ = TrySwitchLogs();
    }

    private HashLog Other(HashLog log) => _logs[1 - log.Place];

    private ulong NewId()
    {
        Span<byte> bytes = stackalloc byte[sizeof(ulong)];
        ulong id;
        do
        {
            _settings.FillRandom(bytes);
            id = BinaryPrimitives.ReadUInt64LittleEndian(bytes);
        }
        while (id == 0);
        return id;
    }

    /// <summary>Where a page with the hash may be. Id 0: nowhere.</summary>
    private readonly record struct Place(ulong Id, int Where, long Page, int Index)
    {
        /// <summary>Numbers below are tables, from here on logs.</summary>
        public const int FirstLog = 1000;
    }
}
