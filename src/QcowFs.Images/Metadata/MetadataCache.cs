// The cache of mapping and reference-count pages of one image.
//
// It is set-associative: a page's offset decides its set, a set holds a few pages and a lock. A hit takes no lock (MetadataPage, P2).
// A miss reuses the memory of a clean page of the same set, so that a full cache allocates nothing. When all pages of a set are
// dirty or pinned the set grows by one; who finds the cache over its limit of dirty pages commits before it goes on (NeedsCommit).
//
// Locks: Gate guards all changes of content and the dirty lists; a set's lock guards which page holds which offset. The gate is
// taken before a set's lock, never after it. No file is read or written under either.
using QcowFs.Storage;

namespace QcowFs.Images.Metadata;

/// <summary>Sees a changed page.</summary>
/// <param name="offset">Its host byte offset.</param>
/// <param name="now">Its content.</param>
/// <param name="logged">Its content at the last record; the visitor makes it equal to <paramref name="now"/>.</param>
internal delegate void PageChangeVisitor(long offset, ReadOnlySpan<byte> now, Span<byte> logged);

/// <summary>The metadata pages of one image. Thread-safe as the head of the file says.</summary>
internal sealed class MetadataCache
{
    private const int Ways = 8;

    private readonly IStorage _file;
    private readonly Set[] _sets;
    private readonly int _pageBits;
    private readonly List<MetadataPage> _unlogged = [];
    private readonly Stack<byte[]> _spareImages = new();
    private int _dirtyLimit;
    private volatile bool _logs;
    private List<MetadataPage> _dirty = [];
    private int _frozenCount;
    private long _misses;

    /// <summary>Creates an empty cache.</summary>
    /// <param name="file">The image file, owned by the caller.</param>
    /// <param name="pageSize">Bytes per page, a power of two not above the image's cluster.</param>
    /// <param name="capacity">Bytes of page content to keep.</param>
    public MetadataCache(IStorage file, int pageSize, long capacity)
    {
        _file = file;
        PageSize = pageSize;
        _pageBits = System.Numerics.BitOperations.Log2((uint)pageSize);
        long pages = Math.Max(1, capacity / pageSize);
        int sets = (int)System.Numerics.BitOperations.RoundUpToPowerOf2((ulong)Math.Max(1, pages / Ways));
        if ((long)sets * Ways > pages && sets > 1)
            sets /= 2;
        int ways = (int)Math.Clamp(pages / sets, 1, 2 * Ways);
        _sets = new Set[sets];
        for (int i = 0; i < sets; i++)
            _sets[i] = new Set(ways);
        _dirtyLimit = (int)Math.Max(2, Math.Min(pages, int.MaxValue) / 2);
    }

    /// <summary>Guards every change of metadata: page contents, resident tables, pending removals. Held without I/O.</summary>
    public Lock Gate { get; } = new();

    /// <summary>Bytes per page.</summary>
    public int PageSize { get; }

    /// <summary>The name of the image file, for messages.</summary>
    public string FileName => _file.Name;

    /// <summary>Pages changed and not yet written. Exact under the gate, a hint elsewhere.</summary>
    public int DirtyCount => _dirty.Count + _frozenCount;

    /// <summary>Pages that had to be read.</summary>
    public long Misses => Interlocked.Read(ref _misses);

    /// <summary>Whether so many pages are dirty that the caller should commit before it changes more.</summary>
    public bool NeedsCommit => DirtyCount > _dirtyLimit;

    /// <summary>Every page that holds an offset. For tests, while no other thread uses the cache.</summary>
    internal IEnumerable<MetadataPage> Pages => _sets.SelectMany(set => set.Pages).OfType<MetadataPage>().Where(page => page.Offset != MetadataPage.Nowhere);

