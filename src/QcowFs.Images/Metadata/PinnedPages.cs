// The pages that one change needs, pinned before it takes the gate, so that nothing can fail once it has begun.
namespace QcowFs.Images.Metadata;

/// <summary>A set of pinned pages. Not thread-safe; dispose it without the gate.</summary>
internal sealed class PinnedPages(MetadataCache cache) : IDisposable
{
    private readonly List<MetadataPage> _pages = [];

    /// <summary>How many pages are pinned.</summary>
    public int Count => _pages.Count;

    /// <summary>A page, in the order in which it was pinned.</summary>
    public MetadataPage this[int index] => _pages[index];

    /// <summary>Pins the page at a host offset that is a multiple of the page size.</summary>
    public MetadataPage Add(long offset)
    {
        MetadataPage page = cache.Pin(offset);
        _pages.Add(page);
        return page;
    }

    /// <summary>Pins the consecutive pages from the one that holds <paramref name="offset"/> to the one that holds the byte
    /// <paramref name="distance"/> further on.</summary>
    public void AddRange(long offset, long distance)
    {
        long last = (offset + distance) & -cache.PageSize;
        for (long at = offset & -cache.PageSize; at <= last; at += cache.PageSize)
            Add(at);
    }

    public void Dispose()
    {
        foreach (MetadataPage page in _pages)
            cache.Unpin(page);
        _pages.Clear();
    }
}
