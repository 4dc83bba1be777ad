// How cost grows: with the size of the disk, with snapshots, with layers. A server's memory and the time of an operation should depend
// on none of the first two; a layer costs a lookup for each read that reaches through it.
using System.Diagnostics;
using System.Globalization;
using System.Text;
using Microsoft.Win32.SafeHandles;

namespace QcowFs.Benchmarks;

internal sealed class Scale(BenchOptions options, TextWriter progress, CancellationToken cancellation)
{
    private const int Places = 512;       // blocks that are written and read, evenly over the disk
    private const int Passes = 20;
    private const int Block = 4096;
    private const double MostMountMs = 60;  // above the smallest of its kind
    private const double MostMiB = 32;      // resident above the smallest of its kind: the metadata cache may fill
    private const double MostTimes = 1.5;   // an operation, against the smallest of its kind
    private const string PageName = "SCALE.md";

    private static readonly string[] Formats = ["qcow2", "vhdx"];
    private static readonly string[] Sizes = ["1G", "16G", "256G", "4T", "64T"];
    private static readonly int[] SnapshotCounts = [0, 1, 10, 100, 1000];
    private static readonly int[] LayerCounts = [1, 2, 4, 8, 16, 32];

    private readonly byte[] _block = new byte[Block];

    /// <summary>One line of the table; what was not measured is null.</summary>
    private sealed record Cost(string Kind, string Size, double MountMs, double MiB, double? NewUs, double? WriteUs, double ReadUs);

    /// <summary>Measures and prints all. Gives the exit code.</summary>
    public int Run(TextWriter output)
    {
        new Random(1).NextBytes(_block);
        string directory = Path.Combine("/dev/shm", $"qcowfs-bench-scale-{Environment.ProcessId}");
        _ = Directory.CreateDirectory(directory);
        List<string> page = [];
        try
        {
            double empty = EmptyServer(directory);
            page.Add(string.Create(CultureInfo.InvariantCulture, $"Resident memory is that above a server of an empty 1 MiB disk ({empty:0.0} MiB), after the operations. Mount is the median of 5 mounts until the disk"));
            page.Add($"answers. The others are one 4 KiB operation at a time at {Places} places over the whole disk, new: into blocks that the image lacks; the median of a");
            page.Add($"pass over the places, and of {5 * Passes} passes (new: 5) the least, since other work on the machine only adds.");
            page.Add("");
            page.Add("| what | | mount ms | MiB | new us | write us | read us | |");
            page.Add("|---|---|---|---|---|---|---|---|");
            foreach (string format in Formats)
                AddGroup(page, Sizes.Select(size => Sized(directory, format, size, empty)));
            AddGroup(page, SnapshotCounts.Select(count => WithSnapshots(directory, count, empty)));
            IReadOnlyList<Cost> layers = AddGroup(page, LayerCounts.Select(count => WithLayers(directory, count, empty)), growsByLayer: true);
            page.Add("");
            page.Add(PerLayer(layers));
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }

        page.ForEach(output.WriteLine);
        if (options.ReportDirectory is { } report)
            WritePage(report, page);
        return page.Any(line => line.Contains("MISS", StringComparison.Ordinal)) ? 1 : 0;
    }

    private static void WritePage(string directory, List<string> lines)
    {
        StringBuilder page = new();
        page.Append("# Scale\n\nWritten by `make bench-scale SCALE=\"--report tests/QcowFs.Benchmarks\"`; do not edit.\n\n");
        foreach (string fact in Machine.Facts())
            page.Append(CultureInfo.InvariantCulture, $"- {fact}\n");
        page.Append(CultureInfo.InvariantCulture, $"\n{string.Join('\n', lines)}\n");
        _ = Directory.CreateDirectory(directory);
        File.WriteAllText(Path.Combine(directory, PageName), page.ToString());
    }

    private static string PerLayer(IReadOnlyList<Cost> layers)
    {
        (Cost first, Cost last) = (layers[0], layers[^1]);
        double count = LayerCounts[^1] - LayerCounts[0];
        return string.Create(CultureInfo.InvariantCulture,
            $"A layer costs {(last.MountMs - first.MountMs) / count:0.0} ms at the mount, {(last.MiB - first.MiB) / count:0.00} MiB, and {(last.ReadUs - first.ReadUs) / count:0.00} us for a read that reaches through it.");
    }

    private IReadOnlyList<Cost> AddGroup(List<string> page, IEnumerable<Cost> costs, bool growsByLayer = false)
    {
        List<Cost> group = [];
        foreach (Cost cost in costs)
        {
            cancellation.ThrowIfCancellationRequested();
            group.Add(cost);
            Cost first = group[0];
            bool isFlat = cost.MountMs <= first.MountMs + MostMountMs && cost.MiB <= first.MiB + MostMiB && IsLevel(cost.NewUs, first.NewUs)
                && IsLevel(cost.WriteUs, first.WriteUs) && IsLevel(cost.ReadUs, first.ReadUs);
            string verdict = growsByLayer || group.Count == 1 ? "" : isFlat ? "flat" : "MISS";
            page.Add(string.Create(CultureInfo.InvariantCulture,
                $"| {cost.Kind} | {cost.Size} | {cost.MountMs:0} | {cost.MiB:0.0} | {Micros(cost.NewUs)} | {Micros(cost.WriteUs)} | {cost.ReadUs:0.0} | {verdict} |"));
            progress.WriteLine(page[^1]);
        }

        return group;
    }

