// Requests that may wait for something, and the threads that serve them, so that a ring's thread does not.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>What rings handed over and no worker has begun. Thread-safe; holds each entry of the rings at most once, so it has room.</summary>
internal sealed class RingBacklog(int entries) : IDisposable
{
    private readonly Lock _gate = new();
    private readonly SemaphoreSlim _filled = new(0);

    // Guarded by _gate.
    private readonly (RingChannel Ring, RingEntry Entry)[] _waiting = new (RingChannel, RingEntry)[entries];
    private int _first, _count;
    private bool _closed;

    private bool _takesAll;

    /// <summary>Whether rings hand over everything, whatever they think of it.</summary>
    public bool TakesAll
    {
        get => Volatile.Read(ref _takesAll);
        set => Volatile.Write(ref _takesAll, value);
    }

    /// <summary>Hands a request over.</summary>
    public void Add(RingChannel ring, RingEntry entry)
    {
        lock (_gate)
        {
            _waiting[(_first + _count) % _waiting.Length] = (ring, entry);
            _count++;
        }
        _filled.Release();
    }

    /// <summary>Waits for a request; false when there will be none any more.</summary>
    public bool TryTake(out RingChannel ring, out RingEntry entry)
    {
        _filled.Wait();
        lock (_gate)
        {
            if (_closed)
            {
                _filled.Release(); // for the next worker
                (ring, entry) = (null!, null!);
                return false;
            }
            (ring, entry) = _waiting[_first];
            _first = (_first + 1) % _waiting.Length;
            _count--;
            return true;
        }
    }

    /// <summary>The connection is over: nobody waits for what is left.</summary>
    public void Close()
    {
        lock (_gate) _closed = true;
        _filled.Release();
    }

    public void Dispose() => _filled.Dispose();
}

/// <summary>A thread that serves what rings hand over.</summary>
internal sealed class RingWorker(
    RingBacklog backlog, Dispatcher dispatcher, FuseSessionOptions options, ChannelGrowth? growth, Action<Channel> ended)
    : Channel(dispatcher, options, growth, ended)
{
    private readonly RingBacklog _backlog = backlog;

    protected override bool ServeNext()
    {
        if (!_backlog.TryTake(out RingChannel ring, out RingEntry entry)) return Ended(Errno.ENODEV);
        ref readonly InHeader header = ref entry.Header;
        int length = Handle(in header, entry.Request, entry.Reply, timed: true, out bool heldUp);
        entry.Finish(length);
        entry.WasHeldUp = heldUp;
        Slot.End();
        ring.GiveBack(entry);
        return true;
    }

    protected override void Release()
    {
        // Everything that it uses is the session's.
    }
}
