// When a session gets one more thread.
//
// More threads than processors do nothing for requests that only compute and copy; they only cost switches. They do everything for
// requests that wait for a disk, since the depth at which the disk is driven is the number of threads. So a thread is added when
// both hold: no channel waits for a request, and at least half of the requests of the last moments took longer than copying
// explains (or none was finished at all, as when every handler is stuck).
using System.Diagnostics.CodeAnalysis;

namespace QcowFs.Fuse;

/// <summary>Counts waiting channels, and watches, on a thread of its own, the moments in which there are none.</summary>
internal sealed class ChannelGrowth : IDisposable
{
    private static readonly TimeSpan Window = TimeSpan.FromMilliseconds(10);

    private readonly Func<Channel[]> _channels;
    private readonly Func<bool> _tryAdd;
    private readonly ManualResetEventSlim _pressed = new(false);
    private readonly ManualResetEventSlim _stopped = new(false);

    // Channels that are not inside a handler. Changed by Interlocked.
    private int _waiting;
    private volatile bool _isOver;

    /// <summary><paramref name="tryAdd"/> adds a channel, and is false where there may be no more.</summary>
    public ChannelGrowth(Func<Channel[]> channels, Func<bool> tryAdd)
    {
        _channels = channels;
        _tryAdd = tryAdd;
    }

    /// <summary>Whether there will be no more threads, so that nobody needs to count any more.</summary>
    public bool IsOver => _isOver;

    /// <summary>A channel was added.</summary>
    public void Added() => Interlocked.Increment(ref _waiting);

    /// <summary>A channel begins to handle a request.</summary>
    public void Taken()
    {
        if (Interlocked.Decrement(ref _waiting) <= 0 && !_pressed.IsSet) _pressed.Set();
    }

    /// <summary>A channel has handled its request. Called before the reply is sent: from then on the caller may send the next
    /// request, and would otherwise be taken for a second one that comes while nobody waits.</summary>
    public void Handled() => Interlocked.Increment(ref _waiting);

    /// <summary>Starts watching.</summary>
    public void Start() => new Thread(Watch, maxStackSize: 1 << 18) { IsBackground = true, Name = "fuse-growth" }.Start();

    /// <summary>Stops watching; the session has ended.</summary>
    [SuppressMessage("Usage", "CA2213", Justification = "The watching thread may still wait on the events, which hold no handle.")]
    public void Dispose()
    {
        _stopped.Set();
        _pressed.Set();
    }

    private void Watch()
    {
        bool more = true;
        while (more)
        {
            _pressed.Wait();
            (long served, long heldUp) = Totals();
            if (_stopped.Wait(Window)) return;
            (long servedAfter, long heldUpAfter) = Totals();
            _pressed.Reset();
            if (Volatile.Read(ref _waiting) > 0) continue;
            _pressed.Set();
            if ((heldUpAfter - heldUp) * 2 >= servedAfter - served) more = _tryAdd();
        }
        _isOver = true;
    }

    private (long Served, long HeldUp) Totals()
    {
        long served = 0, heldUp = 0;
        foreach (Channel channel in _channels())
        {
            served += channel.Served;
            heldUp += channel.HeldUp;
        }
        return (served, heldUp);
    }
}
