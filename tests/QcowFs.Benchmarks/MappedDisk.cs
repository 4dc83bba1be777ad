// A fully mapped disk of 1 TiB: 16 million clusters, every table there. How long its check takes beside QEMU's, and what it costs to
// open it beside a small one. Both of a pair run one after the other, first one, then the other first, so that what else the machine
// does meets both; medians count.
using System.Diagnostics;
using System.Globalization;

namespace QcowFs.Benchmarks;

internal sealed class MappedDisk(BenchOptions options, TextWriter progress, CancellationToken cancellation)
{
    public const string CheckRow = "check-mapped-1t";
    public const string OpenRow = "open-mapped-1t";
    private const int MinRounds = 5;
    private const double OpenLimitMs = 100;
    private const double OpenLimitMiB = 64;

    /// <summary>The rows of this kind that the options choose.</summary>
    public static IReadOnlyList<string> Rows(BenchOptions options) => options.QcowFs is null ? [] :
        [.. new[] { CheckRow, OpenRow }.Where(row => options.Rows.Count == 0 || options.Rows.Any(word => row.Contains(word, StringComparison.Ordinal)))];

    /// <summary>Measures and prints the chosen rows.</summary>
    public void Run(TextWriter output)
    {
        IReadOnlyList<string> rows = Rows(options);
        if (rows.Count == 0)
        {
            return;
        }

        string parent = options.Place == Place.Disk ? options.DiskDirectory : "/dev/shm";
        string directory = Path.Combine(parent, $"qcowfs-bench-mapped-{Environment.ProcessId}");
        _ = Directory.CreateDirectory(directory);
        try
        {
            // The tables are written, 160 MiB of them; the data is holes.
            string mapped = Path.Combine(directory, "mapped.qcow2");
            _ = Command.Run(options.QcowFs!, ["create", "-f", "qcow2", "-o", "preallocation=metadata", mapped, "1T"], cancellation);
            if (rows.Contains(CheckRow))
            {
                Check(mapped, output);
            }

            if (rows.Contains(OpenRow))
            {
                Open(directory, mapped, output);
            }
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    private void Check(string mapped, TextWriter output)
    {
        List<Cost> ours = [], theirs = [];
        Alternate(
            () => ours.Add(Measured(CheckRow, "qcowfs", () => Command.Run(options.QcowFs!, ["check", mapped], cancellation))),
            () => theirs.Add(Measured(CheckRow, "qemu", () => Command.Run("qemu-img", ["check", "-q", mapped], cancellation))));
        double ratio = Statistics.Median(ours.Zip(theirs, (our, their) => their.Seconds / our.Seconds))!.Value;
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{CheckRow}: qcowfs {Statistics.Median(ours.Select(c => c.Seconds)):0.00} s (processor {Statistics.Median(ours.Select(c => c.Processor)):0.00} s), qemu-img {Statistics.Median(theirs.Select(c => c.Seconds)):0.00} s (processor {Statistics.Median(theirs.Select(c => c.Processor)):0.00} s): {ratio:0.0} x qemu  {(ratio > 1 ? "pass" : "MISS")} faster than qemu-img"));
    }

    private void Open(string directory, string mapped, TextWriter output)
    {
        string small = Path.Combine(directory, "small.qcow2");
        _ = Command.Run("qemu-img", ["create", "-q", "-f", "qcow2", small, "1G"], cancellation);
        string mountPoint = Path.Combine(directory, "mnt");
        File.WriteAllText(mountPoint, "");
        List<(double Ms, double MiB)> large = [], little = [];
        Alternate(() => large.Add(Mounted(mapped, mountPoint)), () => little.Add(Mounted(small, mountPoint)));
        double ms = Statistics.Median(large.Zip(little, (one, other) => one.Ms - other.Ms))!.Value;
        double mib = Statistics.Median(large.Zip(little, (one, other) => one.MiB - other.MiB))!.Value;
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{OpenRow}: {ms:0} ms and {mib:0.0} MiB resident more than a small disk ({Statistics.Median(little.Select(m => m.Ms)):0} ms, {Statistics.Median(little.Select(m => m.MiB)):0.0} MiB)  {(ms < OpenLimitMs ? "pass" : "MISS")} under {OpenLimitMs:0} ms, {(mib < OpenLimitMiB ? "pass" : "MISS")} under {OpenLimitMiB:0} MiB"));
    }

    private (double Ms, double MiB) Mounted(string image, string mountPoint)
    {
        long start = Stopwatch.GetTimestamp();
        using ServedDisk disk = new QcowFsContender(options.QcowFs!, options.MountOptions).Serve(image, mountPoint, only: null);
        double ms = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        byte[] block = new byte[4096];
        using (FileStream raw = new(mountPoint, FileMode.Open, FileAccess.Read))
        {
            // A place in each tenth of the disk, so that tables are read.
            for (int i = 0; i < 10; i++)
            {
                raw.Position = raw.Length / 10 * i;
                raw.ReadExactly(block);
            }
        }

        double mib = (disk.PeakMemory ?? 0) / (double)(1 << 20);
        progress.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{OpenRow,-24} {Path.GetFileName(image),-14} {ms,8:0} ms {mib,8:0.0} MiB"));
        return (ms, mib);
    }

    private void Alternate(Action one, Action other)
    {
        for (int round = 0; round < Math.Max(MinRounds, options.Rounds); round++)
        {
            (round % 2 == 0 ? one : other)();
            (round % 2 == 0 ? other : one)();
        }
    }

    private Cost Measured(string row, string name, Action action)
    {
        double processor = LibC.ChildrenSeconds();
        long start = Stopwatch.GetTimestamp();
        action();
        var cost = new Cost(Stopwatch.GetElapsedTime(start).TotalSeconds, LibC.ChildrenSeconds() - processor);
        progress.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{row,-24} {name,-7} {cost.Seconds,8:0.00} s {cost.Processor,8:0.00} s of processor"));
        return cost;
    }

    private readonly record struct Cost(double Seconds, double Processor);
}
