// What the command line of the benchmarks can say.
using System.Globalization;

namespace QcowFs.Benchmarks;

/// <summary>Thrown where the command line cannot be understood; the message names the option.</summary>
internal sealed class UsageException(string message) : Exception(message);

internal sealed record BenchOptions
{
    public const string Usage = """
        QcowFs.Benchmarks bench [options]         fio side by side: null FUSE server, QEMU's FUSE export, QcowFs
          --qcowfs PATH        the program; without it QcowFs is left out
          --mount-options LIST handed to `qcowfs mount -o`
          --contenders LIST    of bare,null,qemu,qcowfs (over qcow2), qcowfs over raw,add-cow,
                               add-cow-full (all in its image file),vhdx, and QEMU over vhdx: qemu-vhdx;
                               default null,qemu,qcowfs
          --rows LIST          rows whose name contains one of the words
          --rounds N           rounds, the contenders in turns in each (default 3)
          --seconds N          for each timed run (default 4)
          --size MIB           of the prepared disk (default 1024)
          --place tmpfs|disk   where all rows run (default: each row its own)
          --disk DIRECTORY     a directory on a real disk (default /var/tmp)
          --io-uring           null server and QcowFs over io_uring; the kernel's switch is turned on meanwhile
          --quick              one round, two seconds, 256 MiB
          --list               name the rows and end
        QcowFs.Benchmarks null-server [--threads N | --io-uring] MOUNTPOINT FILE
          covers the regular file MOUNTPOINT with FILE until unmounted; needs root
        """;

    public string? QcowFs { get; private set; }

    public string? MountOptions { get; private set; }

    public IReadOnlyList<string> Contenders { get; private set; } = ["null", "qemu", "qcowfs"];

    public IReadOnlyList<string> Rows { get; private set; } = [];

    public int Rounds { get; private set; } = 3;

    public int Seconds { get; private set; } = 4;

    public long DiskSize { get; private set; } = 1L << 30;

    public Place? Place { get; private set; }

    public string DiskDirectory { get; private set; } = "/var/tmp";

    /// <summary>Whether the null server and QcowFs have their requests over io_uring.</summary>
    public bool OverIoUring { get; private set; }

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
                case "--rows": options.Rows = List(); break;
                case "--rounds": options.Rounds = Number(); break;
                case "--seconds": options.Seconds = Number(); break;
                case "--size": options.DiskSize = (long)Number() << 20; break;
                case "--place": options.Place = ParsePlace(Value()); break;
                case "--disk": options.DiskDirectory = Value(); break;
                case "--io-uring": options.OverIoUring = true; break;
                case "--list": options.ListOnly = true; break;
                case "--quick": (options.Rounds, options.Seconds, options.DiskSize) = (1, 2, 256L << 20); break;
                default: throw new UsageException($"{name}: unknown option");
            }
        }

        if (options.OverIoUring) options.MountOptions = options.MountOptions is { } given ? $"{given},transport=uring" : "transport=uring";
        return options;
    }

    private static Place ParsePlace(string value) => value switch
    {
        "tmpfs" => Benchmarks.Place.Tmpfs,
        "disk" => Benchmarks.Place.Disk,
        _ => throw new UsageException("--place: tmpfs or disk"),
    };
}
