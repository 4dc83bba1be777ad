// Committed pages of metadata that are not in their place in the file yet: what a replay would write, kept in memory.
namespace QcowFs.Images.Qcow2.Journal;

/// <summary>Pages by their offset in the file. Not thread-safe.</summary>
/// <param name="pageSize">Bytes of a page, a power of two.</param>
internal sealed class PagePatches(int pageSize)
{
    private readonly Dictionary<long, byte[]> _pages = [];

    public int Count => _pages.Count;

    /// <summary>Bytes that the pages take.</summary>
    public long Bytes => (long)_pages.Count * pageSize;

    /// <summary>The offsets of all pages, in the order of the file.</summary>
    public long[] Offsets
    {
        get
        {
            long[] offsets = [.. _pages.Keys];
            Array.Sort(offsets);
            return offsets;
        }
    }

    /// <summary>A page's content, or null where there is none.</summary>
    public byte[]? Find(long offset) => _pages.GetValueOrDefault(offset);

    /// <summary>Replaces part of a page, or all of it.</summary>
    /// <param name="offset">Where the bytes go; they lie on one page.</param>
    /// <param name="bytes">The new bytes.</param>
    /// <param name="read">Reads the page as it is without this patch, where only part of it is replaced.</param>
    public void Put(long offset, ReadOnlySpan<byte> bytes, PageReader read)
    {
        long start = offset & -pageSize;
        if (!_pages.TryGetValue(start, out byte[]? page))
        {
            page = new byte[pageSize];
            if (bytes.Length < pageSize)
                read(start, page);
            _pages.Add(start, page);
        }

        bytes.CopyTo(page.AsSpan((int)(offset - start)));
    }

    /// <summary>Replaces a range of any length.</summary>
    public void PutRange(long offset, ReadOnlySpan<byte> bytes, PageReader read)
    {
        while (bytes.Length > 0)
        {
            int piece = (int)Math.Min(bytes.Length, (offset & -pageSize) + pageSize - offset);
            Put(offset, bytes[..piece], read);
            offset += piece;
            bytes = bytes[piece..];
        }
    }

    /// <summary>Forgets the pages of a range of whole pages. Whether there were any.</summary>
    public bool Drop(long offset, long length)
    {
        int before = _pages.Count;
        if (length / pageSize <= _pages.Count)
        {
            for (long at = offset & -pageSize; at < offset + length; at += pageSize)
                _pages.Remove(at);
        }
        else
        {
            foreach (long page in _pages.Keys)
            {
                if (page + pageSize > offset && page < offset + length)
                    _pages.Remove(page);
            }
        }

        return _pages.Count < before;
    }

    public void Clear() => _pages.Clear();

    /// <summary>Lays the pages over what was read from the file.</summary>
    public void CopyOver(long offset, Span<byte> destination)
    {
        if (_pages.Count == 0)
            return;
        for (long page = offset & -pageSize; page < offset + destination.Length; page += pageSize)
        {
            if (!_pages.TryGetValue(page, out byte[]? content))
                continue;
            int skip = (int)Math.Max(0, offset - page);
            int at = (int)Math.Max(0, page - offset);
            content.AsSpan(skip, Math.Min(pageSize - skip, destination.Length - at)).CopyTo(destination[at..]);
        }
    }
}

/// <summary>Reads a whole page.</summary>
internal delegate void PageReader(long offset, Span<byte> page);
