// Locks on ranges of an address space, held across I/O. Direct I/O locks bytes, the copy-on-write engine guest blocks.
// In direct I/O it keeps a read-modify-write of whole blocks apart from everything else that changes the same blocks. Without it, direct I/O would
// lose bytes: the block read before a neighbour's write and written back after it takes the neighbour's bytes back in time.
//
// Most ranges are shared, and meet no exclusive one: those are kept in stripes, one for the threads of a number, so that writers on
// different processors touch nothing in common.
//   R1. A shared range enters its stripe, and looks under the stripe's lock whether anybody wants or holds an exclusive one; if so it goes the
//       common way. Who wants an exclusive range says so first, and then looks into every stripe under its lock: of two that meet there, the
//       second sees the first.
//   R2. Who leaves a stripe looks, after it has left and under the same lock, whether anybody wants an exclusive range, and wakes whoever does.
using System.Runtime.InteropServices;

namespace QcowFs.Storage;

/// <summary>
/// Locks on byte ranges: shared ones pass each other, an exclusive one waits for all that overlap it and keeps them out. The lists
/// are as long as there are threads at work, so they are searched linearly. Not fair, not recursive. Allocates nothing in steady use.
/// </summary>
public sealed class RangeGate
{
    private const int StripeCount = 16;
    private const int NoStripe = -1;

    private readonly object _lock = new(); // guards _held; a Monitor because it is waited on; taken before a stripe's lock
    private readonly List<Range> _held = [];
    private readonly Stripe[] _stripes = [.. Enumerable.Range(0, StripeCount).Select(_ => new Stripe())];
    private int _exclusives; // wanted or held; changed under _lock

    /// <summary>Waits until the range [start, end) is free for this use, and holds it until the ticket is disposed.</summary>
    public Ticket Enter(long start, long end, bool exclusive)
    {
        var range = new Range(start, end, exclusive);
        if (!exclusive && TryEnterStripe(range, out int stripe))
            return new Ticket(this, range, stripe);
        lock (_lock)
        {
            if (exclusive)
                Volatile.Write(ref _exclusives, _exclusives + 1); // R1
            while (Conflicts(range))
                Monitor.Wait(_lock);
            _held.Add(range);
        }
        return new Ticket(this, range, NoStripe);
    }

    /// <summary>Holds the range if it is free for this use now. Never waits, so it may be called with another range held.</summary>
    public bool TryEnter(long start, long end, bool exclusive, out Ticket ticket)
    {
        var range = new Range(start, end, exclusive);
        ticket = default;
        if (!exclusive && TryEnterStripe(range, out int stripe))
        {
            ticket = new Ticket(this, range, stripe);
            return true;
        }

        lock (_lock)
        {
            if (exclusive)
                Volatile.Write(ref _exclusives, _exclusives + 1); // R1
            if (Conflicts(range))
            {
                if (exclusive)
                    Volatile.Write(ref _exclusives, _exclusives - 1);
                return false;
            }

            _held.Add(range);
        }

        ticket = new Ticket(this, range, NoStripe);
        return true;
    }

    private bool TryEnterStripe(in Range range, out int number)
    {
        number = Environment.CurrentManagedThreadId & (StripeCount - 1);
        Stripe stripe = _stripes[number];
        lock (stripe)
        {
            if (Volatile.Read(ref _exclusives) > 0) // R1
                return false;
            stripe.Held.Add(range);
            return true;
        }
    }

    // Call under _lock. What is in stripes is shared, so only an exclusive range minds it.
    private bool Conflicts(in Range wanted)
    {
        if (Conflicts(wanted, _held))
            return true;
        if (!wanted.Exclusive)
            return false;
        foreach (Stripe stripe in _stripes)
        {
            lock (stripe)
            {
                if (Conflicts(wanted, stripe.Held))
                    return true;
            }
        }

        return false;
    }

    private static bool Conflicts(in Range wanted, List<Range> others)
    {
        foreach (ref readonly Range held in CollectionsMarshal.AsSpan(others))
        {
            if (held.Start < wanted.End && wanted.Start < held.End && (held.Exclusive || wanted.Exclusive))
                return true;
        }
        return false;
    }

    // Equal ranges are interchangeable, so removing the first equal one is right.
    private void Leave(in Range range, int number)
    {
        if (number == NoStripe)
        {
            lock (_lock)
            {
                _held.Remove(range);
                if (range.Exclusive)
                    Volatile.Write(ref _exclusives, _exclusives - 1);
                Monitor.PulseAll(_lock);
            }
            return;
        }

        Stripe stripe = _stripes[number];
        bool isAwaited;
        lock (stripe)
        {
            stripe.Held.Remove(range);
            isAwaited = Volatile.Read(ref _exclusives) > 0; // R2
        }
        if (!isAwaited)
            return;
        lock (_lock)
            Monitor.PulseAll(_lock);
    }

    /// <summary>A held range; the default value holds nothing.</summary>
    public readonly struct Ticket : IDisposable
    {
        private readonly RangeGate? _gate;
        private readonly Range _range;
        private readonly int _stripe;

        internal Ticket(RangeGate gate, Range range, int stripe)
        {
            _gate = gate;
            _range = range;
            _stripe = stripe;
        }

        /// <summary>Releases the range.</summary>
        public void Dispose() => _gate?.Leave(_range, _stripe);
    }

    internal readonly record struct Range(long Start, long End, bool Exclusive);

    /// <summary>Shared ranges of some threads; its own lock. The list's room keeps stripes on cache lines of their own.</summary>
    private sealed class Stripe
    {
        public List<Range> Held { get; } = new(capacity: 16);
    }
}