    /// <summary>The page that holds <paramref name="offset"/>, loaded where necessary. The caller may only read it, between two looks
    /// at its sequence (P2), and must check <see cref="MetadataPage.Offset"/> as well, since the page is not pinned.</summary>
    /// <param name="offset">Host byte offset, a multiple of the page size.</param>
    public MetadataPage Get(long offset)
    {
        Set set = SetOf(offset);
        MetadataPage? page = Find(set, offset);
        if (page is not null && (page.Sequence & 1) == 0)
        {
            if (!page.RecentlyUsed)
                page.RecentlyUsed = true;
            return page;
        }

        return Load(set, offset, pin: false);
    }

    /// <summary>As <see cref="Get"/>, and keeps the page in memory until <see cref="Unpin"/>. Call without the gate.</summary>
    public MetadataPage Pin(long offset) => Load(SetOf(offset), offset, pin: true);

    /// <summary>Ends a <see cref="Pin"/>.</summary>
    public void Unpin(MetadataPage page)
    {
        lock (SetOf(page.Offset).Lock)
            page.Pins--;
    }

    /// <summary>Prepares a pinned page for a change and makes it dirty. Call under the gate; follow with
    /// <see cref="MetadataPage.EndChange"/>.</summary>
    public void BeginChange(MetadataPage page, CommitStage stage)
    {
        if (_logs)
            NoteUnlogged(page);
        if (page.Frozen && page.FrozenContent is null)
            page.FrozenContent = page.Bytes.ToArray(); // P4
        if (!page.Dirty)
        {
            page.Unwritten |= Unwritten.Dirty;
            page.Stage = stage;
            _dirty.Add(page);
        }

        page.BeginChange();
    }

    /// <summary>Takes the dirty pages as they are now for a commit. Call under the gate; end with <see cref="Thaw"/>.</summary>
    public List<MetadataPage> Freeze()
    {
        List<MetadataPage> frozen = _dirty;
        _dirty = [];
        _frozenCount = frozen.Count;
        foreach (MetadataPage page in frozen)
            page.Unwritten = Unwritten.Frozen;
        return frozen;
    }

    /// <summary>Ends a commit. Where it did not complete, its pages are dirty again. Call under the gate.</summary>
    public void Thaw(List<MetadataPage> frozen, bool written)
    {
        foreach (MetadataPage page in frozen)
        {
            page.FrozenContent = null;
            if (written && !page.Dirty)
                ForgetLogged(page);
            if (!written && !page.Dirty)
            {
                page.Unwritten |= Unwritten.Dirty;
                _dirty.Add(page);
            }

            page.Unwritten &= ~Unwritten.Frozen;
        }

        _frozenCount = 0;
    }

    /// <summary>From here on changes are told to <see cref="TakeChanges"/>. Nothing is dirty. Call under the gate.</summary>
    /// <param name="dirtyLimit">So many dirty pages make a commit necessary.</param>
    public void StartLogging(int dirtyLimit)
    {
        Invariant.Require(DirtyCount == 0, "logging starts with nothing dirty");
        _dirtyLimit = Math.Min(_dirtyLimit, dirtyLimit);
        _logs = true;
    }

    /// <summary>Ends what <see cref="StartLogging"/> began, with nothing dirty. Call under the gate.</summary>
    public void StopLogging()
    {
        Invariant.Require(DirtyCount == 0, "logging ends with nothing dirty");
        _logs = false;
    }

    /// <summary>Whether a page was changed since the last record. Call under the gate.</summary>
    public bool HasUnlogged => _unlogged.Count > 0;

    /// <summary>Shows every page that was changed since the last call, as it is and as it was then. Call under the gate.</summary>
    public void TakeChanges(PageChangeVisitor visit)
    {
        foreach (MetadataPage page in _unlogged)
        {
            if (!page.Unlogged)
                continue;
            page.Unlogged = false;
            visit(page.Offset, page.Bytes, page.Logged);
        }

        _unlogged.Clear();
    }

