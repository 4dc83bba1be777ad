// The request that a channel is working on, readable by others without stopping it.

namespace QcowFs.Fuse;

/// <summary>A request that is being served.</summary>
/// <param name="Opcode">What is asked for.</param>
/// <param name="Node">The node it is asked of.</param>
/// <param name="Unique">The kernel's number of the request.</param>
/// <param name="Age">Time since it arrived.</param>
public readonly record struct FuseRequestInFlight(FuseOpcode Opcode, ulong Node, ulong Unique, TimeSpan Age);

/// <summary>Written by one channel, read by anybody: the unique number of the request is the version (a sequence lock without a
/// counter, since no two requests have the same number, and the kernel never uses 0).</summary>
internal sealed class RequestSlot
{
    private ulong _unique;
    private FuseOpcode _opcode;
    private ulong _node;
    private long _started;

    /// <summary>The channel begins a request.</summary>
    public void Begin(FuseOpcode opcode, ulong node, ulong unique, long started)
    {
        _opcode = opcode;
        _node = node;
        _started = started;
        Volatile.Write(ref _unique, unique);
    }

    /// <summary>The channel is done with it. The barrier keeps what the next request writes behind the 0.</summary>
    public void End()
    {
        _unique = 0;
        Volatile.WriteBarrier();
    }

    /// <summary>Looks at the request in hand; false where there is none, or it changed meanwhile.</summary>
    public bool TryRead(TimeProvider time, out FuseRequestInFlight request)
    {
        request = default;
        ulong unique = Volatile.Read(ref _unique);
        if (unique == 0) return false;
        FuseOpcode opcode = _opcode;
        ulong node = _node;
        long started = _started;
        Volatile.ReadBarrier();
        if (_unique != unique) return false;
        request = new FuseRequestInFlight(opcode, node, unique, time.GetElapsedTime(started));
        return true;
    }
}
