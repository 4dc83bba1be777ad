// Who competes: each makes a disk out of a file and serves it, until disposed, at a path that fio works on.
using System.Diagnostics;
using System.Globalization;

namespace QcowFs.Benchmarks;

/// <summary>A served disk.</summary>
internal abstract class ServedDisk(string path) : IDisposable
{
    /// <summary>What fio opens.</summary>
    public string Path { get; } = path;

    /// <summary>The serving process, or null.</summary>
    public abstract int? Server { get; }

    public abstract void Dispose();

    /// <summary>The server's largest resident memory so far in bytes, or null.</summary>
    public long? PeakMemory => Server is { } server ? MemoryOf(server, "VmHWM:") : null;

    /// <summary>One of the sizes that /proc tells of a process, in bytes; null where the process has gone.</summary>
    public static long? MemoryOf(int process, string line) => !File.Exists($"/proc/{process}/status") ? null
        : File.ReadLines($"/proc/{process}/status")
            .Where(text => text.StartsWith(line, StringComparison.Ordinal))
            .Select(text => (long?)(long.Parse(text.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], CultureInfo.InvariantCulture) << 10))
            .FirstOrDefault();

    protected static void AwaitMount(string path, Process server)
    {
        long start = Stopwatch.GetTimestamp();
        while (!MountPoints().Contains(path))
        {
            if (server.HasExited || Stopwatch.GetElapsedTime(start) > TimeSpan.FromSeconds(20))
            {
                Command.Kill(server);
                throw new IOException($"{server.StartInfo.FileName}: no mount at {path}: {server.StandardError.ReadToEnd().Trim()}");
            }

            Thread.Sleep(TimeSpan.FromMilliseconds(5));
        }
    }

    /// <summary>Everything that is mounted now.</summary>
    public static IEnumerable<string> MountPoints() => File.ReadLines("/proc/self/mountinfo").Select(line => line.Split(' ')[4]).ToList();
}

/// <summary>A way to serve disks.</summary>
internal abstract record Contender(string Name)
{
    /// <summary>What the names of its disks end with.</summary>
    public abstract string Extension { get; }

    /// <summary>Whether it can start from a disk without content, which the rows on empty disks need.</summary>
    public virtual bool HasEmptyDisks => !IsReadOnly;

    /// <summary>Whether it cannot write.</summary>
    public virtual bool IsReadOnly => false;

    /// <summary>Whether it can open the image with O_DIRECT.</summary>
    public virtual bool CanBypassHostCache => false;

    /// <summary>Whether the syncs of its server are those of the image.</summary>
    public virtual bool SyncsCanBeCounted => false;

    /// <summary>Whether it has what a row asks of QcowFs by mount options that only qcow2 knows.</summary>
    public virtual bool TakesRowsOfQcow2 => true;

    /// <summary>Why it has no value in a row, or null where it has one.</summary>
    public string? LeftOutOf(Workload row) => row switch
    {
        _ when row.Writes && IsReadOnly => "it cannot write",
        _ when row.State == DiskState.Empty && !HasEmptyDisks => "it cannot begin with an empty disk",
        _ when row.BypassesHostCache && !CanBypassHostCache => "it does not open the image with O_DIRECT",
        _ when row.Measure == Measure.SyncsPerSync && !SyncsCanBeCounted => "its server's syncs are not those of the image",
        _ when row.IsOfQcow2 && !TakesRowsOfQcow2 => "its format has no journal of ours",
        _ => null,
    };

    /// <summary>Makes a disk: a copy of a plain file, or an empty one where that is null.</summary>
    public virtual void Make(string? content, string file, CancellationToken cancellation)
    {
        if (content is not null)
        {
            File.Copy(content, file, overwrite: true);
            return;
        }

        using FileStream empty = File.Create(file);
        empty.SetLength(Workload.EmptyDiskSize);
    }

    /// <summary>Serves <paramref name="file"/> at <paramref name="mountPoint"/>, an existing empty file, as <paramref name="only"/> wants
    /// it, or as several rows of no special wishes do.</summary>
    public abstract ServedDisk Serve(string file, string mountPoint, Workload? only);

