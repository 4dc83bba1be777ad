// What deduplication would save, for each cluster size at once, without changing anything.
//
// Every cluster is hashed, and the distinct hashes are counted. Memory is bounded: where a size has more of them than a set holds, only
// the hashes that end in so many zero bits are kept, which is a fair sample of the distinct ones, and the count is scaled up (it is
// then within about half a percent).
using QcowFs.Native;

namespace QcowFs.Images;

/// <summary>What one cluster size would give.</summary>
/// <param name="ClusterSize">Bytes.</param>
/// <param name="Clusters">Clusters that hold anything, zeros included.</param>
/// <param name="ZeroClusters">Those that are all zeros, which take no space when written with deduplication.</param>
/// <param name="DistinctClusters">Different contents among the others.</param>
/// <param name="IsExact">Whether the distinct ones were counted or estimated.</param>
public sealed record SavingsRow(int ClusterSize, long Clusters, long ZeroClusters, long DistinctClusters, bool IsExact)
{
    /// <summary>Bytes that the clusters take each for itself.</summary>
    public long BytesNow => Clusters * ClusterSize;

    /// <summary>Bytes that they would take shared.</summary>
    public long BytesThen => DistinctClusters * ClusterSize;

    /// <summary>Bytes saved.</summary>
    public long BytesSaved => BytesNow - BytesThen;
}

/// <summary>Estimates savings over any number of images. Used by one thread. Takes about 90 MiB at most, by default.</summary>
public sealed class SavingsEstimate
{
    /// <summary>Distinct hashes that are counted exactly for a cluster size.</summary>
    public const int DefaultCapacity = 1 << 19;

    private const int SmallestBits = 12;
    private const int LargestBits = 21;
    private const int Window = 1 << LargestBits;
    private const int UnitsPerWindow = Window >> SmallestBits;

    private readonly Tally[] _tallies;
    private readonly byte[] _window = new byte[Window];
    private readonly bool[] _holds = new bool[UnitsPerWindow];

    /// <param name="capacity">Distinct hashes to count exactly, a power of two; tests make it small.</param>
    public SavingsEstimate(int capacity = DefaultCapacity) =>
        _tallies = [.. Enumerable.Range(SmallestBits, LargestBits - SmallestBits + 1).Select(bits => new Tally(1 << bits, capacity))];

    /// <summary>The result so far, one row for each cluster size from 4 KiB to 2 MiB.</summary>
    public IReadOnlyList<SavingsRow> Rows => [.. _tallies.Select(tally => tally.Row)];

    /// <summary>Adds what an image itself holds (not its backing file).</summary>
    /// <param name="image">The image.</param>
    /// <param name="progress">Told how many bytes of the disk have been looked at.</param>
    public void Add(IDiskImage image, Action<long> progress)
    {
        for (long start = 0; start < image.Length; start += Window)
        {
            int length = (int)Math.Min(Window, image.Length - start);
            if (FindHeld(image, start, length))
            {
                Array.Clear(_window, length, Window - length);
                ReadHeld(image, start, length);
                foreach (Tally tally in _tallies)
                    tally.Add(_window, _holds);
            }

            progress(start + length);
        }
    }

    /// <summary>Notes which 4 KiB of a window the image holds. False: none.</summary>
    private bool FindHeld(IDiskImage image, long start, int length)
    {
        Array.Clear(_holds);
        bool any = false;
        for (long at = start; at < start + length;)
        {
            Extent extent = image.QueryExtent(at, start + length - at);
            if (extent is { Depth: 0, Kind: ExtentKind.Data or ExtentKind.Compressed })
            {
                any = true;
                int first = (int)((at - start) >> SmallestBits);
                int last = (int)((at + extent.Length - 1 - start) >> SmallestBits);
                _holds.AsSpan(first..(last + 1)).Fill(true);
            }

            at += extent.Length;
        }

        return any;
    }

    /// <summary>Reads a window; parts that the image does not hold are of no interest where nothing near them is held.</summary>
    private void ReadHeld(IDiskImage image, long start, int length)
    {
        int firstHeld = Array.IndexOf(_holds, true) << SmallestBits;
        int endHeld = Math.Min(length, (Array.LastIndexOf(_holds, true) + 1) << SmallestBits);
        Array.Clear(_window, 0, firstHeld);
        image.Read(start + firstHeld, _window.AsSpan(firstHeld..endHeld));
        Array.Clear(_window, endHeld, Window - endHeld);
    }

    /// <summary>One cluster size.</summary>
    private sealed class Tally(int clusterSize, int capacity)
    {
        private ulong[] _slots = new ulong[1024]; // 0: free
        private int _count;
        private int _level;
        private long _clusters;
        private long _zero;

        public SavingsRow Row => new(clusterSize, _clusters, _zero, Math.Min((long)_count << _level, _clusters - _zero), _level == 0);

        public void Add(ReadOnlySpan<byte> window, ReadOnlySpan<bool> holds)
        {
            int units = clusterSize >> SmallestBits;
            for (int at = 0; at < window.Length; at += clusterSize)
            {
                if (!holds.Slice(at >> SmallestBits, units).Contains(true))
                    continue;
                _clusters++;
                ReadOnlySpan<byte> cluster = window.Slice(at, clusterSize);
                if (cluster.ContainsAnyExcept((byte)0))
                    AddHash((ulong)(XxHash.Hash128(cluster) & ulong.MaxValue));
                else
                    _zero++;
            }
        }

        private void AddHash(ulong hash)
        {
            if (hash == 0 || (hash & ((1UL << _level) - 1)) != 0 || !Insert(_slots, hash))
                return;
            if (++_count <= _slots.Length / 2)
                return;
            if (_slots.Length >= capacity * 2)
                _level++;
            Rehash(_slots.Length >= capacity * 2 ? _slots.Length : _slots.Length * 2);
        }

        private void Rehash(int length)
        {
            ulong[] old = _slots;
            _slots = new ulong[length];
            _count = 0;
            foreach (ulong hash in old)
            {
                if (hash != 0 && (hash & ((1UL << _level) - 1)) == 0 && Insert(_slots, hash))
                    _count++;
            }
        }

        private static bool Insert(ulong[] slots, ulong hash)
        {
            for (int at = (int)((hash >> 32) & (ulong)(slots.Length - 1)); ; at = (at + 1) & (slots.Length - 1))
            {
                if (slots[at] == hash)
                    return false;
                if (slots[at] != 0)
                    continue;
                slots[at] = hash;
                return true;
            }
        }
    }
}
