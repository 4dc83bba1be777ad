// Locks ranges of guest blocks: shared by those who overwrite in place, exclusive for those who change the mapping.
//
// A request locks its whole range at once and holds at most one range, so no lock order arises between ranges. The table of held
// ranges is scanned: there are as many as threads in the engine, which is few.
namespace QcowFs.Images.Engine;

/// <summary>A lock on ranges of block numbers. Thread-safe; held across I/O.</summary>
internal sealed class RangeLock
{
    private readonly object _gate = new();
    private Held[] _held = new Held[16];
    private int _waiters;

    /// <summary>Locks blocks <paramref name="first"/> to <paramref name="last"/>, both included; waits for conflicting holders.</summary>
    /// <returns>A token for <see cref="Exit"/>.</returns>
    public int Enter(long first, long last, bool exclusive)
    {
        lock (_gate)
        {
            int token;
            while ((token = TryEnter(first, last, exclusive)) < 0)
            {
                _waiters++;
                Monitor.Wait(_gate);
                _waiters--;
            }

            return token;
        }
    }

    /// <summary>Releases a range.</summary>
    public void Exit(int token)
    {
        lock (_gate)
        {
            _held[token].State = 0;
            if (_waiters > 0)
                Monitor.PulseAll(_gate);
        }
    }

    private int TryEnter(long first, long last, bool exclusive)
    {
        int free = -1;
        for (int i = 0; i < _held.Length; i++)
        {
            ref Held held = ref _held[i];
            if (held.State == 0)
            {
                if (free < 0)
                    free = i;
                continue;
            }

            if (held.First <= last && first <= held.Last && (exclusive || held.State == Exclusive))
                return -1;
        }

        if (free < 0)
        {
            free = _held.Length;
            Array.Resize(ref _held, _held.Length * 2);
        }

        _held[free] = new Held { First = first, Last = last, State = exclusive ? Exclusive : Shared };
        return free;
    }

    private const byte Shared = 1;
    private const byte Exclusive = 2;

    private struct Held
    {
        public long First;
        public long Last;
        public byte State;
    }
}
