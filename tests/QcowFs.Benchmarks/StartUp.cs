// What a person waits for: `info`, and `mount` until the disk answers.
using System.Diagnostics;
using System.Globalization;

namespace QcowFs.Benchmarks;

internal sealed class StartUp(BenchOptions options, TextWriter progress, CancellationToken cancellation)
{
    public const string InfoRow = "startup-info";
    public const string MountRow = "startup-mount";
    private const int Runs = 15;
    private const double InfoLimitMs = 120;
    private const double MountLimitMs = 300;

    /// <summary>The rows of this kind that the options choose.</summary>
    public static IReadOnlyList<string> Rows(BenchOptions options) => options.QcowFs is null ? [] :
        [.. new[] { InfoRow, MountRow }.Where(row => options.Rows.Count == 0 || options.Rows.Any(word => row.Contains(word, StringComparison.Ordinal)))];

    /// <summary>Measures and prints the chosen rows.</summary>
    public void Run(TextWriter output)
    {
        IReadOnlyList<string> rows = Rows(options);
        if (rows.Count == 0)
            return;
        string directory = Path.Combine("/dev/shm", $"qcowfs-bench-start-{Environment.ProcessId}");
        _ = Directory.CreateDirectory(directory);
        try
        {
            string image = Path.Combine(directory, "disk.qcow2");
            string mountPoint = Path.Combine(directory, "mnt");
            File.WriteAllText(mountPoint, "");
            _ = Command.Run("qemu-img", ["create", "-q", "-f", "qcow2", image, "1G"], cancellation);
            if (rows.Contains(InfoRow))
                Print(output, InfoRow, "until `qcowfs info` has ended", InfoLimitMs, () => Timed(() => Command.Run(options.QcowFs!, ["info", image], cancellation)));
            if (rows.Contains(MountRow))
                Print(output, MountRow, "until `qcowfs mount` has ended and the first block is read", MountLimitMs, () => Mounted(image, mountPoint));
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    private void Print(TextWriter output, string row, string what, double limit, Func<double> measure)
    {
        _ = measure(); // the program's files come into the page cache
        List<double> values = [.. Enumerable.Range(0, Runs).Select(_ => measure())];
        double median = Statistics.Median(values)!.Value;
        progress.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{row,-28} {median,8:0} ms"));
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{row}: {median:0} ms {what} ({values.Min():0} to {values.Max():0} ms in {Runs} runs)  {(median < limit ? "pass" : "MISS")} under {limit:0} ms"));
    }

    private double Mounted(string image, string mountPoint)
    {
        double ms = Timed(() =>
        {
            _ = Command.Run(options.QcowFs!, ["mount", "-w", image, mountPoint], cancellation);
            using FileStream disk = new(mountPoint, FileMode.Open, FileAccess.Read, FileShare.ReadWrite, bufferSize: 0);
            disk.ReadExactly(new byte[4096]);
        });
        _ = Command.Run(options.QcowFs!, ["umount", mountPoint], cancellation);
        return ms;
    }

    private static double Timed(Action action)
    {
        long start = Stopwatch.GetTimestamp();
        action();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    }
}
