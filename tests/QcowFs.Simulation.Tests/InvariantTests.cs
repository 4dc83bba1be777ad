// The allocator's, the cache's and the counts' invariants, looked at after every single step of long random runs over tiny clusters and
// caches of two pages, where rare paths are common. QCOWFS_INVARIANT_STEPS makes the runs longer.
using System.Diagnostics;
using QcowFs.Simulation.Tests.Invariants;
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class InvariantTests(ITestOutputHelper output)
{
    private const int TotalSteps = 100_000;

    private static readonly Geometry[] Geometries =
    [
        new("cluster_size=512", 30_208),
        new("cluster_size=512", 70_144, InitialContent.Full),
        new("cluster_size=512", 40_448, InitialContent.Snapshot),
        new("cluster_size=512", 40_448, InitialContent.Compressed),
        new("cluster_size=512", 40_448, InitialContent.Backing),
        new("cluster_size=512", 40_448, InitialContent.ExternalData),
        new("cluster_size=512,compat=0.10", 40_448),
        new("cluster_size=512,compat=0.10", 40_448, InitialContent.Backing),
        new("cluster_size=512,refcount_bits=1", 40_448, InitialContent.Compressed),
        new("cluster_size=512,refcount_bits=2", 40_448, InitialContent.Full),
        new("cluster_size=512,refcount_bits=4", 40_448, InitialContent.Compressed),
        new("cluster_size=512,refcount_bits=8", 40_448, InitialContent.Snapshot),
        new("cluster_size=512,refcount_bits=32", 40_448),
        new("cluster_size=512,refcount_bits=64", 70_144, InitialContent.Snapshot),
        new("cluster_size=1024,refcount_bits=64", 40_448, InitialContent.Compressed),
        new("cluster_size=512", 40_448, InitialContent.Empty, Compress: true),
        new("cluster_size=2048,refcount_bits=2", 60_416, InitialContent.Compressed, Compress: true),
        new("cluster_size=4096", 100_352, InitialContent.Backing, Compress: true),
        new("cluster_size=16384,extended_l2=on", 100_352, InitialContent.Snapshot),
    ];

    [Fact]
    public void Hold_after_every_step()
    {
        long steps = long.TryParse(Environment.GetEnvironmentVariable("QCOWFS_INVARIANT_STEPS"), out long wanted) ? wanted : TotalSteps;

        // Long runs are cut, so that each starts from the image anew and a failure is soon repeated.
        int runs = (int)Math.Max(1, steps / TotalSteps) * 2;
        int each = (int)(steps / runs / Geometries.Length) + 1;
        ulong[] seeds = [.. Seeds.Between(1, (ulong)runs)];
        output.WriteLine($"{Geometries.Length} geometries, {runs} runs of {each} steps, seeds from {seeds[0]}");
        long[] ticks = new long[Geometries.Length];
        Parallel.ForEach(
            from seed in seeds from index in Enumerable.Range(0, Geometries.Length) select (seed, index, geometry: Geometries[index]),
            new ParallelOptions { MaxDegreeOfParallelism = Environment.ProcessorCount },
            run =>
            {
                // QEMU calls a missing flag an error, so every second run is for its judgement and the others go further. A page that
                // should have gone is only met again where there is room for it.
                bool further = run.seed % 2 == 0;
                using InvariantRun one = new(run.geometry, run.seed) { LosesFlags = further, CachePages = further ? 16 : 2 };
                long start = Stopwatch.GetTimestamp();
                one.Run(each);
                Interlocked.Add(ref ticks[run.index], Stopwatch.GetTimestamp() - start);
                if (!one.LosesFlags)
                    JudgeByQemu(one, run.geometry, run.seed);
            });
        for (int i = 0; i < Geometries.Length; i++)
            output.WriteLine($"{Geometries[i]}: {ticks[i] * 1e6 / Stopwatch.Frequency / ((double)runs * each):F0} microseconds a step");
    }

    /// <summary>The refcount table is one cluster of 64 blocks of 64 counts: the runs cross what it can hold.</summary>
    [Fact]
    public void Hold_while_the_refcount_table_moves()
    {
        Geometry geometry = new("cluster_size=512,refcount_bits=64", 2_300_416);
        foreach (ulong seed in Seeds.Between(1, 2))
        {
            using InvariantRun run = new(geometry, seed) { Prefilled = 2_026_496 };
            byte[] before = run.File[48..56];
            run.Run(60);
            Assert.NotEqual(before, run.File[48..56]);
            JudgeByQemu(run, geometry, seed);
        }
    }

    private static void JudgeByQemu(InvariantRun run, Geometry geometry, ulong seed)
    {
        SimulatedDisk disk = new();
        disk.Create("image", run.File);
        if (run.Data is not null)
            disk.Create("data", run.Data);
        SimulatedImages.JudgeByQemu(disk, SimulatedImages.Prepare(geometry), run.Model, $"{geometry} seed {seed}");
    }
}
