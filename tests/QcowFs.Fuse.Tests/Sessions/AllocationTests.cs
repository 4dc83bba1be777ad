// READ and WRITE allocate nothing in steady state: neither decoding and encoding, nor the channel around them.
using QcowFs.Fuse.Tests.Wire;

namespace QcowFs.Fuse.Tests.Sessions;

public sealed class AllocationTests
{
    private const int WarmUp = 200, Measured = 20_000;


    [Theory]
    [InlineData(FuseOpcode.Read)]
    [InlineData(FuseOpcode.Write)]
    public void A_dispatch_allocates_nothing(FuseOpcode opcode)
    {
        var fixture = new DispatcherFixture { FileSystem = { Recording = false } };
        byte[] request = RequestOf(opcode), reply = new byte[16 + 65536];
        for (int i = 0; i < WarmUp; i++) fixture.Dispatcher.Serve(request, reply);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < Measured; i++) fixture.Dispatcher.Serve(request, reply);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    [Theory]
    [InlineData(FuseOpcode.Read, 1)]
    [InlineData(FuseOpcode.Write, 1)]
    [InlineData(FuseOpcode.Read, 0)]
    [InlineData(FuseOpcode.Write, 0)]
    public void A_whole_session_allocates_nothing_for_a_request(FuseOpcode opcode, int threads)
    {
        using var kernel = new FakeKernel();
        int requests = 0;
        long atStart = 0, atEnd = 0;
        var fileSystem = new RecordingFileSystem
        {
            Recording = false,
            // There is one channel, so this is always the same thread; from one call to the next lies a whole turn of its loop.
            BeforeTransfer = () =>
            {
                if (++requests == WarmUp) atStart = GC.GetAllocatedBytesForCurrentThread();
                else if (requests == WarmUp + Measured) atEnd = GC.GetAllocatedBytesForCurrentThread();
            },
        };
        kernel.Send(FakeKernel.Init());
        using var session = new FuseSession(fileSystem, kernel.Server, new FuseSessionOptions { Threads = threads, MaxThreads = 1, MaxPayload = 65536 });
        session.Start();
        kernel.Receive();
        kernel.Repeat(RequestOf(opcode), WarmUp + Measured);
        kernel.HangUp();
        session.WaitForEnd();
        Assert.Equal(WarmUp + Measured, requests);
        Assert.Equal(0, atEnd - atStart);
    }

    private static byte[] RequestOf(FuseOpcode opcode) => opcode switch
    {
        FuseOpcode.Write => Packet.Request(opcode, 2, FileRequestTests.WriteBody(new byte[4096])),
        _ => Packet.Request(opcode, 2, FileRequestTests.ReadBody(0, 4096)),
    };
}
