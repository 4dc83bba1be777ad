// What the fuzz tests of all formats share: many damaged files from a few good ones, and the bounds that every call keeps.
using System.Diagnostics;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Support;

internal static class Fuzzing
{
    // Far above what any call takes: only an endless loop, or work that does not follow the file's size, gets there.
    private static readonly TimeSpan HangLimit = TimeSpan.FromSeconds(60);

    /// <summary>How many files to try: so many, or as QCOWFS_FUZZ_ROUNDS says.</summary>
    public static int Rounds(int usual) =>
        int.TryParse(Environment.GetEnvironmentVariable("QCOWFS_FUZZ_ROUNDS"), out int wanted) ? wanted : usual;

    /// <summary>Runs a test on every specimen with every seed, and fails with the names of those that it failed for.</summary>
    public static void ForEach<TSpecimen>(int rounds, IEnumerable<TSpecimen> specimens, Func<TSpecimen, string> name, Action<TSpecimen, int> test)
    {
        List<string> failures = [];
        foreach (TSpecimen specimen in specimens)
        {
            foreach (ulong seed in Seeds.Between(0, (ulong)Rounds(rounds) - 1))
            {
                try
                {
                    test(specimen, unchecked((int)seed));
                }
                catch (Exception fault)
                {
                    string[] lines = fault.ToString().Split('\n', StringSplitOptions.TrimEntries);
                    failures.Add($"specimen {name(specimen)}, seed {seed}: {string.Join(" ", lines.Take(4))}");
                }
            }
        }

        Assert.True(failures.Count == 0, $"{failures.Count} failures\n" + string.Join("\n", failures.Take(10)));
    }

    /// <summary>Runs a call that may end well or with a typed fault of one line, and with nothing else, in bounded time and memory.</summary>
    public static void Bounded(string what, long allocationLimit, Action action)
    {
        long before = GC.GetAllocatedBytesForCurrentThread();
        Stopwatch watch = Stopwatch.StartNew();
        try
        {
            action();
        }
        catch (Exception fault) when (fault is ImageFormatException or StorageException or ImageInUseException)
        {
            Assert.DoesNotContain('\n', fault.Message);
        }

        Assert.True(watch.Elapsed < HangLimit, $"{what} took {watch.Elapsed}");
        long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
        Assert.True(allocated < allocationLimit, $"{what} allocated {allocated} bytes");
    }
}
