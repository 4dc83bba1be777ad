// What the served file system saw, for the tests to compare with what they did.
namespace QcowFs.Fuse.TestServer;

/// <summary>Counters, sent to the test as one line of JSON. Fields are changed by Interlocked only.</summary>
internal sealed class ServerStatistics
{
    public long Lookups;
    public long Forgotten;
    public long References;
    public long Opens;
    public long Releases;
    public long Reads;
    public long Writes;
    public long LargestRead;
    public long LargestWrite;
    public long MisalignedBuffers;
    public long ConcurrentWrites;
    public long MostConcurrentWrites;
    public long ConcurrentReads;
    public long MostConcurrentReads;
    public long DurableWrites;
    public long Syncs;
    public long DataSyncs;
    public long Flushes;
    public long TruncationsWithoutHandle;
    public long Faults;
    public long DirectoryReadsPlus;

    /// <summary>Raises <paramref name="maximum"/> to <paramref name="value"/> where that is larger.</summary>
    public static void Raise(ref long maximum, long value)
    {
        long seen = Interlocked.Read(ref maximum);
        while (value > seen)
        {
            long previous = Interlocked.CompareExchange(ref maximum, value, seen);
            if (previous == seen) return;
            seen = previous;
        }
    }
}
