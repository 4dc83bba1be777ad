// Where a ring's thread runs. One request at a time is answered soonest on the processor that it was sent on: who sent it sleeps, so the
// processor is free, and no other has to be woken. Where several requests come at once their sender goes on sending, and the thread is
// better off elsewhere; the kernel's scheduler finds out where.
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>Binds the calling thread to a processor while requests come one by one. Used by that thread only.</summary>
internal sealed unsafe class RingPlacement
{
    // So many single requests more than others, or the other way round, change it: a change costs as much as some requests.
    private const int Enough = 64;
    private const int Words = 16; // 1,024 processors

    private readonly ulong[] _anywhere = new ulong[Words];
    private readonly ulong[] _here = new ulong[Words];
    private bool _bound;
    private int _singles;

    private RingPlacement(int processor) => _here[processor / 64] = 1UL << (processor % 64);

    /// <summary>Null where the thread may not run on the processor, or nowhere else.</summary>
    public static RingPlacement? TryCreate(int processor)
    {
        if (processor >= Words * 64) return null;
        var placement = new RingPlacement(processor);
        fixed (ulong* allowed = placement._anywhere)
        {
            if (Libc.GetAffinity(0, Words * sizeof(ulong), allowed) < 0) return null;
        }
        bool mayRunHere = (placement._anywhere[processor / 64] & placement._here[processor / 64]) != 0;
        return mayRunHere && !placement._anywhere.AsSpan().SequenceEqual(placement._here) ? placement : null;
    }

    /// <summary>So many requests came at once.</summary>
    public void Note(int requests)
    {
        if (requests == 0) return;
        _singles = requests == 1 ? Math.Min(_singles + 1, Enough) : Math.Max(_singles - requests, -Enough);
        if (!_bound && _singles == Enough) Bind(true);
        else if (_bound && _singles == -Enough) Bind(false);
    }

    private void Bind(bool bound)
    {
        _bound = bound;
        _singles = 0;
        fixed (ulong* processors = bound ? _here : _anywhere)
            _ = Libc.SetAffinity(0, Words * sizeof(ulong), processors); // where that fails now, it runs where it runs
    }
}
