// What the command line of the benchmarks can say.
using System.Globalization;

namespace QcowFs.Benchmarks;

/// <summary>Thrown where the command line cannot be understood; the message names the option.</summary>
internal sealed class UsageException(string message) : Exception(message);

internal sealed record BenchOptions
{
    /// <summary>Everybody that can be compared.</summary>
    public static IReadOnlyList<string> AllContenders { get; } =
        [
            "bare", "null", "null-uring", "qemu", "qemu-new", "qemu-new-threads", "qcowmount", "nbdfuse", "qcowfs", "qcowfs-uring", "qemu-vhdx", "vhdx",
            "raw", "add-cow", "add-cow-full", "null-pass", "raw-pass",
        ];

    public const string Usage = """
        QcowFs.Benchmarks bench [options]         fio side by side: QcowFs, its peers, a null FUSE server
          --qcowfs PATH        the program; without it QcowFs is left out
          --mount-options LIST handed to `qcowfs mount -o`
          --contenders LIST    of bare (the plain file), null, qemu, qemu-new, qemu-new-threads, qcowmount, nbdfuse, qcowfs (over qcow2),
                               qemu-vhdx, and QcowFs over vhdx, raw, add-cow, add-cow-full (all in its image file);
                               null-uring and qcowfs-uring: null and qcowfs over io_uring, all others being on the device;
                               null-pass and raw-pass: null and raw by FUSE passthrough;
                               default: all that are possible here
          --qemu PATH          another qemu-storage-daemon, which competes as qemu-new, and as qemu-new-threads with an I/O thread for
                               each processor
          --rows LIST          rows whose name contains one of the words
          --rounds N           rounds, the contenders in turns in each (default 5)
          --seconds N          for each timed run (default 3)
          --size MIB           of the prepared disk (default 1024, or less where memory is short)
          --place tmpfs|disk   where all rows run (default: each row its own)
          --disk DIRECTORY     a directory on a real disk (default /var/tmp)
          --io-uring           turns the kernel's switch for FUSE over io_uring on meanwhile, so that null-uring and qcowfs-uring are possible
          --report DIRECTORY   writes BENCHMARKS.md and a plot there
          --quick              one round, two seconds, 256 MiB
          --list               name the rows and end
        QcowFs.Benchmarks scale --qcowfs PATH [--report DIRECTORY]
          cost over virtual size, snapshots and layers, as a table
        QcowFs.Benchmarks micro [WORD...]
          micro-benchmarks whose name contains one of the words
        QcowFs.Benchmarks null-server [--threads N | --io-uring | --passthrough | --direct] MOUNTPOINT FILE
          covers the regular file MOUNTPOINT with FILE until unmounted; needs root
        """;

    public string? QcowFs { get; private set; }

    public string? MountOptions { get; private set; }

    public IReadOnlyList<string> Contenders { get; private set; } = AllContenders;

    public string? NewerQemu { get; private set; }

    public IReadOnlyList<string> Rows { get; private set; } = [];

    public int Rounds { get; private set; } = 5;

    public int Seconds { get; private set; } = 3;

    public long DiskSize { get; private set; }

    public Place? Place { get; private set; }

    public string DiskDirectory { get; private set; } = "/var/tmp";

    /// <summary>Whether the kernel is made to offer FUSE over io_uring meanwhile.</summary>
    public bool SwitchesIoUringOn { get; private set; }

    public string? ReportDirectory { get; private set; }

    public bool ListOnly { get; private set; }

    public static BenchOptions Parse(ReadOnlySpan<string> arguments)
    {
        var options = new BenchOptions();
        var rest = new Queue<string>(arguments.ToArray());
        while (rest.TryDequeue(out string? name))
        {
            string Value() => rest.TryDequeue(out string? value) ? value : throw new UsageException($"{name}: a value is missing");
            int Number() => int.TryParse(Value(), NumberStyles.None, CultureInfo.InvariantCulture, out int number) && number > 0
                ? number
                : throw new UsageException($"{name}: a positive number is needed");
            string[] List() => Value().Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);

            switch (name)
            {
                case "--qcowfs": options.QcowFs = Path.GetFullPath(Value()); break;
                case "--mount-options": options.MountOptions = Value(); break;
                case "--contenders": options.Contenders = List(); break;
                case "--qemu": options.NewerQemu = Path.GetFullPath(Value()); break;
                case "--report": options.ReportDirectory = Value(); break;
                case "--rows": options.Rows = List(); break;
                case "--rounds": options.Rounds = Number(); break;
                case "--seconds": options.Seconds = Number(); break;
                case "--size": options.DiskSize = (long)Number() << 20; break;
                case "--place": options.Place = ParsePlace(Value()); break;
                case "--disk": options.DiskDirectory = Value(); break;
                case "--io-uring": options.SwitchesIoUringOn = true; break;
                case "--list": options.ListOnly = true; break;
                case "--quick": (options.Rounds, options.Seconds, options.DiskSize) = (1, 2, 256L << 20); break;
                default: throw new UsageException($"{name}: unknown option");
            }
        }

        if (options.DiskSize == 0)
            options.DiskSize = SizeThatFits(options.Contenders.Count);
        return options;
    }

    // On tmpfs every contender's disk is memory; half of what there is stays free.
    private static long SizeThatFits(int contenders)
    {
        const long largest = 1L << 30, smallest = 128L << 20;
        long size = largest;
        while (size > smallest && size * (contenders + 1) > Machine.AvailableMemory / 2)
            size /= 2;
        return size;
    }

    private static Place ParsePlace(string value) => value switch
    {
        "tmpfs" => Benchmarks.Place.Tmpfs,
        "disk" => Benchmarks.Place.Disk,
        _ => throw new UsageException("--place: tmpfs or disk"),
    };
}