    private static bool IsLevel(double? value, double? first) => value is null || value <= (first * MostTimes) + 1;

    private static string Micros(double? value) => value?.ToString("0.0", CultureInfo.InvariantCulture) ?? "-";

    private double EmptyServer(string directory)
    {
        string image = Create(directory, "empty.qcow2", "qcow2", "1M");
        return Mounts(directory, image, _ => { }).MiB;
    }

    private Cost Sized(string directory, string format, string size, double empty)
    {
        string image = Create(directory, $"disk.{format}", format, size);
        return Measured(directory, image, format, size, empty);
    }

    private Cost WithSnapshots(string directory, int count, double empty)
    {
        string image = Create(directory, "snapshots.qcow2", "qcow2", "1G");
        for (int i = 0; i < count; i++)
            _ = Command.Run("qemu-img", ["snapshot", "-c", $"snapshot-{i}", image], cancellation);
        return Measured(directory, image, "qcow2 with snapshots", count.ToString(CultureInfo.InvariantCulture), empty);
    }

    /// <summary>What is read lies in the lowest layer.</summary>
    private Cost WithLayers(string directory, int count, double empty)
    {
        string below = Create(directory, "layer-1.qcow2", "qcow2", "1G");
        _ = Mounts(directory, below, disk => Pass(disk, write: true, shift: 0));
        string image = below;
        for (int i = 2; i <= count; i++, below = image)
        {
            image = Path.Combine(directory, $"layer-{i}.qcow2");
            File.Delete(image);
            _ = Command.Run(options.QcowFs!, ["create", "-f", "qcow2", "-b", below, "-F", "qcow2", image], cancellation);
        }

        double read = double.MaxValue;
        (double ms, double mib) = Mounts(directory, image, disk => read = Math.Min(read, Repeated(() => Pass(disk, write: false, shift: 0))), rounds: 5);
        return new Cost("qcow2 with layers", count.ToString(CultureInfo.InvariantCulture), ms, mib - empty, null, null, read);
    }

    private Cost Measured(string directory, string image, string kind, string size, double empty)
    {
        double fresh = 0, write = 0, read = 0;
        int round = 0;
        (double ms, double mib) = Mounts(directory, image, disk =>
        {
            double now = Pass(disk, write: true, shift: round++); // each round's blocks are new ones
            fresh = round == 1 ? now : Math.Min(fresh, now);
            double again = Repeated(() => Pass(disk, write: true, shift: 0));
            double seen = Repeated(() => Pass(disk, write: false, shift: 0));
            (write, read) = round == 1 ? (again, seen) : (Math.Min(write, again), Math.Min(read, seen));
        }, rounds: 5);
        File.Delete(image);
        return new Cost(kind, size, ms, mib - empty, fresh, write, read);
    }

    private static double Repeated(Func<double> pass) => Enumerable.Range(0, Passes).Min(_ => pass());

    /// <summary>One operation at each place; gives the median in microseconds.</summary>
    private double Pass(SafeFileHandle disk, bool write, int shift)
    {
        long length = RandomAccess.GetLength(disk);
        byte[] buffer = write ? _block : new byte[Block];
        double[] times = new double[Places];
        long stride = length / Places & -(1L << 20);
        for (int i = 0; i < Places; i++)
        {
            // A stretch of 1 MiB for each place, of which every round uses another cluster.
            long offset = (i * stride) + (shift * (128L << 10));
            long start = Stopwatch.GetTimestamp();
            if (write)
                RandomAccess.Write(disk, buffer, offset);
            else
                _ = RandomAccess.Read(disk, buffer, offset);
            times[i] = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
        }

        return Statistics.Median(times)!.Value;
    }

    private (double Ms, double MiB) Mounts(string directory, string image, Action<SafeFileHandle> use, int rounds = 1)
    {
        string mountPoint = Path.Combine(directory, "mnt");
        _ = Directory.CreateDirectory(mountPoint);
        List<double> times = [], memory = [];
        for (int round = 0; round < rounds; round++)
        {
            long start = Stopwatch.GetTimestamp();
            _ = Command.Run(options.QcowFs!, ["mount", "-w", "--allow-references=all", image, mountPoint], cancellation);
            try
            {
                string raw = Path.Combine(mountPoint, Path.GetFileName(image) + ".raw");
                using SafeFileHandle disk = File.OpenHandle(raw, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
                _ = RandomAccess.Read(disk, new byte[Block], 0);
                times.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds);
                use(disk);
                memory.Add(QcowFsServer.ResidentMemory(mountPoint) / (double)(1 << 20));
            }
            finally
            {
                _ = Command.Run(options.QcowFs!, ["umount", mountPoint], CancellationToken.None);
            }
        }

        return (Statistics.Median(times)!.Value, Statistics.Median(memory)!.Value);
    }

    private string Create(string directory, string name, string format, string size)
    {
        string image = Path.Combine(directory, name);
        File.Delete(image);
        _ = Command.Run(options.QcowFs!, ["create", "-f", format, image, size], cancellation);
        return image;
    }
}
