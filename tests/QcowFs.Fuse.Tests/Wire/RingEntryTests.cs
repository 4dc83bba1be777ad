// A request as it lies in an entry of a ring, put together as the device would have given it.
using System.Runtime.InteropServices;
using QcowFs.Fuse.Wire;

namespace QcowFs.Fuse.Tests.Wire;

public sealed unsafe class RingEntryTests : IDisposable
{
    private const int Payload = 65536;

    private readonly RingEntries _entries = new([3, 3, 5], Payload, resident: true);

    public void Dispose() => _entries.Dispose();

    [Fact]
    public void A_request_is_as_the_device_would_have_given_it()
    {
        byte[] data = [.. Enumerable.Range(0, 4096).Select(i => (byte)(i % 256))];
        byte[] write = Packet.Request(FuseOpcode.Write, 2, FileRequestTests.WriteBody(data));
        RingEntry entry = _entries.All[1];
        Arrive(entry, write, operation: 40);
        Assert.Equal(write, entry.Request.ToArray());
        Assert.Equal((FuseOpcode.Write, 4096L, (ushort)3, 1ul), (entry.Header.Opcode, entry.TransferSize, entry.Queue, entry.Tag));

        byte[] lookup = Packet.Request(FuseOpcode.Lookup, 1, new Packet().Name("disk"));
        Arrive(entry, lookup, operation: 0);
        Assert.Equal(lookup, entry.Request.ToArray());
        Assert.Equal(0, entry.TransferSize);

        byte[] read = Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 8192));
        Arrive(entry, read, operation: 40);
        Assert.Equal(read, entry.Request.ToArray());
        Assert.Equal(8192, entry.TransferSize);
    }

    [Fact]
    public void A_reply_goes_where_the_kernel_looks_for_it()
    {
        var fixture = new DispatcherFixture();
        byte[] read = Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0x20, 2));
        RingEntry entry = _entries.All[2];
        Arrive(entry, read, operation: 40);
        entry.Finish(fixture.Dispatcher.Serve(entry.Request, entry.Reply));
        RingEntryHead* head = HeadOf(entry);
        Assert.Equal((18u, 0, 2u), (head->Reply.Length, head->Reply.Error, head->PayloadSize));
        Assert.Equal(MemoryMarshal.Read<InHeader>(read).Unique, head->Reply.Unique);
        Assert.Equal(0x2120, *(ushort*)entry.Vectors[1].Base);
        Assert.Equal(0u, (uint)((nuint)entry.Vectors[1].Base % 4096));

        // No reply is due: the kernel is told that it is done.
        Arrive(entry, Packet.Request(FuseOpcode.Forget, 2, new Packet().U64(1)), operation: 8);
        entry.Finish(fixture.Dispatcher.Serve(entry.Request, entry.Reply));
        Assert.Equal((16u, 0, 0u), (head->Reply.Length, head->Reply.Error, head->PayloadSize));
    }

    /// <summary>Lengths that do not go together lead to a request that is shorter than it says, which is EIO.</summary>
    [Theory]
    [InlineData(48u, 9u)]
    [InlineData(48u, uint.MaxValue)]
    [InlineData(39u, 0u)]
    [InlineData(0u, 0u)]
    [InlineData(169u, 0u)]
    [InlineData(40u + 128u + Payload + 1u, Payload + 1u)]
    [InlineData(uint.MaxValue, Payload)]
    public void Lengths_that_do_not_fit_are_not_believed(uint length, uint payload)
    {
        var fixture = new DispatcherFixture();
        RingEntry entry = _entries.All[0];
        Arrive(entry, Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2)), operation: 40);
        HeadOf(entry)->Request.Length = length;
        HeadOf(entry)->PayloadSize = payload;
        entry.Begin();
        Assert.Equal(InHeader.Size, entry.Request.Length);
        entry.Finish(fixture.Dispatcher.Serve(entry.Request, entry.Reply));
        Assert.Equal((16u, -5, 0u), (HeadOf(entry)->Reply.Length, HeadOf(entry)->Reply.Error, HeadOf(entry)->PayloadSize));
        Assert.Single(fixture.Faults);
    }

    private static RingEntryHead* HeadOf(RingEntry entry) => (RingEntryHead*)entry.Vectors[0].Base;

    /// <summary>Lays a request into an entry as the kernel does.</summary>
    private static void Arrive(RingEntry entry, byte[] request, int operation)
    {
        RingEntryHead* head = HeadOf(entry);
        head->Request = MemoryMarshal.Read<InHeader>(request);
        request.AsSpan(InHeader.Size, operation).CopyTo(new Span<byte>((byte*)head + RingEntryHead.OperationOffset, RingEntryHead.OperationSize));
        ReadOnlySpan<byte> payload = request.AsSpan(InHeader.Size + operation);
        payload.CopyTo(new Span<byte>(entry.Vectors[1].Base, Payload));
        head->PayloadSize = (uint)payload.Length;
        entry.Begin();
    }
}
