// The append log of newest entries: sealed pages on disk, the open page and a filter in memory.
//
// A page is written once, when it is full or at the close (D2). What a crash loses is the open page; what a lost or torn page loses is
// itself and, when the log is read again, what follows it.
using QcowFs.Storage;

namespace QcowFs.Images.Dedup;

/// <summary>One log. Members are called under the index's lock, but for <see cref="TryReadPage"/>.</summary>
/// <param name="file">The index file.</param>
/// <param name="geometry">Sizes.</param>
/// <param name="place">0 or 1.</param>
internal sealed class HashLog(IStorage file, IndexGeometry geometry, int place)
{
    private readonly LogFilter _filter = new(geometry.LogEntries);
    private readonly byte[] _open = new byte[IndexPage.Size];
    private long _page;
    private int _count;

    public int Place => place;

    public Region Region { get; private set; }

    public bool IsFull => _page == geometry.LogPages;

    /// <summary>Entries, deletes among them.</summary>
    public long Entries { get; private set; }

    /// <summary>Sealed pages.</summary>
    public long Pages => _page;

    public long Memory => _filter.Memory + _open.Length;

    /// <summary>Begins an empty log.</summary>
    public void Begin(Region region)
    {
        Region = region;
        _filter.Clear();
        _page = 0;
        _count = 0;
        Entries = 0;
    }

    /// <summary>The log is being frozen, or is free.</summary>
    public void Mark(RegionState state) => Region = Region with { State = state };

    /// <summary>Ends a log that has been frozen.</summary>
    public void Free() => Begin(default);

    /// <summary>Appends an entry. The log is not full.</summary>
    public void Append(in IndexEntry entry, LogEntryType type)
    {
        entry.WriteToLog(_open.AsSpan(IndexPage.HeaderSize + (_count * IndexEntry.LogSize)), type);
        if (type == LogEntryType.Insert)
            _filter.Add(entry.Hash, Number(_page, _count));
        Entries++;
        if (++_count == IndexEntry.PerLogPage)
            Seal();
    }

    /// <summary>Seals a page that is not full, so that its entries survive.</summary>
    public void Flush()
    {
        if (_count == 0)
            return;
        IndexEntry.WriteEnd(_open.AsSpan(IndexPage.HeaderSize + (_count * IndexEntry.LogSize)));
        Seal();
    }

    /// <summary>Numbers of entries that may have the hash, newest first.</summary>
    public int Find(UInt128 hash, Span<long> numbers) => _filter.Find(hash, numbers);

    /// <summary>Forgets an entry in memory; the caller appends the delete.</summary>
    public void Forget(UInt128 hash, long number) => _filter.Remove(hash, number);

    /// <summary>The entry with this number, if it lies on the open page.</summary>
    public bool TryGetOpen(long number, out IndexEntry entry)
    {
        entry = default;
        if (PageOf(number) != _page)
            return false;
        return ReadEntry(_open, IndexOf(number), out entry) == LogEntryType.Insert;
    }

    public static long PageOf(long number) => number / IndexEntry.PerLogPage;

    public static int IndexOf(long number) => (int)(number % IndexEntry.PerLogPage);

    /// <summary>Reads and validates a sealed page of the log with this id.</summary>
    public bool TryReadPage(ulong id, long page, Span<byte> destination, out int count)
    {
        file.Read(geometry.LogOffset(place) + (page * IndexPage.Size), destination[..IndexPage.Size]);
        return IndexPage.TryOpen(destination, PageKind.Log, id, page, IndexEntry.PerLogPage, out count);
    }

    /// <summary>Reads an entry of a page.</summary>
    public static LogEntryType ReadEntry(ReadOnlySpan<byte> page, int index, out IndexEntry entry) =>
        IndexEntry.ReadFromLog(page[(IndexPage.HeaderSize + (index * IndexEntry.LogSize))..], out entry);

    /// <summary>Takes over what a log on disk holds, up to its first page that is none. Deletes of what the log does not hold itself go to
    /// <paramref name="deleted"/>.</summary>
    public void Resume(Region region, Span<byte> page, Action<IndexEntry> deleted)
    {
        Begin(region);
        Span<long> numbers = stackalloc long[4];
        byte[] other = new byte[IndexPage.Size];
        while (_page < geometry.LogPages && TryReadPage(region.Id, _page, page, out int count))
        {
            for (int i = 0; i < count; i++)
            {
                LogEntryType type = ReadEntry(page, i, out IndexEntry entry);
                if (type == LogEntryType.Insert)
                    _filter.Add(entry.Hash, Number(_page, i));
                else if (type == LogEntryType.Delete && !TryForget(entry, page, numbers, other))
                    deleted(entry);
                else if (type is LogEntryType.None or LogEntryType.End)
                    break;
                Entries++;
            }

            _page++;
        }
    }

    private bool TryForget(in IndexEntry entry, ReadOnlySpan<byte> current, Span<long> numbers, byte[] other)
    {
        int found = _filter.Find(entry.Hash, numbers);
        for (int i = 0; i < found; i++)
        {
            ReadOnlySpan<byte> page = current;
            if (PageOf(numbers[i]) != _page)
            {
                if (!TryReadPage(Region.Id, PageOf(numbers[i]), other, out _))
                    continue;
                page = other;
            }

            if (ReadEntry(page, IndexOf(numbers[i]), out IndexEntry present) != LogEntryType.Insert || present.Hash != entry.Hash || present.Host != entry.Host)
                continue;
            _filter.Remove(entry.Hash, numbers[i]);
            return true;
        }

        return false;
    }

    private void Seal()
    {
        IndexPage.Seal(_open, PageKind.Log, Region.Id, _page, _count);
        long page = _page++;
        _count = 0;
        file.Write(geometry.LogOffset(place) + (page * IndexPage.Size), _open);
    }

    private static long Number(long page, int index) => (page * IndexEntry.PerLogPage) + index;
}
