// Deduplication: what it costs where nothing repeats, what it brings where all does, and the memory of a large index.
using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using System.Security.Cryptography;
using QcowFs.Images;
using QcowFs.Images.Dedup;
using QcowFs.Storage;

namespace QcowFs.Benchmarks;

internal sealed class DedupRows(BenchOptions options, TextWriter progress, CancellationToken cancellation)
{
    public const string UniqueRow = "dedup-unique-1m";
    public const string DuplicateRow = "dedup-duplicate-1m";
    public const string SmallRow = "dedup-4k-clusters";
    public const string MemoryRow = "dedup-memory-100m";
    private const double LeastOfPlain = 0.7;
    private const double LeastTimesOnDisk = 1.5;
    private const double LeastClusters = 60_000;
    private const long SyntheticEntries = 100_000_000;
    private const int Chunk = 1 << 20;

    private readonly byte[] _buffer = RandomNumberGenerator.GetBytes(Chunk);

    private long Bytes => Math.Min(options.DiskSize, 1L << 30);

    /// <summary>The rows of this kind that the options choose.</summary>
    public static IReadOnlyList<string> Rows(BenchOptions options) => options.QcowFs is null ? [] :
        [.. new[] { UniqueRow, DuplicateRow, SmallRow, MemoryRow }.Where(row => options.Rows.Count == 0 || options.Rows.Any(word => row.Contains(word, StringComparison.Ordinal)))];

    /// <summary>Measures and prints the chosen rows.</summary>
    public void Run(TextWriter output)
    {
        IReadOnlyList<string> rows = Rows(options);
        foreach (Place place in Enum.GetValues<Place>().Where(place => rows.Count > 0 && (options.Place ?? place) == place))
        {
            string directory = Path.Combine(place == Place.Tmpfs ? "/dev/shm" : options.DiskDirectory, $"qcowfs-bench-dedup-{Environment.ProcessId}");
            _ = Directory.CreateDirectory(directory);
            try
            {
                if (rows.Contains(UniqueRow) || rows.Contains(DuplicateRow))
                {
                    Compare(directory, place, rows, output);
                }

                if (rows.Contains(SmallRow) && place == Place.Tmpfs)
                {
                    SmallClusters(directory, output);
                }

                if (rows.Contains(MemoryRow) && place == Place.Disk)
                {
                    Memory(directory, output);
                }
            }
            finally
            {
                Directory.Delete(directory, recursive: true);
            }
        }
    }

    private void Compare(string directory, Place place, IReadOnlyList<string> rows, TextWriter output)
    {
        List<double> unique = [], duplicate = [];
        for (int round = 0; round < options.Rounds; round++)
        {
            (double plain, _) = WriteTwice(directory, place, "64k", dedup: false);
            (double first, double second) = WriteTwice(directory, place, "64k", dedup: true);
            unique.Add(first / plain);
            duplicate.Add(second / plain);
        }

        double times = place == Place.Disk ? LeastTimesOnDisk : 1;
        if (rows.Contains(UniqueRow))
        {
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{UniqueRow} on {place}: {Statistics.Median(unique):P0} of the same mount without --dedup  {(Statistics.Median(unique) >= LeastOfPlain ? "pass" : "MISS")} {LeastOfPlain:P0}"));
        }

        if (rows.Contains(DuplicateRow))
        {
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{DuplicateRow} on {place}: {Statistics.Median(duplicate):0.0} x a plain allocating write  {(Statistics.Median(duplicate) >= times ? "pass" : "MISS")} {times:0.0} x"));
        }
    }

    private void SmallClusters(string directory, TextWriter output)
    {
        List<double> rates = [];
        for (int round = 0; round < options.Rounds; round++)
        {
            (double first, double second) = WriteTwice(directory, Place.Tmpfs, "4k", dedup: true);
            rates.Add(Math.Min(first, second) * 256);
        }

        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{SmallRow}: {Statistics.Median(rates):N0} cluster writes/s  {(Statistics.Median(rates) >= LeastClusters ? "pass" : "MISS")} {LeastClusters:N0}"));
    }

