// The promises of CrashTests, kept with a journal: after a crash at any instant everything synced is there, every other sector is old or
// new, nothing but leaks is found; after a kill everything acknowledged is there. In the ring's turns, checkpoints, replays, the making of
// the journal and its end, and in a second crash after a working spell.
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class JournalCrashTests(ITestOutputHelper output)
{
    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 70_144),
        new Geometry("cluster_size=512,refcount_bits=64", 70_144),
        new Geometry("cluster_size=2048", 200_192),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192),
        new Geometry("cluster_size=2048", 70_144, InitialContent.Backing),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Backing),
        new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Snapshot),
        new Geometry("cluster_size=4096", 100_352, InitialContent.Compressed),
        new Geometry("cluster_size=512", 70_144, InitialContent.Full),
        new Geometry("cluster_size=1024", 70_144, InitialContent.ExternalData),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Every_instant_of_short_runs(Geometry geometry)
    {
        foreach (ulong seed in Seeds.Between(1, 2))
            new CrashRun(geometry, seed) { RingBytes = 32 << 10 }.EveryInstant(steps: 10, choices: 16, output.WriteLine);
    }

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Random_instants_of_long_runs(Geometry geometry)
    {
        foreach (ulong seed in Seeds.Between(100, 104))
            new CrashRun(geometry, seed) { RingBytes = 64 << 10 }.RandomInstants(steps: 150, instants: 6, choices: 12, output.WriteLine);
    }
}
