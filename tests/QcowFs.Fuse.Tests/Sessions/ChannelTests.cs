// When a channel counts a request as held up: more threads help where a thread waits, and only there.
using System.Diagnostics;
using QcowFs.Fuse.Tests.Wire;
using QcowFs.Fuse.Wire;

namespace QcowFs.Fuse.Tests.Sessions;

public sealed class ChannelTests
{
    private const int Requests = 40;
    private static readonly TimeSpan Long = TimeSpan.FromMilliseconds(2);

    [Fact]
    public void Requests_that_wait_are_held_up()
    {
        using var never = new ManualResetEventSlim();
        Assert.InRange(HeldUpOf(() => never.Wait(Long)), Requests - 5, Requests);
    }

    // Filling new memory, and taking turns for a lock by spinning, take long and gain nothing by more threads.
    [Fact]
    public void Requests_that_only_compute_are_not()
    {
        Assert.InRange(HeldUpOf(() =>
        {
            long started = Stopwatch.GetTimestamp();
            while (Stopwatch.GetElapsedTime(started) < Long)
            {
                // keeps its processor
            }
        }), 0, Requests / 4); // a collection of garbage may make it wait
    }

    private static int HeldUpOf(Action handler)
    {
        var fixture = new DispatcherFixture();
        fixture.FileSystem.BeforeTransfer = handler;
        var channel = new OneRequest(fixture.Dispatcher, Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2)));
        for (int i = 0; i < Requests; i++) channel.Run();
        return channel.Found;
    }

    /// <summary>Serves the same request once a run, and counts those that were held up.</summary>
    private sealed class OneRequest(Dispatcher dispatcher, byte[] request) : Channel(dispatcher, new FuseSessionOptions(), null, static _ => { })
    {
        private readonly byte[] _reply = new byte[4096];

        public int Found { get; private set; }

        protected override bool ServeNext()
        {
            Assert.True(Message.TryRead(request, out InHeader header));
            Handle(in header, request, _reply, timed: true, out bool heldUp);
            Slot.End();
            if (heldUp) Found++;
            return false;
        }

        protected override void Release()
        {
            // It has nothing.
        }
    }
}
