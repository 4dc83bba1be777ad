// The counts of one window of host clusters. Checking an image of any size takes the memory of one window.
//
// Nearly every count is 0 or 1, so each has a byte; the few that grow beyond it move to a second array that exists only then.
namespace QcowFs.Images.Qcow2;

/// <summary>How often each cluster of a window is referred to. Counts stop at <see cref="uint.MaxValue"/>.</summary>
internal sealed class ReferenceWindow(int capacity)
{
    /// <summary>The value in <see cref="Small"/> of a count that is this or more.</summary>
    public const byte Many = byte.MaxValue;

    private readonly byte[] _small = new byte[capacity];
    private uint[]? _large;

    /// <summary>The first cluster of the window.</summary>
    public long First { get; private set; }

    /// <summary>The most clusters that fit.</summary>
    public int Capacity => _small.Length;

    /// <summary>Clusters in the window.</summary>
    public int Count { get; private set; }

    /// <summary>One past the last cluster of the window.</summary>
    public long End => First + Count;

    /// <summary>The lowest cluster behind the window that was referred to: where a next window may start.</summary>
    public long NextReferenced { get; private set; } = long.MaxValue;

    /// <summary>The counts below <see cref="Many"/>, from <see cref="First"/> on.</summary>
    public ReadOnlySpan<byte> Small => _small.AsSpan(0, Count);

    public bool Contains(long cluster) => cluster >= First && cluster < End;

    public uint this[long cluster]
    {
        get
        {
            int index = (int)(cluster - First);
            return _small[index] < Many ? _small[index] : _large![index];
        }
    }

    /// <summary>Moves the window, all counts zero.</summary>
    public void Reset(long first, long end)
    {
        // What was never counted in is zero, and its memory not even there.
        Array.Clear(_small, 0, Count);
        _large = null;
        First = first;
        Count = (int)Math.Min(end - first, _small.Length);
        NextReferenced = long.MaxValue;
    }

    /// <summary>Adds <paramref name="weight"/> references to each cluster from <paramref name="first"/> to
    /// <paramref name="last"/>.</summary>
    public void Add(long first, long last, long weight)
    {
        if (last >= End)
            NextReferenced = Math.Min(NextReferenced, Math.Max(first, End));
        long stop = Math.Min(last, End - 1);
        for (long cluster = Math.Max(first, First); cluster <= stop; cluster++)
            AddOne((int)(cluster - First), weight);
    }

    /// <summary>Adds a reference to each cluster that an entry of a table names.</summary>
    /// <param name="entries">The entries as they are stored; each has a host cluster and is not compressed.</param>
    /// <param name="clusterBits">The cluster size.</param>
    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.AggressiveOptimization)]
    public void AddEntries(ReadOnlySpan<ulong> entries, int clusterBits)
    {
        Span<byte> small = _small.AsSpan(0, Count);
        foreach (ulong stored in entries)
        {
            long cluster = L2Entry.ClusterOf(stored, clusterBits);
            ulong index = unchecked((ulong)(cluster - First));
            if (index < (ulong)small.Length && small[(int)index] < Many - 1)
                small[(int)index] = unchecked((byte)(small[(int)index] + 1));
            else
                Add(cluster, cluster, 1);
        }
    }

    private void AddOne(int index, long weight)
    {
        long sum = _small[index] + weight;
        if (_small[index] < Many && sum < Many)
        {
            _small[index] = (byte)sum;
            return;
        }

        _large ??= new uint[_small.Length];
        long old = _small[index] < Many ? _small[index] : _large[index];
        _large[index] = (uint)Math.Min(old + Math.Min(weight, uint.MaxValue), uint.MaxValue);
        _small[index] = Many;
    }
}
