// Runs every row for every contender in turns, several rounds, so that a change of the machine's mood meets all of them.
namespace QcowFs.Benchmarks;

/// <summary>What was measured for one row: contender -> one value a round.</summary>
internal sealed record RowResult(Workload Workload, IReadOnlyDictionary<string, List<double>> Values);

internal sealed class SideBySide(BenchOptions options, IReadOnlyList<Contender> contenders, TextWriter progress, CancellationToken cancellation)
{
    private readonly Dictionary<string, long> _peakMemory = [];

    /// <summary>Contender -> the largest resident memory of its servers in bytes.</summary>
    public IReadOnlyDictionary<string, long> PeakMemory => _peakMemory;

    /// <summary>Whether a disk did not end well.</summary>
    public bool HasFailed { get; private set; }

    public IReadOnlyList<RowResult> Run(IReadOnlyList<Workload> rows)
    {
        List<RowResult> results = [.. rows.Select(row => new RowResult(row, contenders.ToDictionary(contender => contender.Name, _ => new List<double>())))];
        foreach (Place place in Enum.GetValues<Place>())
        {
            List<RowResult> here = [.. results.Where(result => (options.Place ?? result.Workload.Place) == place)];
            if (here.Count > 0)
            {
                RunAt(place, here);
            }
        }

        return results;
    }

    private void RunAt(Place place, List<RowResult> results)
    {
        string parent = place == Place.Tmpfs ? "/dev/shm" : options.DiskDirectory;
        string directory = Path.Combine(parent, $"qcowfs-bench-{Environment.ProcessId}");
        _ = Directory.CreateDirectory(directory);
        try
        {
            // Rows that want their disk served in another way than all others have one of their own.
            foreach (IEnumerable<RowResult> alike in results.Where(result => result.Workload.State == DiskState.Written)
                .GroupBy(result => (result.Workload.MountOptions, result.Workload.IsReadOnly)))
            {
                RunWritten(directory, [.. alike]);
            }

            RunEmpty(directory, [.. results.Where(result => result.Workload.State == DiskState.Empty)]);
        }
        finally
        {
            RemoveDirectory(directory);
        }
    }

    // A server that had to be killed leaves its mount.
    private static void RemoveDirectory(string directory)
    {
        foreach (string mountPoint in ServedDisk.MountPoints().Where(path => path.StartsWith(directory, StringComparison.Ordinal)))
        {
            _ = Command.Run("umount", ["-l", mountPoint]);
        }

        Directory.Delete(directory, recursive: true);
    }

    // One disk for each contender, all with the same content, served throughout.
    private void RunWritten(string directory, List<RowResult> results)
    {
        if (results.Count == 0)
        {
            return;
        }

        string content = Path.Combine(directory, "content.raw");
        WriteContent(content, options.DiskSize);
        Workload? only = results[0].Workload is { MountOptions: null, IsReadOnly: false } ? null : results[0].Workload;
        Dictionary<Contender, ServedDisk> disks = [];
        try
        {
            foreach (Contender contender in contenders.Where(contender => results.Any(result => contender.LeftOutOf(result.Workload) is null)))
            {
                disks[contender] = Serve(contender, directory, content, only);
            }

            for (int round = 0; round < options.Rounds; round++)
            {
                results.ForEach(result => Turn(round, result, contender => Fio.Run(result.Workload, disks[contender], options, cancellation)));
            }
        }
        finally
        {
            EndAll(disks);
        }

        CheckImages(directory);
        RemoveFiles(directory);
    }

    private void RunEmpty(string directory, List<RowResult> results)
    {
        for (int round = 0; round < options.Rounds; round++)
        {
            results.ForEach(result => Turn(round, result, contender => RunOnEmpty(result.Workload, contender, directory)));
        }
    }

    private double RunOnEmpty(Workload workload, Contender contender, string directory)
    {
        Dictionary<Contender, ServedDisk> disks = [];
        double value;
        try
        {
            disks[contender] = Serve(contender, directory, content: null, workload);
            value = Fio.Run(workload, disks[contender], options, cancellation);
        }
        finally
        {
            EndAll(disks);
        }

        CheckImages(directory);
        RemoveFiles(directory);
        return value;
    }

    // One row's disks would only take memory from the next one's.
    private static void RemoveFiles(string directory)
    {
        foreach (string path in Directory.GetFiles(directory))
        {
            File.Delete(path);
        }

        foreach (string path in Directory.GetDirectories(directory))
        {
            Directory.Delete(path);
        }
    }

    // The order changes from round to round: nobody is always first after an idle moment.
    private void Turn(int round, RowResult result, Func<Contender, double> measure)
    {
        for (int turn = 0; turn < contenders.Count; turn++)
        {
            Contender contender = contenders[(turn + round) % contenders.Count];
            if (contender.LeftOutOf(result.Workload) is null)
            {
                double value = measure(contender);
                result.Values[contender.Name].Add(value);
                progress.WriteLine($"round {round + 1}  {result.Workload.Name,-28} {contender.Name,-12} {value,12:N1} {result.Workload.Unit}");
            }
        }
    }

    private ServedDisk Serve(Contender contender, string directory, string? content, Workload? only)
    {
        string mountPoint = Path.Combine(directory, $"{contender.Name}.mnt");
        File.WriteAllText(mountPoint, "");
        string file = Path.Combine(directory, $"{contender.Name}.{contender.Extension}");
        File.Delete(file);
        contender.Make(content, file, cancellation);
        return contender.Serve(file, mountPoint, only);
    }

    // Every disk is ended, also where ending another one failed; what failed before is not hidden by it.
    private void EndAll(Dictionary<Contender, ServedDisk> disks)
    {
        foreach ((Contender contender, ServedDisk disk) in disks)
        {
            if (disk.PeakMemory is { } peak)
            {
                _peakMemory[contender.Name] = Math.Max(peak, _peakMemory.GetValueOrDefault(contender.Name));
            }

            try
            {
                disk.Dispose();
            }
            catch (IOException failure)
            {
                HasFailed = true;
                progress.WriteLine(failure.Message);
            }
        }
    }

    // A fast image that is not sound counts for nothing.
    private void CheckImages(string directory)
    {
        foreach (string image in (string[])[.. Directory.GetFiles(directory, "*.qcow2"), .. Directory.GetFiles(directory, "*.vhdx")])
        {
            _ = Command.Run("qemu-img", ["check", "-q", image], cancellation);
        }

        foreach (string image in Directory.GetFiles(directory, "*.add-cow*").Where(path => Path.GetExtension(path).StartsWith(".add-cow", StringComparison.Ordinal)))
        {
            _ = Command.Run(options.QcowFs!, ["check", image], cancellation);
        }
    }

    // Incompressible, without zero blocks, the same in every run.
    private static void WriteContent(string path, long length)
    {
        var random = new Random(20240601);
        byte[] buffer = new byte[1 << 20];
        using FileStream stream = File.Create(path);
        for (long written = 0; written < length; written += buffer.Length)
        {
            random.NextBytes(buffer);
            stream.Write(buffer);
        }
    }
}
