// After a crash at any instant: the image opens, check finds nothing but leaks, every byte that a sync acknowledged is intact, and
// every other sector is old or new (promise 1). Tried after every write, sync and set-length of short runs, by all the ways in which
// unsynced writes can survive, and with a second crash after a working spell.
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class CrashTests(ITestOutputHelper output)
{
    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 70_144),
        new Geometry("cluster_size=512,refcount_bits=64", 70_144),
        new Geometry("cluster_size=512,refcount_bits=1", 70_144),
        new Geometry("cluster_size=512,compat=0.10", 70_144),
        new Geometry("cluster_size=2048", 200_192),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192),
        new Geometry("cluster_size=512", 70_144, InitialContent.Backing),
        new Geometry("cluster_size=512,compat=0.10", 70_144, InitialContent.Backing),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Backing),
        new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Snapshot),
        new Geometry("cluster_size=4096", 100_352, InitialContent.Compressed),
        new Geometry("cluster_size=4096", 16_384, InitialContent.Compressed),
        new Geometry("cluster_size=512", 70_144, InitialContent.Full),
        new Geometry("cluster_size=512", 70_144, InitialContent.ExternalData),
        new Geometry("cluster_size=512,data_file_raw=on", 70_144, InitialContent.ExternalData),
        new Geometry("cluster_size=1024", 40_448, Compress: true),
        new Geometry("cluster_size=2048", 70_144, InitialContent.Backing, Compress: true),
        new Geometry("cluster_size=2048,refcount_bits=1", 70_144, Compress: true),
        new Geometry("cluster_size=2048,refcount_bits=2,compression_type=zstd", 70_144, Compress: true),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Snapshot, Compress: true),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Every_instant_of_short_runs(Geometry geometry)
    {
        foreach (ulong seed in Seeds.Between(1, 3))
            new CrashRun(geometry, seed).EveryInstant(steps: 10, choices: 24, output.WriteLine);
    }

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Random_instants_of_long_runs(Geometry geometry)
    {
        foreach (ulong seed in Seeds.Between(100, 105))
            new CrashRun(geometry, seed).RandomInstants(steps: 150, instants: 6, choices: 12, output.WriteLine);
    }

    /// <summary>The refcount table is one cluster of 64 blocks of 64 counts: the run crosses what it can hold.</summary>
    [Fact]
    public void Refcount_table_relocation()
    {
        Geometry geometry = new("cluster_size=512,refcount_bits=64", 2_300_416);
        new CrashRun(geometry, seed: 1) { PrefilledBytes = 2_026_496, OperateFrom = 2_026_496, Relocates = true }
            .EveryInstant(steps: 12, choices: 12, output.WriteLine);
    }
}