    /// <summary>Writes a stretch of the disk that holds nothing twice, then the same bytes to another stretch; each ends with fsync.
    /// Gives MiB/s of both.</summary>
    private (double First, double Second) WriteTwice(string directory, Place place, string cluster, bool dedup)
    {
        string image = Path.Combine(directory, "disk.qcow2");
        string mountPoint = Path.Combine(directory, "mnt");
        File.Delete(image);
        File.Delete(image + ".dedup");
        File.WriteAllText(mountPoint, "");
        _ = Command.Run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", $"cluster_size={cluster}", image, $"{2 * Bytes}"], cancellation);
        string? mountOptions = dedup ? string.Join(',', new[] { options.MountOptions, "dedup" }.OfType<string>()) : options.MountOptions;
        double first, second;
        using (ServedDisk disk = new QcowFsContender(options.QcowFs!, mountOptions).Serve(image, mountPoint, only: null))
        {
            first = WriteStretch(mountPoint, 0);
            second = WriteStretch(mountPoint, Bytes);
        }

        _ = Command.Run("qemu-img", ["check", "-q", image], cancellation);
        progress.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"dedup {(dedup ? "on " : "off")} {place,-6} {cluster,-4} {first,8:N0} MiB/s new {second,8:N0} MiB/s again"));
        return (first, second);
    }

    private double WriteStretch(string path, long offset)
    {
        using FileStream file = new(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite, bufferSize: 0) { Position = offset };
        long start = Stopwatch.GetTimestamp();
        for (long at = 0; at < Bytes; at += Chunk)
        {
            cancellation.ThrowIfCancellationRequested();

            // Every 4 KiB of the stretch is different, and the same in both stretches.
            for (int i = 0; i < Chunk; i += 4096)
            {
                BinaryPrimitives.WriteInt64LittleEndian(_buffer.AsSpan(i), at + i);
            }

            file.Write(_buffer);
        }

        file.Flush(flushToDisk: true);
        return Bytes / (double)(1 << 20) / Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    /// <summary>An index of 100 million blocks under --dedup-memory=1G --dedup-index-size=8G: its memory, speed and the time to open it.</summary>
    private void Memory(string directory, TextWriter output)
    {
        const long budget = 1L << 30;
        string path = Path.Combine(directory, "index");
        DedupSettings settings = new() { Memory = budget, IndexSize = 8L << 30, FillRandom = RandomNumberGenerator.Fill };
        ImageBinding image = new(1, 2, 3, 4, 5);
        long start = Stopwatch.GetTimestamp();
        long most = 0;
        long entries;
        using (DedupIndex index = DedupIndex.Open(HostFiles.Open(path, StorageAccess.Create), settings, 4096, image, progress.WriteLine))
        {
            for (long i = 0; i < SyntheticEntries; i++)
            {
                index.Insert(new IndexEntry(HashOf(i), i, i));
                if (i % 1_000_000 != 0)
                {
                    continue;
                }

                cancellation.ThrowIfCancellationRequested();
                most = Math.Max(most, index.Memory);
                if (index.Dropped > 0)
                {
                    index.WaitForFreezing();
                }
            }

            index.WaitForFreezing();
            most = Math.Max(most, index.Memory);
            entries = index.Entries;
            _ = index.TryFlush(null);
            index.Bind(image);
        }

        double insert = SyntheticEntries / Stopwatch.GetElapsedTime(start).TotalSeconds;
        start = Stopwatch.GetTimestamp();
        using DedupIndex again = DedupIndex.Open(HostFiles.Open(path, StorageAccess.Write), settings, 4096, image, progress.WriteLine);
        double open = Stopwatch.GetElapsedTime(start).TotalSeconds;
        start = Stopwatch.GetTimestamp();
        const int lookups = 200_000;
        int found = 0;
        IndexEntry?[] answers = new IndexEntry?[1];
        for (long i = 0; i < lookups; i++)
        {
            again.Find([HashOf(i * (SyntheticEntries / lookups))], answers);
            found += answers[0] is null ? 0 : 1;
        }

        double lookup = lookups / Stopwatch.GetElapsedTime(start).TotalSeconds;
        double each = again.Memory / (double)Math.Max(1, entries);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{MemoryRow}: {entries:N0} entries, {again.Memory >> 20} MiB, {each:0.0} bytes each, at most {most >> 20} MiB while filling; file {new FileInfo(path).Length >> 20} MiB  {(most <= budget && each <= 8 ? "pass" : "MISS")} 1024 MiB, 8 bytes"));
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{MemoryRow}: {insert:N0} inserts/s, {lookup:N0} lookups/s ({found * 100.0 / lookups:0.0} % found), opened in {open:0.0} s"));
    }

    private static UInt128 HashOf(long number)
    {
        ulong low = unchecked((ulong)number * 0x9E3779B97F4A7C15UL);
        low = unchecked((low ^ (low >> 29)) * 0xBF58476D1CE4E5B9UL);
        ulong high = unchecked((low ^ (low >> 32)) * 0x94D049BB133111EBUL);
        return new UInt128(high ^ (high >> 31), low ^ (low >> 33));
    }
}
