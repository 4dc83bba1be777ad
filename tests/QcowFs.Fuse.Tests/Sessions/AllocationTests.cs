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
    [InlineData(FuseOpcode.Read)]
    [InlineData(FuseOpcode.Write)]
    public void A_whole_session_allocates_nothing_for_a_request(FuseOpcode opcode)
    {
        using var kernel = new FakeKernel();
        var fileSystem = new RecordingFileSystem { Recording = false };
        kernel.Send(FakeKernel.Init());
        using var session = new FuseSession(fileSystem, kernel.Server, new FuseSessionOptions { Threads = 2, MaxPayload = 65536 });
        session.Start();
        kernel.Receive();
        byte[] request = RequestOf(opcode);
        kernel.Repeat(request, WarmUp);
        // Other tests of this process allocate too, so the least of several runs counts: 20,000 requests cannot hide in it.
        long least = long.MaxValue;
        for (int run = 0; run < 10 && least > Measured; run++)
        {
            long before = GC.GetTotalAllocatedBytes(precise: true);
            kernel.Repeat(request, Measured);
            least = Math.Min(least, GC.GetTotalAllocatedBytes(precise: true) - before);
        }
        kernel.HangUp();
        session.WaitForEnd();
        Assert.True(least < Measured, $"{least} bytes were allocated for {Measured} requests");
    }

    private static byte[] RequestOf(FuseOpcode opcode) => opcode switch
    {
        FuseOpcode.Write => Packet.Request(opcode, 2, FileRequestTests.WriteBody(new byte[4096])),
        _ => Packet.Request(opcode, 2, FileRequestTests.ReadBody(0, 4096)),
    };
}
