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
                ["null-server", "--threads", var threads, var mountPoint, var file] => Serve(mountPoint, file, int.Parse(threads, CultureInfo.InvariantCulture)),
                ["null-server", "--io-uring", var mountPoint, var file] => Serve(mountPoint, file, 0),
                ["null-server", var mountPoint, var file] => Serve(mountPoint, file, Math.Max(2, Environment.ProcessorCount)),
                ["bench", .. var rest] => Bench(BenchOptions.Parse(rest)),
                _ => throw new UsageException("bench or null-server"),
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

    private static int Serve(string mountPoint, string file, int threads)
    {
        NullServer.Run(Path.GetFullPath(mountPoint), file, threads, overRings: threads == 0);
        return 0;
    }

    private static int Bench(BenchOptions options)
    {
        List<Workload> rows = [.. Workload.All.Where(row => options.Rows.Count == 0 || options.Rows.Any(word => row.Name.Contains(word, StringComparison.Ordinal)))];
        if (options.ListOnly)
        {
            rows.ForEach(row => Console.WriteLine($"{row.Name,-24} {row.Place,-6} {row.Unit,-5} fio {row.FioArguments}"));
            MappedDisk.Rows(options).ToList().ForEach(Console.WriteLine);
            DedupRows.Rows(options).ToList().ForEach(Console.WriteLine);
            return 0;
        }

        bool failed = false;

        // A signal ends fio, and the way out of every `finally` ends the servers and removes the files.
        using var cancellation = new CancellationTokenSource();
        void Cancel(PosixSignalContext context)
        {
            context.Cancel = true;
            cancellation.Cancel();
        }

        using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Cancel);
        using PosixSignalRegistration terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Cancel);
        using PosixSignalRegistration hangUp = PosixSignalRegistration.Create(PosixSignal.SIGHUP, Cancel);

        if (rows.Count > 0)
        {
            using IoUringSwitch? kernel = options.OverIoUring ? new IoUringSwitch() : null;
            failed = RunFio(options, rows, cancellation.Token);
        }

        new MappedDisk(options, Console.Error, cancellation.Token).Run(Console.Out);
        new DedupRows(options, Console.Error, cancellation.Token).Run(Console.Out);
        return failed ? 1 : 0;
    }

    private static bool RunFio(BenchOptions options, List<Workload> rows, CancellationToken cancellation)
    {
        IReadOnlyList<Contender> contenders = Contender.Choose(options);
        var bench = new SideBySide(options, contenders, Console.Error, cancellation);
        IReadOnlyList<RowResult> results = bench.Run(rows);
        Report.Write(Console.Out, results, contenders, bench.PeakMemory);
        return bench.HasFailed;
    }
}
