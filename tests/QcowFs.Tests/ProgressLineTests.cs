// The progress line: nothing for short work, drawn over itself, gone at the end.
using Xunit;

namespace QcowFs.Tests;

public sealed class ProgressLineTests
{
    [Fact]
    public void Short_work_shows_nothing()
    {
        StringWriter terminal = new();
        Clock clock = new();
        using (ProgressLine line = new(terminal, clock, "checking"))
        {
            line.Report(0.5);
            clock.Pass(0.9);
        }

        Assert.Equal("", terminal.ToString());
    }

    [Fact]
    public void Long_work_is_told_and_leaves_no_trace()
    {
        StringWriter terminal = new();
        Clock clock = new();
        ProgressLine line = new(terminal, clock, "repairing");
        clock.Pass(1);
        line.Report(0.25);
        line.Report(0.998);
        clock.Pass(0.25);
        line.Report(0.1);
        clock.Pass(0.75);
        line.Dispose();
        clock.Pass(5);
        Assert.Equal(
            "\r\x1b[Krepairing: (1 s)\r\x1b[Krepairing: 100 % (1 s)\r\x1b[Krepairing, pass 2: 10 % (2 s)\r\x1b[K", terminal.ToString());
    }

    /// <summary>A clock that passes time when told; a tick of its one timer a call.</summary>
    private sealed class Clock : TimeProvider, ITimer
    {
        private TimerCallback? _callback;
        private long _now;
        private long _due;

        public override long TimestampFrequency => TimeSpan.TicksPerSecond;

        public override long GetTimestamp() => _now;

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
        {
            _callback = callback;
            _due = _now + dueTime.Ticks;
            return this;
        }

        public void Pass(double seconds)
        {
            _now += TimeSpan.FromSeconds(seconds).Ticks;
            if (_now >= _due)
                _callback?.Invoke(null);
        }

        public bool Change(TimeSpan dueTime, TimeSpan period) => true;

        public void Dispose() => _callback = null;

        public ValueTask DisposeAsync()
        {
            Dispose();
            return ValueTask.CompletedTask;
        }
    }
}
