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
    public long? PeakMemory => Server is { } server && File.Exists($"/proc/{server}/status")
        ? File.ReadLines($"/proc/{server}/status")
            .Where(line => line.StartsWith("VmHWM:", StringComparison.Ordinal))
            .Select(line => (long?)(long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], CultureInfo.InvariantCulture) << 10))
            .FirstOrDefault()
        : null;

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
    public abstract bool HasEmptyDisks { get; }

    /// <summary>Makes a disk: a copy of a plain file, or an empty one where that is null.</summary>
    public virtual void Make(string? content, string file, CancellationToken cancellation) => File.Copy(content!, file, overwrite: true);

    /// <summary>Serves <paramref name="file"/> over <paramref name="mountPoint"/>, an existing empty file.</summary>
    public abstract ServedDisk Serve(string file, string mountPoint);

    public static IReadOnlyList<Contender> Choose(BenchOptions options) =>
    [
        .. options.Contenders.Where(name => IsPossible(name, options)).Select(name => (Contender)(name switch
        {
            "bare" => new BareFile(),
            "null" => new NullServerContender(options.OverIoUring),
            "qemu" => new QemuExport("qemu", "qcow2"),
            "qemu-vhdx" => new QemuExport("qemu-vhdx", "vhdx"),
            "qcowfs" => new QcowFsContender(options.QcowFs!, options.MountOptions),
            "vhdx" => new QcowFsOverVhdx(options.QcowFs!, options.MountOptions),
            "raw" => new QcowFsOverRaw(options.QcowFs!, options.MountOptions),
            "add-cow" => new QcowFsOverAddCow(options.QcowFs!, options.MountOptions, IsComplete: false),
            "add-cow-full" => new QcowFsOverAddCow(options.QcowFs!, options.MountOptions, IsComplete: true),
            _ => throw new UsageException($"--contenders: {name} is not one of bare, null, qemu, qcowfs, raw, add-cow, add-cow-full, vhdx, qemu-vhdx"),
        })),
    ];

    protected static void MakeQcow2(string? content, string file, CancellationToken cancellation) => MakeImage("qcow2", content, file, cancellation);

    protected static void MakeImage(string format, string? content, string file, CancellationToken cancellation) => _ = content is null
        ? Command.Run("qemu-img", ["create", "-q", "-f", format, file, $"{Workload.EmptyDiskSize}"], cancellation)
        : Command.Run("qemu-img", ["convert", "-f", "raw", "-O", format, content, file], cancellation);

    // The null server mounts by mount(2), as bare as the rest of it.
    private static bool IsPossible(string name, BenchOptions options) => name switch
    {
        "null" => Environment.IsPrivilegedProcess,
        "bare" or "qemu" or "qemu-vhdx" => true,
        _ => options.QcowFs is not null,
    };
}

/// <summary>The plain file itself.</summary>
internal sealed record BareFile() : Contender("bare")
{
    public override string Extension => "raw";

    public override bool HasEmptyDisks => false;

    public override ServedDisk Serve(string file, string mountPoint) => new Disk(file);

    private sealed class Disk(string path) : ServedDisk(path)
    {
        public override int? Server => null;

        public override void Dispose()
        {
            // Nothing is held: the file is the disk.
        }
    }
}

/// <summary>This program's null server over a plain file.</summary>
internal sealed record NullServerContender(bool OverIoUring) : Contender("null")
{
    public override string Extension => "raw";

    public override bool HasEmptyDisks => false;

    public override ServedDisk Serve(string file, string mountPoint) => new Disk(file, mountPoint, OverIoUring);

    private sealed class Disk : ServedDisk
    {
        private readonly Process _process;

        public Disk(string file, string mountPoint, bool overIoUring)
            : base(mountPoint)
        {
            string[] how = overIoUring ? ["--io-uring"] : [];
            _process = Command.Start(Environment.ProcessPath!, ["null-server", .. how, mountPoint, file]);
            AwaitMount(mountPoint, _process);
        }

        public override int? Server => _process.Id;

        public override void Dispose()
        {
            _ = Command.Run("umount", [Path]);
            Command.End(_process);
        }
    }
}

/// <summary>QEMU's FUSE export of an image, with its defaults.</summary>
internal sealed record QemuExport(string Name, string Format) : Contender(Name)
{
    public override string Extension => Format;

    public override bool HasEmptyDisks => true;

    public override void Make(string? content, string file, CancellationToken cancellation) => MakeImage(Format, content, file, cancellation);

    public override ServedDisk Serve(string file, string mountPoint) => new Disk(Format, file, mountPoint);

    private sealed class Disk : ServedDisk
    {
        private readonly Process _process;

        public Disk(string format, string file, string mountPoint)
            : base(mountPoint)
        {
            _process = Command.Start(
                "qemu-storage-daemon",
                [
                    "--blockdev", $"driver=file,node-name=file,filename={file}",
                    "--blockdev", $"driver={format},node-name=disk,file=file",
                    "--export", $"type=fuse,id=export,node-name=disk,mountpoint={mountPoint},writable=on,growable=off",
                ]);
            AwaitMount(mountPoint, _process);
        }

        public override int? Server => _process.Id;

        public override void Dispose()
        {
            // SIGTERM: it unmounts and closes the image. Ctrl-C reached it already.
            if (!_process.HasExited)
            {
                _ = Command.Run("kill", [_process.Id.ToString(CultureInfo.InvariantCulture)]);
            }

            Command.End(_process);
        }
    }
}
