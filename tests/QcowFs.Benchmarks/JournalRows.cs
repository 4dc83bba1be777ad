// The replay of a journal that is full: what a mount after a crash takes at worst.
using System.Diagnostics;
using System.Globalization;
using QcowFs.Images;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Benchmarks;

internal sealed class JournalRows(BenchOptions options, CancellationToken cancellation)
{
    public const string ReplayRow = "journal-replay-64m";
    private const double MostMilliseconds = 200;

    /// <summary>The rows of this kind that the options choose.</summary>
    public static IReadOnlyList<string> Rows(BenchOptions options) =>
        options.Rows.Count == 0 || options.Rows.Any(word => ReplayRow.Contains(word, StringComparison.Ordinal)) ? [ReplayRow] : [];

    /// <summary>Measures and prints the row, unless the options leave it out.</summary>
    public void Run(TextWriter output)
    {
        if (Rows(options).Count == 0 || options.Place is Place.Tmpfs)
        {
            return;
        }

        string directory = Path.Combine(options.DiskDirectory, $"qcowfs-bench-journal-{Environment.ProcessId}");
        _ = Directory.CreateDirectory(directory);
        try
        {
            string image = Path.Combine(directory, "disk.qcow2");
            List<double> times = [];
            int records = 0;
            for (int round = 0; round <= options.Rounds; round++)
            {
                File.Delete(image);
                _ = Command.Run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "4G"], cancellation);
                using (FileStorage file = HostFiles.Open(image, StorageAccess.Write))
                {
                    records = FullJournal.Make(file, JournalLayout.MaxRingBytes);
                }

                long start = Stopwatch.GetTimestamp();
                using (IDiskImage disk = new ImageOpener(HostFileSystem.Instance).Open(image, new OpenOptions { Writable = true }))
                {
                    // The first round is for the compiler.
                    if (round > 0)
                    {
                        times.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds);
                    }

                    disk.Close();
                }

                _ = Command.Run("qemu-img", ["check", "-q", image], cancellation);
            }

            double[] sorted = [.. times.Order()];
            double median = sorted[sorted.Length / 2];
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{ReplayRow}: {records:N0} records replayed by an open in {median:N0} ms ({sorted[0]:N0} to {sorted[^1]:N0})  {(median <= MostMilliseconds ? "pass" : "MISS")} {MostMilliseconds:N0} ms"));
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }
}
