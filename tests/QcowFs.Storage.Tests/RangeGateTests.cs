// The locks on ranges: who passes whom, and that nobody is let in who must wait.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests;

public sealed class RangeGateTests
{
    [Fact]
    public void Shared_ranges_and_apart_ranges_pass_each_other()
    {
        var gate = new RangeGate();
        using RangeGate.Ticket a = gate.Enter(0, 100, exclusive: false);
        using RangeGate.Ticket b = gate.Enter(50, 150, exclusive: false);
        using RangeGate.Ticket c = gate.Enter(150, long.MaxValue, exclusive: true);
        default(RangeGate.Ticket).Dispose();
    }

    [Theory]
    [InlineData(true, true)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    public void Exclusive_range_waits_and_is_waited_for(bool first, bool second)
    {
        var gate = new RangeGate();
        RangeGate.Ticket held = gate.Enter(0, 100, first);
        using var entered = new ManualResetEventSlim();
        using var failures = new ThreadFailures();
        Thread waiter = failures.Start(() =>
        {
            using RangeGate.Ticket ticket = gate.Enter(99, 200, second);
            entered.Set();
        });
        Wait.Until(() => waiter.ThreadState.HasFlag(ThreadState.WaitSleepJoin) || entered.IsSet, "it waits");
        Assert.False(entered.IsSet);
        held.Dispose();
        failures.Join();
        Assert.True(entered.IsSet);
    }

    [Fact]
    public void Exclusive_ranges_never_overlap_under_load()
    {
        var gate = new RangeGate();
        int[] owners = new int[64]; // negative: exclusive; positive: number of shared
        using var failures = new ThreadFailures();
        for (int number = 1; number <= 6; number++)
        {
            var random = new Random(number);
            failures.Start(() =>
            {
                for (int round = 0; round < 3000; round++)
                {
                    int start = random.Next(owners.Length);
                    int end = random.Next(start + 1, owners.Length + 1);
                    bool exclusive = random.Next(2) == 0;
                    using RangeGate.Ticket ticket = gate.Enter(start, end, exclusive);
                    for (int i = start; i < end; i++)
                        Assert.True(exclusive ? Interlocked.Exchange(ref owners[i], -1) == 0 : Interlocked.Increment(ref owners[i]) > 0);
                    for (int i = start; i < end; i++)
                        _ = exclusive ? Interlocked.Exchange(ref owners[i], 0) : Interlocked.Decrement(ref owners[i]);
                }
            });
        }
        failures.Join();
    }
}
