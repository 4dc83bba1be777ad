// Entry point of the benchmarks: `bench` compares side by side, `null-server` is one of those compared.
using System.Globalization;
using System.Runtime.InteropServices;

namespace QcowFs.Benchmarks;

internal static class Program
{
    private static int Main(string[] arguments)
    {
        try
        {
            return arguments switch
            {
                ["null-server", "--passthrough", var mountPoint, var file] => Serve(mountPoint, file, Math.Max(2, Environment.ProcessorCount), passthrough: true),
                ["null-server", "--direct", var mountPoint, var file] => Serve(mountPoint, file, NullServer.ThreadsForDisks, direct: true),
                ["null-server", "--threads", var threads, var mountPoint, var file] => Serve(mountPoint, file, int.Parse(threads, CultureInfo.InvariantCulture)),
                ["null-server", "--io-uring", var mountPoint, var file] => Serve(mountPoint, file, 0),
                ["null-server", var mountPoint, var file] => Serve(mountPoint, file, Math.Max(2, Environment.ProcessorCount)),
                ["bench", .. var rest] => Bench(BenchOptions.Parse(rest)),
                ["scale", .. var rest] => Scaled(BenchOptions.Parse(rest)),
                ["micro", .. var words] => Micro.MicroBenchmarks.Run(words),
                _ => throw new UsageException("bench, scale, micro or null-server"),
            };
        }
        catch (UsageException wrong)
        {
            Console.Error.WriteLine(wrong.Message);
            Console.Error.WriteLine(BenchOptions.Usage);
            return 64;
        }
        catch (IOException failure)
        {
            Console.Error.WriteLine(failure.Message);
            return 1;
        }
        catch (OperationCanceledException)
        {
            Console.Error.WriteLine("interrupted");
            return 130;
        }
    }

    private static int Serve(string mountPoint, string file, int threads, bool passthrough = false, bool direct = false)
    {
        NullServer.Run(Path.GetFullPath(mountPoint), file, threads, overRings: threads == 0, passthrough, direct);
        return 0;
    }

    private static int Bench(BenchOptions options)
    {
        List<Workload> rows = [.. Workload.All.Where(row => options.Rows.Count == 0 || options.Rows.Any(word => row.Name.Contains(word, StringComparison.Ordinal)))];
        if (options.ListOnly)
        {
            rows.ForEach(row => Console.WriteLine($"{row.Name,-28} {row.Place,-6} {row.Unit,-5} fio {row.FioArguments}"));
            foreach (string row in (string[])[.. StartUp.Rows(options), .. MappedDisk.Rows(options), .. DedupRows.Rows(options), .. JournalRows.Rows(options)])
                Console.WriteLine(row);
            return 0;
        }

        return Cancellable(cancellation => Bench(options, rows, cancellation));
    }

    private static int Bench(BenchOptions options, List<Workload> rows, CancellationToken cancellation)
    {
        using IoUringSwitch? kernel = options.SwitchesIoUringOn ? new IoUringSwitch() : null;
        IReadOnlyList<Contender> contenders = Contender.Choose(options);
        var bench = new SideBySide(options, contenders, Console.Error, cancellation);
        IReadOnlyList<RowResult> results = rows.Count > 0 ? bench.Run(rows) : [];
        using StringWriter others = new();
        new StartUp(options, Console.Error, cancellation).Run(others);
        new MappedDisk(options, Console.Error, cancellation).Run(others);
        new DedupRows(options, Console.Error, cancellation).Run(others);
        new JournalRows(options, cancellation).Run(others);
        Report report = new(options, contenders, results, bench.PeakMemory, others.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries));
        report.Write(Console.Out);
        Console.Out.Write(others);
        if (options.ReportDirectory is { } directory)
            report.WritePage(directory);
        return bench.HasFailed ? 1 : 0;
    }

    private static int Scaled(BenchOptions options) => options.QcowFs is null
        ? throw new UsageException("scale: --qcowfs is needed")
        : Cancellable(cancellation => new Scale(options, Console.Error, cancellation).Run(Console.Out));

    // A signal ends what runs, and the way out of every `finally` ends the servers and removes the files.
    private static int Cancellable(Func<CancellationToken, int> run)
    {
        using var cancellation = new CancellationTokenSource();
        void Cancel(PosixSignalContext context)
        {
            context.Cancel = true;
            cancellation.Cancel();
        }

        using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Cancel);
        using PosixSignalRegistration terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Cancel);
        using PosixSignalRegistration hangUp = PosixSignalRegistration.Create(PosixSignal.SIGHUP, Cancel);
        return run(cancellation.Token);
    }
}