    /// <summary>Forgets the pages of a metadata block that is about to be freed (I3). They must not be frozen. Call under the gate.</summary>
    public void Drop(long offset, long length)
    {
        for (long at = offset; at < offset + length; at += PageSize)
        {
            Set set = SetOf(at);
            lock (set.Lock)
            {
                MetadataPage? page = Find(set, at);
                if (page is null)
                    continue;
                Invariant.Require(!page.Frozen && page.Pins == 0 && !page.Loading, "a metadata page in use is not dropped");
                if (page.Dirty)
                    _dirty.Remove(page);
                page.Unlogged = false;
                ForgetLogged(page);
                page.Unwritten = Unwritten.Nothing;
                page.BeginChange();
                page.Offset = MetadataPage.Nowhere;
                page.EndChange();
            }
        }
    }

    // Whoever changes a page comes by here, so that no change can miss its record.
    private void NoteUnlogged(MetadataPage page)
    {
        if (page.Logged is null)
        {
            page.Logged = _spareImages.TryPop(out byte[]? spare) ? spare : new byte[PageSize];
            page.Bytes.CopyTo(page.Logged);
        }

        if (page.Unlogged)
            return;
        page.Unlogged = true;
        _unlogged.Add(page);
    }

    private void ForgetLogged(MetadataPage page)
    {
        if (page.Logged is null || page.Unlogged)
            return;
        _spareImages.Push(page.Logged);
        page.Logged = null;
    }

    private static MetadataPage? Find(Set set, long offset)
    {
        foreach (MetadataPage? page in Volatile.Read(ref set.Pages))
        {
            if (page is not null && page.Offset == offset)
                return page;
        }

        return null;
    }

    private MetadataPage Load(Set set, long offset, bool pin)
    {
        MetadataPage page;
        lock (set.Lock)
        {
            while (true)
            {
                MetadataPage? present = Find(set, offset);
                if (present is null)
                    break;
                if (present.Loading)
                {
                    Monitor.Wait(set.Lock);
                    continue;
                }

                present.RecentlyUsed = true;
                if (pin)
                    present.Pins++;
                return present;
            }

            page = set.Victim(PageSize);
            page.BeginChange();
            page.Offset = offset;
            page.Loading = true;
            page.RecentlyUsed = true;
            page.Pins = pin ? 1 : 0;
        }

        Interlocked.Increment(ref _misses);
        bool loaded = false;
        try
        {
            _file.Read(offset, page.Bytes);
            loaded = true;
        }
        finally
        {
            lock (set.Lock)
            {
                if (!loaded)
                {
                    page.Offset = MetadataPage.Nowhere;
                    page.Pins = 0;
                }

                page.Loading = false;
                page.EndChange();
                Monitor.PulseAll(set.Lock);
            }
        }

        return page;
    }

    private Set SetOf(long offset)
    {
        ulong hash = unchecked((ulong)(offset >> _pageBits) * 0x9E3779B97F4A7C15UL);
        return _sets[(int)((hash >> 40) & (ulong)(_sets.Length - 1))];
    }

    private sealed class Set(int ways)
    {
        /// <summary>Replaced as a whole when it grows, so that readers need no lock.</summary>
        public MetadataPage?[] Pages = new MetadataPage?[ways];

        private int _hand;

        // A plain object: waiters for a page that is being loaded use Monitor.Wait on it.
        public object Lock { get; } = new();

        /// <summary>A page that may be given to another offset: an unused one, else the first that was not used since the hand
        /// last passed, else a new one in a larger set. Call under the lock.</summary>
        public MetadataPage Victim(int pageSize)
        {
            for (int i = 0; i < Pages.Length; i++)
            {
                if (Pages[i] is null)
                    return Pages[i] = new MetadataPage(pageSize);
                if (Pages[i]!.Offset == MetadataPage.Nowhere && !Pages[i]!.Loading)
                    return Pages[i]!;
            }

            for (int step = 0; step < 2 * Pages.Length; step++)
            {
                _hand = (_hand + 1) % Pages.Length;
                MetadataPage page = Pages[_hand]!;
                if (page.Unwritten != Unwritten.Nothing || page.Loading || page.Pins > 0)
                    continue;
                if (!page.RecentlyUsed)
                    return page;
                page.RecentlyUsed = false;
            }

            MetadataPage extra = new(pageSize);
            Volatile.Write(ref Pages, [.. Pages, extra]);
            return extra;
        }
    }
}
