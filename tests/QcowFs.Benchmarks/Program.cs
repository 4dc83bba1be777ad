// Entry point of the benchmarks.
namespace QcowFs.Benchmarks;

internal static class Program
{
    private static int Main() => 64;
}
