// Locks on ranges of an address space, held across I/O. Direct I/O locks bytes, the copy-on-write engine guest blocks.
// In direct I/O it keeps a read-modify-write of whole blocks apart from everything else that changes the same blocks. Without it, direct I/O would
// lose bytes: the block read before a neighbour's write and written back after it takes the neighbour's bytes back in time.
using System.Runtime.InteropServices;

namespace QcowFs.Storage;

/// <summary>
/// Locks on byte ranges: shared ones pass each other, an exclusive one waits for all that overlap it and keeps them out. The list
/// is as long as there are threads at work, so it is searched linearly. Not fair, not recursive. Allocates nothing in steady use.
/// </summary>
public sealed class RangeGate
{
    private readonly object _lock = new(); // guards _held; a Monitor because it is waited on
    private readonly List<Range> _held = [];

    /// <summary>Waits until the range [start, end) is free for this use, and holds it until the ticket is disposed.</summary>
    public Ticket Enter(long start, long end, bool exclusive)
    {
        var range = new Range(start, end, exclusive);
        lock (_lock)
        {
            while (Conflicts(range))
                Monitor.Wait(_lock);
            _held.Add(range);
        }
        return new Ticket(this, range);
    }

    /// <summary>Holds the range if it is free for this use now. Never waits, so it may be called with another range held.</summary>
    public bool TryEnter(long start, long end, bool exclusive, out Ticket ticket)
    {
        var range = new Range(start, end, exclusive);
        lock (_lock)
        {
            if (Conflicts(range))
            {
                ticket = default;
                return false;
            }

            _held.Add(range);
        }

        ticket = new Ticket(this, range);
        return true;
    }

    private bool Conflicts(in Range wanted)
    {
        foreach (ref readonly Range held in CollectionsMarshal.AsSpan(_held))
        {
            if (held.Start < wanted.End && wanted.Start < held.End && (held.Exclusive || wanted.Exclusive))
                return true;
        }
        return false;
    }

    // Equal ranges are interchangeable, so removing the first equal one is right.
    private void Leave(in Range range)
    {
        lock (_lock)
        {
            _held.Remove(range);
            Monitor.PulseAll(_lock);
        }
    }

    /// <summary>A held range; the default value holds nothing.</summary>
    public readonly struct Ticket : IDisposable
    {
        private readonly RangeGate? _gate;
        private readonly Range _range;

        internal Ticket(RangeGate gate, Range range)
        {
            _gate = gate;
            _range = range;
        }

        /// <summary>Releases the range.</summary>
        public void Dispose() => _gate?.Leave(_range);
    }

    internal readonly record struct Range(long Start, long End, bool Exclusive);
}
