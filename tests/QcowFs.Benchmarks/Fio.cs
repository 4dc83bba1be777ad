// Runs fio for one row and reads its JSON.
using System.Globalization;
using System.Text.Json;

namespace QcowFs.Benchmarks;

internal static class Fio
{
    /// <summary>Runs <paramref name="workload"/> on <paramref name="disk"/>; the result is in the row's unit.</summary>
    public static double Run(Workload workload, ServedDisk disk, BenchOptions options, CancellationToken cancellation)
    {
        using var syncs = workload.Measure == Measure.SyncsPerSync ? new SyncCounter(disk.Server ?? throw new IOException("no server to count for")) : null;
        string output = Command.Run("fio", Arguments(workload, disk.Path, options), cancellation);
        using JsonDocument document = JsonDocument.Parse(output[output.IndexOf('{', StringComparison.Ordinal)..]);
        JsonElement job = document.RootElement.GetProperty("jobs")[0];
        return workload.Measure switch
        {
            Measure.OperationsPerSecond => Sum(job, "iops"),
            Measure.MebibytesPerSecond => Sum(job, "bw") / 1024,
            _ => syncs!.Count() / Sum(job, "total_ios"),
        };
    }

    private static IEnumerable<string> Arguments(Workload workload, string path, BenchOptions options)
    {
        string arguments = workload.FioArguments.Replace("{size}", options.DiskSize.ToString(CultureInfo.InvariantCulture), StringComparison.Ordinal);
        string[] time = workload.Timed ? [$"--runtime={options.Seconds}", "--time_based"] : [];
        return ["--name=row", $"--filename={path}", "--group_reporting", "--output-format=json", .. time, .. arguments.Split(' ')];
    }

    private static double Sum(JsonElement job, string member) =>
        job.GetProperty("read").GetProperty(member).GetDouble() + job.GetProperty("write").GetProperty(member).GetDouble();
}
