// The allocation bitmap in memory: pages of it, read when they are asked for and kept in the metadata cache.
//   P1. A lookup takes no lock when its page is cached: it reads bits between two looks at the page's sequence.
//   P2. Bits change under the cache's gate with their pages pinned, so a change of a range is in one commit as a whole.
//   P3. A bit is only ever set; what looks at the bitmap in passing (the scan for the first gap) need not look again.
using System.Buffers.Binary;
using System.Numerics;
using QcowFs.Images.Metadata;
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

/// <summary>The bits of one disk. Thread-safe.</summary>
internal sealed class AddCowBitmap(IStorage file, AddCowGeometry geometry, long cacheSize)
{
    private const int PageSize = 4096;
    private const int PageClusters = PageSize * 8;

    /// <summary>Like clusters one after the other.</summary>
    public readonly record struct Run(bool IsAllocated, long Count);

    public MetadataCache Cache { get; } = new(file, PageSize, cacheSize);

    public AddCowGeometry Geometry => geometry;

    /// <summary>What the cluster is, and how many after it are the same: as far as <paramref name="count"/> and one page go.</summary>
    public Run FindRun(long cluster, long count)
    {
        long pageOffset = PageOf(cluster);
        int first = (int)(cluster % PageClusters);
        int end = (int)Math.Min(first + count, PageClusters);
        while (true)
        {
            MetadataPage page = Cache.Get(pageOffset);
            int sequence = page.Sequence;
            if ((sequence & 1) == 0 && page.Offset == pageOffset)
            {
                int runEnd = EndOfRun(page.Bytes, first, end, out bool isSet);
                Volatile.ReadBarrier();
                if (page.Sequence == sequence)
                    return new Run(isSet, runEnd - first);
            }

            Thread.SpinWait(8);
        }
    }

    /// <summary>Sets the bits of a range. Bits that are set already make nothing dirty.</summary>
    public void Set(long first, long count)
    {
        long end = first + count;
        using PinnedPages pins = new(Cache);
        for (long cluster = first - (first % PageClusters); cluster < end; cluster += PageClusters)
            pins.Add(PageOf(cluster));
        lock (Cache.Gate)
        {
            long cluster = first;
            for (int i = 0; i < pins.Count; i++)
            {
                int from = (int)(cluster % PageClusters);
                int to = (int)Math.Min(from + (end - cluster), PageClusters);
                SetOnPage(pins[i], from, to);
                cluster += to - from;
            }
        }
    }

    /// <summary>Clusters whose bit is set. Reads the whole bitmap.</summary>
    public long CountAllocated()
    {
        long allocated = 0;
        for (long cluster = 0; cluster < geometry.Clusters;)
        {
            Run run = FindRun(cluster, geometry.Clusters - cluster);
            allocated += run.IsAllocated ? run.Count : 0;
            cluster += run.Count;
        }

        return allocated;
    }

    private void SetOnPage(MetadataPage page, int from, int to)
    {
        if (EndOfRun(page.Bytes, from, to, out bool isSet) == to && isSet)
            return;
        Cache.BeginChange(page, CommitStage.Links);
        Span<byte> bits = page.Bytes;
        for (int bit = from; bit < to; bit++)
            bits[bit >> 3] |= (byte)(1 << (bit & 7));
        page.EndChange();
    }

    // A word at a time; the lowest bit of the lowest byte comes first.
    private static int EndOfRun(ReadOnlySpan<byte> bits, int first, int end, out bool isSet)
    {
        isSet = ((bits[first >> 3] >> (first & 7)) & 1) != 0;
        for (int at = first; at < end; at = (at | 63) + 1)
        {
            ulong word = BinaryPrimitives.ReadUInt64LittleEndian(bits[(at >> 6 << 3)..]);
            ulong other = (isSet ? ~word : word) >> (at & 63);
            if (other != 0)
                return Math.Min(end, at + BitOperations.TrailingZeroCount(other));
        }

        return end;
    }

    // In the layout of March 2012 pages do not lie at multiples of their size; the cache asks only that they do not overlap.
    private long PageOf(long cluster) => geometry.Header.BitmapOffset + (cluster / PageClusters * PageSize);
}
