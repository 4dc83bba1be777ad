// The gate that requests pass: nobody is inside who is kept out, and nobody waits for ever.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class RequestGateTests
{
    [Fact]
    public void Nobody_is_inside_while_everybody_is_held()
    {
        RequestGate gate = new();
        int inside = 0;
        long passed = 0;
        bool wrong = false;
        bool ends = false;
        Thread[] threads = [.. Enumerable.Range(0, 4).Select(i => new Thread(() =>
        {
            while (!Volatile.Read(ref ends))
            {
                int slot = gate.Enter(changes: i % 2 == 0);
                Interlocked.Increment(ref inside);
                Interlocked.Increment(ref passed);
                Interlocked.Decrement(ref inside);
                gate.Exit(slot);
            }
        }))];
        foreach (Thread thread in threads) thread.Start();
        for (int round = 0; round < 30; round++)
        {
            gate.HoldEverybody();
            wrong |= Volatile.Read(ref inside) != 0;
            long before = Interlocked.Read(ref passed);
            Thread.Yield();
            wrong |= Interlocked.Read(ref passed) != before;
            gate.LetGo(GateHold.Nobody);
            while (Interlocked.Read(ref passed) == before) Thread.Yield();
        }
        Volatile.Write(ref ends, true);
        foreach (Thread thread in threads) thread.Join();
        Assert.False(wrong);
    }

    [Fact]
    public void Changes_wait_while_others_pass()
    {
        RequestGate gate = new();
        gate.HoldEverybody();
        Assert.False(gate.TryEnter(changes: false, out _));
        gate.LetGo(GateHold.Changes);
        gate.Exit(gate.Enter(changes: false));
        Assert.False(gate.TryEnter(changes: true, out _));
        bool entered = false;
        Thread writer = new(() =>
        {
            gate.Exit(gate.Enter(changes: true));
            Volatile.Write(ref entered, true);
        });
        writer.Start();
        Wait.Until(() => writer.ThreadState.HasFlag(ThreadState.WaitSleepJoin), "the writer waits");
        Assert.False(Volatile.Read(ref entered));
        gate.LetGo(GateHold.Nobody);
        writer.Join();
        Assert.True(entered);
    }

    [Fact]
    public void Patience_ends()
    {
        RequestGate gate = new();
        gate.HoldEverybody();
        Assert.False(gate.TryEnter(TimeSpan.FromMilliseconds(1), out _));
        gate.LetGo(GateHold.Nobody);
        Assert.True(gate.TryEnter(TimeSpan.FromMilliseconds(1), out int slot));
        gate.Exit(slot);
    }
}
