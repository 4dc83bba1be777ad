// The kernel's end of a connection: a socket that keeps messages whole, as the device does.
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Fuse.Tests.Sessions;

internal sealed unsafe class FakeKernel : IDisposable
{
    private const int HangLimitMs = 30_000;

    private readonly SafeFileHandle _kernel;
    private readonly byte* _memory = (byte*)NativeMemory.Alloc(Capacity);
    private ulong _unique = 2;

    private const int Capacity = 1 << 18;

    public FakeKernel()
    {
        int* pair = stackalloc int[2];
        if (Libc.SocketPair(Libc.AF_UNIX, Libc.SOCK_SEQPACKET | Libc.SOCK_CLOEXEC, 0, pair) != 0) throw new IOException(Libc.LastErrno.ToString());
        _kernel = new SafeFileHandle(pair[0], ownsHandle: true);
        Server = new SafeFileHandle(pair[1], ownsHandle: true);
    }

    /// <summary>The end that a session is made on.</summary>
    public SafeFileHandle Server { get; }

    /// <summary>An INIT request.</summary>
    public static byte[] Init(uint major = 7, uint minor = 45)
        => Packet.Request(FuseOpcode.Init, 0, new Packet().U32(major).U32(minor).U32(131072).U32(0xFFFFFFFF).U32(0xFFFFFFFF).Zeros(44), unique: 1);

    public void Send(ReadOnlySpan<byte> message)
    {
        fixed (byte* start = message)
            Assert.Equal(message.Length, (int)Libc.Write(Descriptor, start, (nuint)message.Length));
    }

    /// <summary>Waits for one message from the server.</summary>
    public byte[] Receive()
    {
        AssertReadable();
        nint length = Libc.Read(Descriptor, _memory, Capacity);
        Assert.True(length >= 0, Libc.LastErrno.ToString());
        return new Span<byte>(_memory, (int)length).ToArray();
    }

    /// <summary>Sends a request and takes the next message as its reply, which is returned without its header.</summary>
    public (int Error, byte[] Body) Ask(FuseOpcode opcode, ulong node, Packet? body = null)
    {
        ulong unique = _unique += 2;
        Send(Packet.Request(opcode, node, body, unique));
        byte[] reply = Receive();
        Assert.Equal(reply.Length, BitConverter.ToInt32(reply, 0));
        Assert.Equal(unique, BitConverter.ToUInt64(reply, 8));
        return (BitConverter.ToInt32(reply, 4), reply[16..]);
    }

    /// <summary>Sends a request <paramref name="times"/> times and reads the replies, allocating nothing.</summary>
    public void Repeat(byte[] request, int times)
    {
        fixed (byte* start = request)
        {
            for (int i = 0; i < times; i++)
            {
                if (Libc.Write(Descriptor, start, (nuint)request.Length) != request.Length) throw new IOException("send");
                if (Libc.Read(Descriptor, _memory, Capacity) < 16) throw new IOException("receive");
            }
        }
    }

    /// <summary>Closes the kernel's end: the server's channels see the end of the connection.</summary>
    public void HangUp() => _kernel.Dispose();

    public void Dispose()
    {
        _kernel.Dispose();
        Server.Dispose();
        NativeMemory.Free(_memory);
    }

    private int Descriptor => (int)_kernel.DangerousGetHandle();

    private void AssertReadable()
    {
        var poll = new PollDescriptor { Descriptor = Descriptor, Events = Libc.POLLIN };
        Assert.True(Libc.Poll(&poll, 1, HangLimitMs) == 1, "the server did not answer");
    }
}
