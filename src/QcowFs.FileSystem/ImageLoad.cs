// What is asked of an image and how long the answers take: counts in powers of two of microseconds, for stats.json.
using System.Numerics;

namespace QcowFs.FileSystem;

/// <summary>Kinds of requests that are counted.</summary>
internal enum LoadKind
{
    Read,
    Write,
    Discard,
    Sync,
}

/// <summary>Counts requests by kind and duration. Thread-safe; adding takes no lock and allocates nothing.</summary>
internal sealed class ImageLoad
{
    /// <summary>Durations below 1, 2, 4, ... microseconds; the last takes all that are longer.</summary>
    public const int Buckets = 24;

    public static readonly LoadKind[] Kinds = Enum.GetValues<LoadKind>();

    private const int Stripes = 8;
    private const int StripeSize = 4 * Buckets;

    private readonly long[] _counts = new long[Stripes * StripeSize];

    public void Add(LoadKind kind, TimeSpan duration)
    {
        int bucket = Math.Min(Buckets - 1, BitOperations.Log2((ulong)Math.Max(duration.Ticks / TimeSpan.TicksPerMicrosecond, 0) << 1 | 1));
        int stripe = Environment.CurrentManagedThreadId & (Stripes - 1);
        Interlocked.Increment(ref _counts[(stripe * StripeSize) + ((int)kind * Buckets) + bucket]);
    }

    /// <summary>Requests of a kind in each bucket.</summary>
    public long[] Histogram(LoadKind kind)
    {
        long[] sums = new long[Buckets];
        for (int stripe = 0; stripe < Stripes; stripe++)
            for (int bucket = 0; bucket < Buckets; bucket++)
                sums[bucket] += Interlocked.Read(ref _counts[(stripe * StripeSize) + ((int)kind * Buckets) + bucket]);
        return sums;
    }
}