    public static IReadOnlyList<Contender> Choose(BenchOptions options) =>
    [
        .. options.Contenders.Where(name => IsPossible(name, options)).Select(name => (Contender)(name switch
        {
            "bare" => new BareFile(),
            "null" => new NullServerContender(name, []),
            "null-uring" => new NullServerContender(name, ["--io-uring"]),
            "null-pass" => new NullServerContender(name, ["--passthrough"]),
            "raw-pass" => new QcowFsPassthrough(options.QcowFs!),
            "qemu" => new QemuExport(name, "qcow2"),
            "qemu-new" => new QemuExport(name, "qcow2", options.NewerQemu!),
            "qemu-new-threads" => new QemuExport(name, "qcow2", options.NewerQemu!, Environment.ProcessorCount),
            "qemu-vhdx" => new QemuExport(name, "vhdx"),
            "qcowmount" => new QcowMount(),
            "nbdfuse" => new NbdFuse(),
            "qcowfs" => new QcowFsContender(options.QcowFs!, options.MountOptions),
            "qcowfs-uring" => new QcowFsContender(options.QcowFs!, options.MountOptions, name, "uring"),
            "vhdx" => new QcowFsOverVhdx(options.QcowFs!, options.MountOptions),
            "raw" => new QcowFsOverRaw(options.QcowFs!, options.MountOptions),
            "add-cow" => new QcowFsOverAddCow(options.QcowFs!, options.MountOptions, IsComplete: false),
            "add-cow-full" => new QcowFsOverAddCow(options.QcowFs!, options.MountOptions, IsComplete: true),
            _ => throw new UsageException($"--contenders: {name} is not one of {string.Join(", ", BenchOptions.AllContenders)}"),
        })),
    ];

    protected static void MakeImage(string format, string? content, string file, CancellationToken cancellation) => _ = content is null
        ? Command.Run("qemu-img", ["create", "-q", "-f", format, file, $"{Workload.EmptyDiskSize}"], cancellation)
        : Command.Run("qemu-img", ["convert", "-f", "raw", "-O", format, content, file], cancellation);

    // The null server mounts by mount(2), as bare as the rest of it. A peer that is not installed is left out.
    private static bool IsPossible(string name, BenchOptions options) => name switch
    {
        "null" or "null-pass" => Environment.IsPrivilegedProcess,
        "null-uring" => Environment.IsPrivilegedProcess && Machine.HasFuseOverIoUring,
        "raw-pass" => Environment.IsPrivilegedProcess && options.QcowFs is not null,
        "qemu-new" or "qemu-new-threads" => options.NewerQemu is not null,
        "qcowmount" or "nbdfuse" => Command.Exists(name),
        "qcowfs-uring" => options.QcowFs is not null && Machine.HasFuseOverIoUring,
        "qcowfs" or "vhdx" or "raw" or "add-cow" or "add-cow-full" => options.QcowFs is not null,
        _ => true,
    };
}

/// <summary>The plain file itself.</summary>
internal sealed record BareFile() : Contender("bare")
{
    public override string Extension => "raw";

    public override bool CanBypassHostCache => true;

    public override ServedDisk Serve(string file, string mountPoint, Workload? only) => new Disk(file);

    private sealed class Disk(string path) : ServedDisk(path)
    {
        public override int? Server => null;

        public override void Dispose()
        {
            // Nothing is held: the file is the disk.
        }
    }
}

/// <summary>This program's null server over a plain file; or one that only tells the kernel which file to serve.</summary>
internal sealed record NullServerContender(string Name, string[] Options) : Contender(Name)
{
    public override string Extension => "raw";

    public override bool CanBypassHostCache => Options.Length == 0;

    public override ServedDisk Serve(string file, string mountPoint, Workload? only)
    {
        string[] options = only?.BypassesHostCache == true ? ["--direct"] : Options;
        return new ProcessDisk(Command.Start(Environment.ProcessPath!, ["null-server", .. options, mountPoint, file]), mountPoint, mountPoint, isUnmounted: true);
    }
}
