// What a replay of the log comes to: for each place in the file that it changes, the last content, be it zeros or a page that lies in
// the log. Pages stay in the log and are fetched from there, so that memory is bounded by their number and not by their size.
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>One change that an entry makes.</summary>
/// <param name="Start">First byte of the file that it changes.</param>
/// <param name="End">One past the last.</param>
/// <param name="DataAt">Where in the file its data sector is, or -1 for zeros.</param>
/// <param name="Leading">What the data sector's first 8 bytes replace.</param>
/// <param name="Trailing">What its last 4 bytes replace.</param>
internal readonly record struct LogOperation(long Start, long End, long DataAt, ulong Leading, uint Trailing);

/// <summary>The entries from the newest one's tail to the newest one, as their outcome. Immutable.</summary>
internal sealed class ActiveLog
{
    private readonly List<LogOperation> _operations;
    private readonly List<Segment> _segments;

    /// <param name="operations">The changes in the order in which they were logged.</param>
    /// <param name="entryCount">How many entries made them.</param>
    /// <param name="fileLength">The least length of the file after the replay.</param>
    public ActiveLog(List<LogOperation> operations, int entryCount, long fileLength)
    {
        _operations = operations;
        _segments = Resolve(operations);
        EntryCount = entryCount;
        FileLength = fileLength;
    }

    public int EntryCount { get; }

    /// <summary>The least length of the file after the replay, in bytes.</summary>
    public long FileLength { get; }

    /// <summary>Pieces of the file that the replay changes, in order of their place, none overlapping another.</summary>
    public IReadOnlyList<Segment> Segments => _segments;

    /// <summary>In words for a person.</summary>
    public string Summary
    {
        get
        {
            long bytes = _segments.Sum(segment => segment.End - segment.Start);
            return $"{EntryCount} log {(EntryCount == 1 ? "entry" : "entries")} with {bytes} bytes of metadata";
        }
    }

    /// <summary>The first segment that ends past an offset, or their number.</summary>
    public int FindSegment(long offset)
    {
        int low = 0;
        int high = _segments.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_segments[middle].End > offset)
                high = middle;
            else
                low = middle + 1;
        }

        return low;
    }

    /// <summary>Reads the content of a page that the replay writes.</summary>
    public void ReadPage(IStorage file, in Segment segment, Span<byte> page)
    {
        LogOperation operation = _operations[segment.Operation];
        file.Read(operation.DataAt, page);
        LogDataSector.Restore(page, operation.Leading, operation.Trailing);
    }

    public bool IsZero(in Segment segment) => _operations[segment.Operation].DataAt < 0;

    // A sweep over all starts and ends: of the operations that cover a place the last one wins.
    private static List<Segment> Resolve(List<LogOperation> operations)
    {
        int[] byStart = [.. Enumerable.Range(0, operations.Count).OrderBy(i => operations[i].Start)];
        long[] bounds = [.. operations.SelectMany(o => new[] { o.Start, o.End }).Distinct().Order()];
        PriorityQueue<int, int> active = new(); // the latest first
        List<Segment> segments = [];
        int next = 0;
        for (int i = 0; i + 1 < bounds.Length; i++)
        {
            for (; next < byStart.Length && operations[byStart[next]].Start == bounds[i]; next++)
                active.Enqueue(byStart[next], -byStart[next]);
            while (active.Count > 0 && operations[active.Peek()].End <= bounds[i])
                active.Dequeue();
            if (active.Count == 0)
                continue;
            int winner = active.Peek();
            if (segments.Count > 0 && segments[^1].Operation == winner && segments[^1].End == bounds[i])
                segments[^1] = segments[^1] with { End = bounds[i + 1] };
            else
                segments.Add(new Segment(bounds[i], bounds[i + 1], winner));
        }

        return segments;
    }

    /// <summary>A piece of the file with one outcome: zeros, or one page.</summary>
    internal readonly record struct Segment(long Start, long End, int Operation);
}
