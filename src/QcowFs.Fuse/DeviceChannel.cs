// A channel on a descriptor of /dev/fuse: read a request, run it to completion, write the reply; two system calls.
//
// C1 One thread uses the buffers, so what a handler is given is valid exactly until it returns.
// C2 ENODEV and ECONNABORTED are the end of the connection, not a fault. Any other error that the device does not recover from ends
//    this channel and is reported.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal sealed unsafe class DeviceChannel(
    FuseDevice device, ChannelBuffers buffers, Dispatcher dispatcher, FuseSessionOptions options, ChannelGrowth? growth, Action<Channel> ended)
    : Channel(dispatcher, options, growth, ended)
{
    private readonly FuseDevice _device = device;
    private readonly ChannelBuffers _buffers = buffers;

    protected override bool ServeNext()
    {
        int received = _device.Receive(_buffers.Request, _buffers.RequestCapacity, out Errno end);
        if (received <= 0) return Ended(end);
        var request = new ReadOnlySpan<byte>(_buffers.Request, received);
        if (!Message.TryRead(request, out InHeader header)) header = default;
        int length = Handle(in header, request, new Span<byte>(_buffers.Reply, _buffers.ReplyCapacity), timed: false, out _);
        bool open = length == 0 || Answer(in header, length);
        Slot.End();
        return open;
    }

    protected override void Release() => _buffers.Dispose();

    private bool Answer(in InHeader header, int length)
    {
        Errno errno = _device.Send(_buffers.Reply, length);
        if (errno == Errno.None) return true;
        Dispatcher.Undo(in header, new ReadOnlySpan<byte>(_buffers.Reply, length));
        if (errno == Errno.ENOENT) return true;
        if (FuseDevice.IsEnd(errno)) return Ended(errno);
        // The kernel has completed the request with an error of its own, so nobody waits; the channel goes on.
        Dispatcher.Report(in header, $"The kernel did not take the reply: {ErrnoText.Describe(errno)}.", null);
        return true;
    }
}
