// The rows of the comparison: the same fio work for every contender, and what is asked of QcowFs in each.
namespace QcowFs.Benchmarks;

internal enum Place
{
    /// <summary>Images in memory: shows the cost of the software alone.</summary>
    Tmpfs,
    /// <summary>Images on a real disk: shows the cost of syncs.</summary>
    Disk,
}

internal enum DiskState
{
    /// <summary>Every block was written before; the disk serves all rows of a place.</summary>
    Written,
    /// <summary>A new, empty image for each run.</summary>
    Empty,
}

internal enum Measure
{
    OperationsPerSecond,
    MebibytesPerSecond,
    /// <summary>fsync and fdatasync calls of the server for each fsync of the guest; less is better.</summary>
    SyncsPerSync,
}

/// <summary>One row. A share or factor of null asks nothing.</summary>
internal sealed record Workload(string Name, Measure Measure, string FioArguments)
{
    public Place Place { get; init; } = Place.Tmpfs;

    public DiskState State { get; init; } = DiskState.Written;

    /// <summary>Whether fio runs for the time given on the command line; otherwise until its work is done.</summary>
    public bool Timed { get; init; } = true;

    /// <summary>At least this share of the null server.</summary>
    public double? OfNullServer { get; init; }

    /// <summary>At least so many times QEMU.</summary>
    public double? TimesQemu { get; init; } = 1;

    /// <summary>At least this share of fio on the plain file itself.</summary>
    public double? OfBareFile { get; init; }

    /// <summary>No more than this, in the row's own unit.</summary>
    public double? AtMost { get; init; }

    /// <summary>Mount options that QcowFs gets in this row besides the command line's.</summary>
    public string? MountOptions { get; init; }

    /// <summary>Whether the disk is served for reading only, so that the kernel may cache it.</summary>
    public bool IsReadOnly { get; init; }

    /// <summary>Whether all open the image with O_DIRECT.</summary>
    public bool BypassesHostCache { get; init; }

    /// <summary>Whether the row changes the disk.</summary>
    public bool Writes => FioArguments.Contains("write", StringComparison.Ordinal);

    /// <summary>Whether <see cref="MountOptions"/> asks for what only qcow2 has.</summary>
    public bool IsOfQcow2 => MountOptions == Journal;

    public string Unit => Measure switch
    {
        Measure.OperationsPerSecond => "IOPS",
        Measure.MebibytesPerSecond => "MiB/s",
        _ => "syncs",
    };

    private const string Journal = "journal";
    private const double Share = 0.8;
    private const double ShareOfDevice = 0.85;
    private const double ShareWithSync = 0.7;
    private const string Direct = "--direct=1 --ioengine=io_uring";
    private const string DirectOneByOne = "--direct=1 --ioengine=psync";
    private const string Whole = "--offset=0 --size={size}";

    /// <summary>The size of an empty disk: more than any row writes.</summary>
    public const long EmptyDiskSize = 4L << 30;

    public static IReadOnlyList<Workload> All { get; } =
    [
        Small("4k-randread-qd1", $"--rw=randread {DirectOneByOne}"),
        Small("4k-randread-qd32", $"--rw=randread {Direct} --iodepth=32"),
        Small("4k-randread-4x16", $"--rw=randread {Direct} --iodepth=16 --numjobs=4"),
        Small("4k-randwrite-qd1", $"--rw=randwrite {DirectOneByOne}"),
        Small("4k-randwrite-qd32", $"--rw=randwrite {Direct} --iodepth=32"),
        Small("4k-randwrite-fsync16", "--rw=randwrite --ioengine=psync --fsync=16") with { OfNullServer = ShareWithSync },
        Large("1m-read", $"--rw=read {DirectOneByOne}"),
        Large("1m-read-qd8", $"--rw=read {Direct} --iodepth=8"),
        Large("1m-write", $"--rw=write {DirectOneByOne}"),
        Large("1m-write-qd8", $"--rw=write {Direct} --iodepth=8"),
        Large("1m-read-buffered", "--rw=read --ioengine=psync --invalidate=1"),
        Small("4k-randread-qd1-readonly", $"--rw=randread {DirectOneByOne}") with { IsReadOnly = true },
        Small("4k-randread-qd32-readonly", $"--rw=randread {Direct} --iodepth=32") with { IsReadOnly = true },
        // What the null server does not do is read ahead into a cache.
        Large("1m-read-buffered-readonly", "--rw=read --ioengine=psync --invalidate=1") with { IsReadOnly = true, OfNullServer = null },
        new("4k-alloc-randwrite-qd32", Measure.OperationsPerSecond,
            $"--rw=randwrite --bs=4k {Direct} --iodepth=32 --size=1g --io_size=128m --randseed=1 --end_fsync=1")
            { State = DiskState.Empty, Timed = false, TimesQemu = 3 },
        new("1m-alloc-write-qd8", Measure.MebibytesPerSecond,
            $"--rw=write --bs=1m {Direct} --iodepth=8 --offset=1g --size=1g --end_fsync=1")
            { State = DiskState.Empty, Timed = false, TimesQemu = 2 },
        new("4k-alloc-fsync-syncs", Measure.SyncsPerSync, "--rw=randwrite --bs=4k --ioengine=psync --fsync=1 --size=1g --io_size=2m --randseed=1")
            { State = DiskState.Empty, Timed = false, TimesQemu = null, AtMost = 2 },
        new("4k-alloc-fsync1", Measure.OperationsPerSecond, "--rw=randwrite --bs=4k --ioengine=psync --fsync=1 --size=4g --randseed=1")
            { State = DiskState.Empty, Place = Place.Disk },
        new("4k-alloc-fsync-syncs-journal", Measure.SyncsPerSync, "--rw=randwrite --bs=4k --ioengine=psync --fsync=1 --size=1g --io_size=8m --randseed=1")
            { State = DiskState.Empty, Timed = false, TimesQemu = null, AtMost = 1.05, MountOptions = Journal },
        new("4k-alloc-fsync1-journal", Measure.OperationsPerSecond, "--rw=randwrite --bs=4k --ioengine=psync --fsync=1 --size=4g --randseed=1")
            { State = DiskState.Empty, Place = Place.Disk, TimesQemu = 2, MountOptions = Journal },
        new("4k-rewrite-fsync1", Measure.OperationsPerSecond, $"--rw=randwrite --bs=4k --ioengine=psync --fsync=1 {Whole}")
            { Place = Place.Disk, OfNullServer = ShareWithSync },
        new("4k-randread-qd32-uncached", Measure.OperationsPerSecond, $"--rw=randread --bs=4k {Direct} --iodepth=32 {Whole}")
            { Place = Place.Disk, MountOptions = "cache=none", BypassesHostCache = true, OfBareFile = ShareOfDevice },
    ];

    private static Workload Small(string name, string arguments) =>
        new(name, Measure.OperationsPerSecond, $"{arguments} --bs=4k {Whole}") { OfNullServer = Share };

    private static Workload Large(string name, string arguments) =>
        new(name, Measure.MebibytesPerSecond, $"{arguments} --bs=1m {Whole}") { OfNullServer = Share };
}
