// The gate that every request on an image passes, so that the disk behind it can be exchanged.
//
// G1. Who is inside counts itself in on a stripe of its thread, looks whether the gate is held, and leaves again if it is: the one
//     who holds sets the mark first and counts afterwards, so at least one of the two sees the other.
// G2. Hold returns when everybody it keeps out is out. Who waits outside is inside nothing and holds no lock.
// G3. Passing costs two interlocked additions on a line that seldom leaves the processor; no lock, no allocation.
namespace QcowFs.FileSystem;

/// <summary>Whom a gate keeps out.</summary>
internal enum GateHold
{
    Nobody,
    /// <summary>Requests that change the disk.</summary>
    Changes,
    Everybody,
}

/// <summary>Lets requests pass, or holds them. Enter and Exit are thread-safe; one thread at a time holds and lets go.</summary>
internal sealed class RequestGate
{
    private const int Stripes = 16;
    private const int Padding = 8; // a cache line of 64 bytes for each

    private readonly long[] _inside = new long[Stripes * Padding];
    private readonly object _opened = new(); // pulsed when fewer are held
    private volatile int _hold; // GateHold

    /// <summary>Enters, when it may. Pass the result to <see cref="Exit"/>.</summary>
    public int Enter(bool changes)
    {
        while (true)
        {
            if (TryEnter(changes, out int slot)) return slot;
            lock (_opened)
                while (KeepsOut(changes)) Monitor.Wait(_opened);
        }
    }

    /// <summary>Enters where nobody has to be waited for.</summary>
    public bool TryEnter(bool changes, out int slot)
    {
        slot = (Environment.CurrentManagedThreadId & (Stripes - 1)) * Padding;
        Interlocked.Increment(ref _inside[slot]); // G1
        if (!KeepsOut(changes)) return true;
        Interlocked.Decrement(ref _inside[slot]);
        return false;
    }

    /// <summary>Enters, waiting at most so long where somebody holds.</summary>
    public bool TryEnter(TimeSpan patience, out int slot)
    {
        if (TryEnter(changes: false, out slot)) return true;
        lock (_opened)
            if (KeepsOut(changes: false)) Monitor.Wait(_opened, patience);
        return TryEnter(changes: false, out slot);
    }

    /// <summary>Leaves.</summary>
    public void Exit(int slot) => Interlocked.Decrement(ref _inside[slot]);

    /// <summary>Keeps everybody out and waits until all who were inside have left (G2).</summary>
    public void HoldEverybody()
    {
        _hold = (int)GateHold.Everybody;
        Interlocked.MemoryBarrier();
        SpinWait spin = default;
        for (int stripe = 0; stripe < Stripes; stripe++)
            while (Volatile.Read(ref _inside[stripe * Padding]) != 0) spin.SpinOnce();
    }

    /// <summary>Keeps out only these from now on, after everybody was held.</summary>
    public void LetGo(GateHold stillHeld)
    {
        lock (_opened)
        {
            _hold = (int)stillHeld;
            Monitor.PulseAll(_opened);
        }
    }

    private bool KeepsOut(bool changes) => _hold != (int)GateHold.Nobody && (changes || _hold == (int)GateHold.Everybody);
}
