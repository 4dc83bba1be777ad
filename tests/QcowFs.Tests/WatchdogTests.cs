// Requests that hang are named once, and only they.
using QcowFs.Fuse;
using QcowFs.Server;
using Xunit;

namespace QcowFs.Tests;

public sealed class WatchdogTests
{
    [Fact]
    public void A_stuck_request_is_named_once_and_so_is_its_end()
    {
        ManualTime time = new();
        List<FuseRequestInFlight> inHand = [];
        List<string> log = [];
        using Watchdog watchdog = new(
            destination =>
            {
                inHand.ToArray().CopyTo(destination);
                return inHand.Count;
            },
            log.Add,
            time);

        inHand.Add(new FuseRequestInFlight(FuseOpcode.Read, 5, 70, TimeSpan.FromSeconds(29.9)));
        inHand.Add(new FuseRequestInFlight(FuseOpcode.Write, 6, 72, TimeSpan.FromSeconds(1)));
        time.Tick();
        Assert.Empty(log);

        inHand[0] = inHand[0] with { Age = TimeSpan.FromSeconds(34.9) };
        time.Tick();
        time.Tick();
        Assert.Equal(["Read of node 5 (request 70) is stuck: in hand for 35 s; see dmesg for the image's disk"], log);

        inHand.RemoveAt(0);
        time.Tick();
        time.Tick();
        Assert.Equal(["Read of node 5 (request 70) was answered at last"], log[1..]);
    }

    private sealed class ManualTime : TimeProvider
    {
        private readonly List<Action> _callbacks = [];

        public void Tick() => _callbacks.ForEach(callback => callback());

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
        {
            Assert.InRange(period, TimeSpan.FromSeconds(1), Watchdog.Limit / 2);
            _callbacks.Add(() => callback(state));
            return new Timer();
        }

        private sealed class Timer : ITimer
        {
            public bool Change(TimeSpan dueTime, TimeSpan period) => true;

            public void Dispose()
            {
                // Nothing is held.
            }

            public ValueTask DisposeAsync() => ValueTask.CompletedTask;
        }
    }
}
