// The INIT exchange on a new connection.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <param name="device">The connection.</param>
/// <param name="options">The session's.</param>
/// <param name="prepareRings">Told whether the kernel offers rings; gives whether they are ready to be used. Called at most once.</param>
internal sealed unsafe class Handshake(FuseDevice device, FuseSessionOptions options, Func<bool, bool> prepareRings)
{
    private readonly Func<bool, bool> _prepareRings = prepareRings;
    private readonly FuseDevice _device = device;
    private readonly FuseSessionOptions _options = options;

    /// <summary>Answers INIT until kernel and server agree. A kernel of a newer major asks twice.</summary>
    public FuseConnection Perform()
    {
        using var buffers = new ChannelBuffers(_options.MaxPayload);
        while (true)
        {
            int received = _device.Receive(buffers.Request, buffers.RequestCapacity, out Errno end);
            if (received <= 0) throw new FuseProtocolException($"the connection ended before it began ({ErrnoText.Describe(end)})");
            var request = new ReadOnlySpan<byte>(buffers.Request, received);
            if (!Message.TryRead(request, out InHeader header))
                throw new FuseProtocolException($"the kernel sent a request of {received} bytes");
            if (Answer(in header, request[InHeader.Size..]) is { } connection) return connection;
        }
    }

    private FuseConnection? Answer(in InHeader header, ReadOnlySpan<byte> body)
    {
        if (header.Opcode != FuseOpcode.Init)
        {
            Refuse(header.Unique, Errno.EIO);
            throw new FuseProtocolException($"the kernel began with {header.Opcode} in place of INIT");
        }
        bool hasRings = Negotiation.TryOffered(body, out FuseFeatures offered) && _prepareRings(offered.HasFlag(FuseFeatures.OverIoUring));
        switch (Negotiation.Answer(body, _options, hasRings, out InitOut reply, out FuseConnection? connection))
        {
            case Negotiation.Outcome.Malformed:
                Refuse(header.Unique, Errno.EPROTO);
                throw new FuseProtocolException($"the kernel sent an INIT of {body.Length} bytes");
            case Negotiation.Outcome.TooOld:
                Message.TryRead(body, out InitIn init);
                Refuse(header.Unique, Errno.EPROTO);
                const string needed = "7.31 (Linux 5.4) or newer is needed"; // Negotiation.OldestMinor
                throw new FuseProtocolException($"the kernel speaks FUSE {init.Major}.{init.Minor}; {needed}");
            default:
                Send(header.Unique, in reply);
                return connection;
        }
    }

    private void Send(ulong unique, in InitOut reply)
    {
        const int length = OutHeader.Size + InitOut.Size;
        var header = new OutHeader { Length = length, Unique = unique };
        byte* message = stackalloc byte[length];
        var bytes = new Span<byte>(message, length);
        Message.Write(bytes, in header);
        Message.Write(bytes[OutHeader.Size..], in reply);
        Errno errno = _device.Send(message, length);
        if (errno != Errno.None)
            throw new FuseProtocolException($"the kernel did not take the answer to INIT ({ErrnoText.Describe(errno)})");
    }

    /// <summary>The caller ends the connection next, so it does not matter whether this arrives.</summary>
    private void Refuse(ulong unique, Errno errno)
    {
        var header = new OutHeader { Length = OutHeader.Size, Error = -(int)errno, Unique = unique };
        _ = _device.Send((byte*)&header, OutHeader.Size);
    }
}
