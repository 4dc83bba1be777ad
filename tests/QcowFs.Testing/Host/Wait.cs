// Waiting for what cannot be waited for by an event: the state of another process or of the kernel.
using System.Diagnostics;
using Xunit;

namespace QcowFs.Testing;

public static class Wait
{
    /// <summary>Far above what anything in a test takes: reaching it means a hang.</summary>
    public static TimeSpan HangLimit { get; } = TimeSpan.FromMinutes(2);

    /// <summary>Returns when the condition holds; fails the test if it does not within <see cref="HangLimit"/>.</summary>
    public static void Until(Func<bool> condition, string what)
    {
        var watch = Stopwatch.StartNew();
        while (!condition())
        {
            if (watch.Elapsed > HangLimit)
                Assert.Fail($"Waited {HangLimit.TotalSeconds} seconds in vain until {what}.");
            Thread.Sleep(2);
        }
    }

    /// <summary>What a file of /proc or /sys says, or null where it has gone, which it may between any look at it and the next.</summary>
    public static string? ReadFact(string file)
    {
        try
        {
            return File.ReadAllText(file);
        }
        catch (IOException)
        {
            return null;
        }
    }
}
