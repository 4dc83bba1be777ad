// The counts of one window of host clusters. Checking an image of any size takes the memory of one window.
namespace QcowFs.Images.Qcow2;

/// <summary>How often each cluster of a window is referred to. Counts stop at <see cref="uint.MaxValue"/>.</summary>
internal sealed class ReferenceWindow(int capacity)
{
    private readonly uint[] _counts = new uint[capacity];

    /// <summary>The first cluster of the window.</summary>
    public long First { get; private set; }

    /// <summary>The most clusters that fit.</summary>
    public int Capacity => _counts.Length;

    /// <summary>Clusters in the window.</summary>
    public int Count { get; private set; }

    /// <summary>One past the last cluster of the window.</summary>
    public long End => First + Count;

    /// <summary>The lowest cluster behind the window that was referred to: where a next window may start.</summary>
    public long NextReferenced { get; private set; } = long.MaxValue;

    /// <summary>The counts, from <see cref="First"/> on.</summary>
    public ReadOnlySpan<uint> Counts => _counts.AsSpan(0, Count);

    public bool Contains(long cluster) => cluster >= First && cluster < End;

    public uint this[long cluster] => _counts[cluster - First];

    /// <summary>Moves the window, all counts zero.</summary>
    public void Reset(long first, long end)
    {
        First = first;
        Count = (int)Math.Min(end - first, _counts.Length);
        NextReferenced = long.MaxValue;
        Array.Clear(_counts, 0, Count);
    }

    /// <summary>Adds <paramref name="weight"/> references to each cluster from <paramref name="first"/> to
    /// <paramref name="last"/>.</summary>
    public void Add(long first, long last, long weight)
    {
        if (last >= End)
            NextReferenced = Math.Min(NextReferenced, Math.Max(first, End));
        long stop = Math.Min(last, End - 1);
        for (long cluster = Math.Max(first, First); cluster <= stop; cluster++)
        {
            ref uint count = ref _counts[cluster - First];
            count = weight > uint.MaxValue - count ? uint.MaxValue : count + (uint)weight;
        }
    }
}
