// A channel: a descriptor, a thread and two buffers. It takes a request, runs it to completion, and answers it.
//
// C1 One thread uses the buffers, so what a handler is given is valid exactly until it returns.
// C2 ENODEV and ECONNABORTED are the end of the connection, not a fault. Any other error that the device does not recover from ends
//    this channel and is reported.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal sealed unsafe class Channel(
    FuseDevice device, ChannelBuffers buffers, Dispatcher dispatcher, FuseSessionOptions options, ChannelGrowth? growth, Action<Channel> ended)
{
    /// <summary>A request that took longer than this, and than copying its bytes explains, was held up by something.</summary>
    private static readonly TimeSpan UsualTime = TimeSpan.FromMicroseconds(50);

    // Copying into new pages of memory, with every processor at it: writes that only fill memory gain nothing by more threads.
    private const long SlowestCopyBytesPerSecond = 1_000_000_000;

    private readonly FuseDevice _device = device;
    private readonly ChannelBuffers _buffers = buffers;
    private readonly Dispatcher _dispatcher = dispatcher;
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
    public Errno End { get; private set; }

    /// <summary>Serves until the connection ends. The body of the channel's thread.</summary>
    public void Run()
    {
        while (ServeNext())
        {
            // One request at a time, each in a call of its own, so that the just-in-time compiler can replace the code meanwhile.
        }
        _buffers.Dispose();
        _ended(this);
    }

    /// <summary>The same on a stack that has been touched, so that serving meets no page fault there.</summary>
    public void RunResident()
    {
        TouchStack();
        Run();
    }

    private static void TouchStack()
    {
        const int deepest = 256 << 10;
        Span<byte> stack = stackalloc byte[deepest];
        stack.Clear();
    }

    private bool ServeNext()
    {
        int received = _device.Receive(_buffers.Request, _buffers.RequestCapacity, out Errno end);
        if (received <= 0) return Ended(end);
        long started = _time.GetTimestamp();
        var request = new ReadOnlySpan<byte>(_buffers.Request, received);
        if (!Message.TryRead(request, out InHeader header)) header = default;
        Slot.Begin(header.Opcode, header.Node, header.Unique, started);
        _growth?.Taken();
        int length = _dispatcher.Serve(request, new Span<byte>(_buffers.Reply, _buffers.ReplyCapacity));
        if (_growth is not null || _counted is not null) Handled(header.Opcode, started, received + length);
        bool open = length == 0 || Answer(in header, request, length);
        Slot.End();
        return open;
    }

    private void Handled(FuseOpcode opcode, long started, int bytes)
    {
        long now = _time.GetTimestamp();
        _counted?.Invoke(opcode, _time.GetElapsedTime(started, now));
        if (_growth is not { } growth) return;
        long elapsed = now - started;
        if (elapsed > _usualTicks + (bytes / _bytesPerTick)) Volatile.Write(ref _heldUp, _heldUp + 1);
        Volatile.Write(ref _served, _served + 1);
        growth.Handled();
    }

    private bool Answer(in InHeader header, ReadOnlySpan<byte> request, int length)
    {
        Errno errno = _device.Send(_buffers.Reply, length);
        if (errno == Errno.None) return true;
        _dispatcher.Undo(request, new ReadOnlySpan<byte>(_buffers.Reply, length));
        if (errno == Errno.ENOENT) return true;
        if (FuseDevice.IsEnd(errno)) return Ended(errno);
        // The kernel has completed the request with an error of its own, so nobody waits; the channel goes on.
        _dispatcher.Report(in header, $"The kernel did not take the reply: {ErrnoText.Describe(errno)}.", null);
        return true;
    }

    private bool Ended(Errno errno)
    {
        End = errno;
        if (errno != Errno.None && !FuseDevice.IsEnd(errno))
            _dispatcher.Report(default, $"The channel's device failed: {ErrnoText.Describe(errno)}.", null);
        return false;
    }
}
