// Bytes in pages that copies share until one of them writes: a crash test makes thousands of copies of a disk, each a little different.
using QcowFs.Native;

namespace QcowFs.Testing;

/// <summary>A growing array of bytes, zero where nothing was written, whose copies cost a list of references. Guarded by its owner's lock;
/// pages that several copies share are never changed.</summary>
internal sealed class PagedBytes
{
    private const int PageSize = 4096;

    private static readonly Page Zeros = new(new byte[PageSize], new object());

    private Page?[] _pages; // null: zeros
    private object _owner = new(); // of the pages that only this copy has; another one after each copy

    public PagedBytes()
        : this([])
    {
    }

    private PagedBytes(Page?[] pages) => _pages = pages;

    /// <summary>An independent copy.</summary>
    public PagedBytes Clone()
    {
        _owner = new();
        return new PagedBytes((Page?[])_pages.Clone());
    }

    /// <summary>The bytes from <paramref name="offset"/> on.</summary>
    public void Read(long offset, Span<byte> destination)
    {
        while (!destination.IsEmpty)
        {
            int index = (int)(offset / PageSize), at = (int)(offset % PageSize);
            int count = Math.Min(destination.Length, PageSize - at);
            if (index < _pages.Length && _pages[index] is { } page)
                page.Bytes.AsSpan(at, count).CopyTo(destination);
            else
                destination[..count].Clear();
            destination = destination[count..];
            offset += count;
        }
    }

    /// <summary>The same as an array.</summary>
    public byte[] ToArray(long offset, long length)
    {
        byte[] bytes = GC.AllocateUninitializedArray<byte>((int)length);
        Read(offset, bytes);
        return bytes;
    }

    /// <summary>Replaces bytes from <paramref name="offset"/> on.</summary>
    public void Write(long offset, ReadOnlySpan<byte> source)
    {
        while (!source.IsEmpty)
        {
            int at = (int)(offset % PageSize);
            int count = Math.Min(source.Length, PageSize - at);
            source[..count].CopyTo(Own((int)(offset / PageSize)).AsSpan(at));
            source = source[count..];
            offset += count;
        }
    }

    /// <summary>Makes bytes zero.</summary>
    public void Clear(long offset, long end)
    {
        while (offset < end)
        {
            int index = (int)(offset / PageSize), at = (int)(offset % PageSize);
            int count = (int)Math.Min(end - offset, PageSize - at);
            if (index >= _pages.Length)
                return;
            if (count == PageSize)
                _pages[index] = null;
            else if (_pages[index] is not null)
                Own(index).AsSpan(at, count).Clear();
            offset += count;
        }
    }

    /// <summary>A hash of the first <paramref name="length"/> bytes, past which all are zero.</summary>
    public UInt128 Hash(long length, ulong seed)
    {
        int count = (int)((length + PageSize - 1) / PageSize);
        UInt128[] hashes = new UInt128[count];
        for (int i = 0; i < count; i++)
            hashes[i] = ((i < _pages.Length ? _pages[i] : null) ?? Zeros).Hash();
        return XxHash.Hash128(System.Runtime.InteropServices.MemoryMarshal.AsBytes(hashes.AsSpan()), seed);
    }

    private byte[] Own(int index)
    {
        if (index >= _pages.Length)
            Array.Resize(ref _pages, Math.Max(index + 1, _pages.Length + (_pages.Length / 4)));
        Page? page = _pages[index];
        if (page is null || page.Owner != _owner)
            _pages[index] = page = new Page(page is null ? new byte[PageSize] : (byte[])page.Bytes.Clone(), _owner);
        page.Changed();
        return page.Bytes;
    }

    private sealed class Page(byte[] bytes, object owner)
    {
        private object? _hash; // boxed, so that copies in several threads may each find it out

        public byte[] Bytes => bytes;

        public object Owner => owner;

        public void Changed() => _hash = null;

        public UInt128 Hash()
        {
            object hash = _hash ??= XxHash.Hash128(bytes, 0);
            return (UInt128)hash;
        }
    }
}
