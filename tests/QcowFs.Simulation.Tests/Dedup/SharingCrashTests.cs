// After a crash at any instant of deduplicated writes: every byte is one that it may be, no cluster has two mappings while one of them
// carries COPIED (I11), no count is too low (I2); and the next session, whose writes find the same content again, ends with a clean image.
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class SharingCrashTests(ITestOutputHelper output)
{
    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 20_480),
        new Geometry("cluster_size=512,refcount_bits=2", 20_480),
        new Geometry("cluster_size=512,refcount_bits=64", 20_992),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192),
        new Geometry("cluster_size=512", 20_480, InitialContent.Backing),
        new Geometry("cluster_size=512", 20_480, InitialContent.Snapshot),
        new Geometry("cluster_size=512", 70_144, InitialContent.Full),
        new Geometry("cluster_size=4096", 100_352, InitialContent.Compressed),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Every_instant_of_short_runs(Geometry geometry)
    {
        long shared = 0;
        foreach (ulong seed in Seeds.Between(1, 4))
        {
            SharingRun run = new(geometry, seed, weakHash: seed % 2 == 0);
            run.EveryInstant(steps: 14, choices: 20);
            shared += run.Shared;
        }

        output.WriteLine($"{geometry}: {shared} blocks shared");
        Assert.True(shared > 0, "nothing was shared");
    }
}
