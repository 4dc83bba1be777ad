// How long a test lets another thread go on that has to be waiting for it.
using System.Runtime.Loader;

namespace QcowFs.Simulation.Tests;

internal static class Patience
{
    // On the right code the other thread waits all the while, so little is enough. On a mutant it comes through, and must be given the
    // time to, on however slow a machine.
    private static readonly bool IsMutant = AssemblyLoadContext.GetLoadContext(typeof(Patience).Assembly)!.IsCollectible;

    /// <summary>Returns when a thread has come through or, where it is held up as it should be, after a while. Gives whether it came
    /// through.</summary>
    public static bool LetGoOn(this Thread other) => other.Join(IsMutant ? TimeSpan.FromSeconds(20) : TimeSpan.FromMilliseconds(300));

    /// <summary>Returns when a thread waits for something, and not for a moment only, or has ended: for places where a mutant's thread waits
    /// as well, but later.</summary>
    public static void LetWait(this Thread other)
    {
        int samples = IsMutant ? 500 : 50;
        for (int waits = 0; waits < samples && !other.Join(TimeSpan.FromMilliseconds(2));)
            waits = other.ThreadState.HasFlag(ThreadState.WaitSleepJoin) ? waits + 1 : 0;
    }
}
