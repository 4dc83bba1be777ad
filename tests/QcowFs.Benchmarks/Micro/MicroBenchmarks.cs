// The pieces of the hot path by themselves, without kernel and threads. In this process and in short runs: all of them take about a
// minute, and what counts is how they compare with yesterday's on the same machine.
using BenchmarkDotNet.Columns;
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Diagnosers;
using BenchmarkDotNet.Exporters;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Loggers;
using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;
using BenchmarkDotNet.Toolchains.InProcess.Emit;
using Perfolizer.Horology;

namespace QcowFs.Benchmarks.Micro;

internal static class MicroBenchmarks
{
    private static readonly Type[] All = [typeof(LookupBenchmark), typeof(CacheBenchmark), typeof(CommitBenchmark), typeof(HashBenchmark), typeof(RequestBenchmark)];

    /// <summary>Runs those whose type's name contains one of the words; all without a word. Gives the exit code.</summary>
    public static int Run(string[] words)
    {
        string artifacts = Directory.CreateTempSubdirectory("qcowfs-micro").FullName;
        try
        {
            ManualConfig config = ManualConfig.CreateEmpty()
                .AddJob(Job.Default.WithToolchain(InProcessEmitToolchain.Instance).WithLaunchCount(1).WithWarmupCount(3).WithIterationCount(8)
                    .WithIterationTime(TimeInterval.FromMilliseconds(150)))
                .AddDiagnoser(MemoryDiagnoser.Default)
                .AddColumnProvider(DefaultColumnProviders.Instance)
                .AddExporter(MarkdownExporter.Console)
                .AddLogger(NullLogger.Instance)
                .WithArtifactsPath(artifacts);
            bool isGood = true;
            foreach (Type type in All.Where(type => words.Length == 0 || words.Any(word => type.Name.Contains(word, StringComparison.OrdinalIgnoreCase))))
            {
                Summary summary = BenchmarkRunner.Run(type, config);
                MarkdownExporter.Console.ExportToLog(summary, ConsoleLogger.Default);
                isGood &= !summary.HasCriticalValidationErrors && summary.Reports.All(report => report.Success);
            }

            return isGood ? 0 : 1;
        }
        finally
        {
            Directory.Delete(artifacts, recursive: true);
        }
    }
}
