// A channel: a descriptor, a thread and two buffers. It takes a request, runs it to completion, and answers it.
//
// C1 One thread uses the buffers, so what a handler is given is valid exactly until it returns.
// C2 ENODEV and ECONNABORTED are the end of the connection, not a fault. Any other error that the device does not recover from ends
//    this channel and is reported.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal sealed unsafe class Channel(FuseSession session, FuseDevice device, ChannelBuffers buffers, Dispatcher dispatcher)
{
    private readonly FuseSession _session = session;
    private readonly FuseDevice _device = device;
    private readonly ChannelBuffers _buffers = buffers;
    private readonly Dispatcher _dispatcher = dispatcher;

    /// <summary>The request in hand.</summary>
    public RequestSlot Slot { get; } = new();

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
        _session.ChannelEnded(this);
    }

    private bool ServeNext()
    {
        int received = _device.Receive(_buffers.Request, _buffers.RequestCapacity, out Errno end);
        if (received <= 0) return Ended(end);
        long started = _session.Now();
        var request = new ReadOnlySpan<byte>(_buffers.Request, received);
        if (!Message.TryRead(request, out InHeader header)) header = default;
        Slot.Begin(header.Opcode, header.Node, header.Unique, started);
        _session.RequestTaken();
        int length = _dispatcher.Serve(request, new Span<byte>(_buffers.Reply, _buffers.ReplyCapacity));
        bool open = length == 0 || Answer(in header, request, length);
        Slot.End();
        _session.RequestDone();
        return open;
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
