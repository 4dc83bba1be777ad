// A channel: a thread that serves requests, one at a time, and what others may see of it. Where requests come from and how the replies
// go is the transport's: DeviceChannel, RingChannel and RingWorker.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal abstract class Channel(Dispatcher dispatcher, FuseSessionOptions options, ChannelGrowth? growth, Action<Channel> ended)
{
    /// <summary>A request that took longer than this, and than copying its bytes explains, was held up by something.</summary>
    private static readonly TimeSpan UsualTime = TimeSpan.FromMicroseconds(50);

    // Copying into new pages of memory, with every processor at it: writes that only fill memory gain nothing by more threads.
    private const long SlowestCopyBytesPerSecond = 1_000_000_000;

    private readonly TimeProvider _time = options.Time;
    private readonly Action<FuseOpcode, TimeSpan>? _counted = options.Served;
    private readonly ChannelGrowth? _growth = growth;
    private readonly Action<Channel> _ended = ended;
    private readonly long _usualTicks = (long)(UsualTime.TotalSeconds * options.Time.TimestampFrequency);
    private readonly long _bytesPerTick = Math.Max(SlowestCopyBytesPerSecond / options.Time.TimestampFrequency, 1);
    private long _served;
    private long _heldUp;

    /// <summary>The request in hand.</summary>
    public RequestSlot Slot { get; } = new();

    /// <summary>Requests served; counted only where the session may grow. Written by the channel, read by anybody.</summary>
    public long Served => Volatile.Read(ref _served);

    /// <summary>Those of <see cref="Served"/> that were held up.</summary>
    public long HeldUp => Volatile.Read(ref _heldUp);

    /// <summary>How the connection ended for this channel; meant when <see cref="Run"/> has returned.</summary>
    public Errno End { get; protected set; }

    /// <summary>Requests to replies.</summary>
    protected Dispatcher Dispatcher { get; } = dispatcher;

    /// <summary>Serves until the connection ends. The body of the channel's thread.</summary>
    public void Run()
    {
        while (ServeNext())
        {
            // One request at a time, each in a call of its own, so that the just-in-time compiler can replace the code meanwhile.
        }
        Release();
        _ended(this);
    }

    /// <summary>The same on a stack that has been touched, so that serving meets no page fault there.</summary>
    public void RunResident()
    {
        TouchStack();
        Run();
    }

    /// <summary>Waits for what is next, and serves it; false at the end, for which <see cref="End"/> is set.</summary>
    protected abstract bool ServeNext();

    /// <summary>Gives back what only this channel uses.</summary>
    protected abstract void Release();

    /// <summary>Runs a request to completion. The caller ends <see cref="Slot"/> when the reply is on its way. <paramref name="heldUp"/> is meant
    /// where <paramref name="timed"/> asks for it.</summary>
    /// <returns>The length of the reply; 0 where none is due.</returns>
    protected int Handle(in InHeader header, ReadOnlySpan<byte> request, Span<byte> reply, bool timed, out bool heldUp)
    {
        heldUp = false;
        long started = _time.GetTimestamp();
        Slot.Begin(header.Opcode, header.Node, header.Unique, started);
        ChannelGrowth? grows = _growth is { IsOver: false } ? _growth : null;
        grows?.Taken();
        int length = Dispatcher.Serve(request, reply);
        if (!timed && grows is null && _counted is null) return length;
        long now = _time.GetTimestamp();
        heldUp = now - started > _usualTicks + ((request.Length + length) / _bytesPerTick);
        _counted?.Invoke(header.Opcode, _time.GetElapsedTime(started, now));
        if (grows is null) return length;
        if (heldUp) Volatile.Write(ref _heldUp, _heldUp + 1);
        Volatile.Write(ref _served, _served + 1);
        grows.Handled();
        return length;
    }

    /// <summary>The connection is over for this channel, or its transport failed, which is reported.</summary>
    protected bool Ended(Errno errno)
    {
        End = errno;
        if (errno != Errno.None && !FuseDevice.IsEnd(errno))
            Dispatcher.Report(default, $"The channel's device failed: {ErrnoText.Describe(errno)}.", null);
        return false;
    }

    private static void TouchStack()
    {
        const int deepest = 256 << 10;
        Span<byte> stack = stackalloc byte[deepest];
        stack.Clear();
    }
}
