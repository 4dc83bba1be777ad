// After a crash at any instant a VHDX opens, its check finds nothing, every byte that a sync acknowledged is intact, and every other
// sector is old or new (promise 1). Tried after every write, sync and change of length of short runs, in replays too, with entries that
// wrap at the ring's end, and with a second crash after a working spell.
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxCrashTests(ITestOutputHelper output)
{
    /// <summary>The ring has 1 MiB: a session that begins three sectors before its end wraps at once.</summary>
    private const long NearRingEnd = (1 << 20) - (3 * 4096);

    [Theory]
    [InlineData(VhdxKind.Dynamic, 1, 0)]
    [InlineData(VhdxKind.Full, 7, NearRingEnd)]
    [InlineData(VhdxKind.Differencing, 3, NearRingEnd)]
    [InlineData(VhdxKind.Differencing4K, 4, 0)]
    public void Every_instant_of_short_runs(VhdxKind kind, ulong seed, long logStart) =>
        new VhdxCrashRun(kind, Seeds.Between(seed, seed).First()) { LogStart = logStart }.EveryInstant(steps: 12, choices: 9, output.WriteLine);

    [Theory]
    [InlineData(VhdxKind.Dynamic)]
    [InlineData(VhdxKind.Full)]
    [InlineData(VhdxKind.Fixed)]
    [InlineData(VhdxKind.Differencing)]
    public void Random_instants_of_long_runs(VhdxKind kind)
    {
        foreach (ulong seed in Seeds.Between(100, 101))
            new VhdxCrashRun(kind, seed) { LogStart = NearRingEnd }.RandomInstants(steps: 60, instants: 3, choices: 8, output.WriteLine);
    }
}
