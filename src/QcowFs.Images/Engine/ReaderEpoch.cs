// Lets readers use host offsets without a lock while blocks are being freed (I6): a block is punched or reused only after every
// reader that may have looked it up before its removal has left.
//
// Two counters pairs, one current. A reader counts itself in on the current pair and out on the same one. Synchronize waits for
// the other pair, makes it current, and waits for the one that was: a reader that picked a pair just before the switch and counts
// itself in after it also looks up after the removal, so it cannot hold what was removed; the next call waits for it first.
namespace QcowFs.Images.Engine;

/// <summary>Grace periods for readers. Enter and Exit are thread-safe and cheap; Synchronize is called by one thread at a time.</summary>
internal sealed class ReaderEpoch
{
    private const int Stripes = 16;
    private const int Padding = 8;

    private readonly long[] _entered = new long[2 * Stripes * Padding];
    private readonly long[] _left = new long[2 * Stripes * Padding];
    private int _current;
    private volatile bool _isWaiting;

    /// <summary>Whether <see cref="Synchronize"/> waits for a reader at this moment. For tests.</summary>
    internal bool IsWaiting => _isWaiting;

    /// <summary>Begins a read. Pass the result to <see cref="Exit"/>.</summary>
    public int Enter()
    {
        int stripe = Environment.CurrentManagedThreadId & (Stripes - 1);
        int slot = ((Volatile.Read(ref _current) * Stripes) + stripe) * Padding;
        Interlocked.Increment(ref _entered[slot]);
        return slot;
    }

    /// <summary>Ends a read.</summary>
    public void Exit(int slot) => Interlocked.Increment(ref _left[slot]);

    /// <summary>Returns when every read that began before the call has ended.</summary>
    public void Synchronize()
    {
        int current = _current;
        WaitFor(1 - current);
        Volatile.Write(ref _current, 1 - current);
        Interlocked.MemoryBarrier();
        WaitFor(current);
    }

    private void WaitFor(int pair)
    {
        SpinWait spin = default;
        while (Sum(_left, pair) != Sum(_entered, pair))
        {
            _isWaiting = true;
            spin.SpinOnce();
        }

        _isWaiting = false;
    }

    // The departures are summed first: a reader seen leaving was seen entering as well.
    private static long Sum(long[] counters, int pair)
    {
        long sum = 0;
        for (int stripe = 0; stripe < Stripes; stripe++)
            sum += Volatile.Read(ref counters[((pair * Stripes) + stripe) * Padding]);
        return sum;
    }
}
