// Every option of the format: QcowFs and QEMU change one image in turns, and after each turn both read the same bytes, both find it
// sound and without leaks, and both say the same of where its data is. QCOWFS_TURNS makes the runs longer.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class QemuTurnsTests
{
    private const int DefaultTurns = 8;

    public static TheoryData<TurnsCase> Cases =>
    [
        new TurnsCase("compat=1.1", 9_000_448),
        new TurnsCase("compat=0.10", 9_000_448),
        new TurnsCase("compat=0.10,cluster_size=512", 150_016, "qcow2"),
        new TurnsCase("cluster_size=512", 150_016),
        new TurnsCase("cluster_size=1k", 500_224),
        new TurnsCase("cluster_size=4k", 3_000_320, Snapshots: true),
        new TurnsCase("cluster_size=256k", 9_000_448),
        new TurnsCase("cluster_size=2M", 20_000_256),
        new TurnsCase("refcount_bits=1,cluster_size=512", 150_016),
        new TurnsCase("refcount_bits=2,cluster_size=1k", 500_224, Snapshots: true),
        new TurnsCase("refcount_bits=4,cluster_size=512", 150_016, Snapshots: true),
        new TurnsCase("refcount_bits=8,cluster_size=2k", 500_224, Snapshots: true),
        new TurnsCase("refcount_bits=32,cluster_size=512", 150_016, Snapshots: true),
        new TurnsCase("refcount_bits=64,cluster_size=512", 300_032, Snapshots: true),
        new TurnsCase("extended_l2=on,cluster_size=16k", 3_000_320, Snapshots: true),
        new TurnsCase("extended_l2=on", 9_000_448, "qcow2"),
        new TurnsCase("extended_l2=on,cluster_size=2M", 20_000_256),
        new TurnsCase("extended_l2=on,cluster_size=16k,compression_type=zstd", 3_000_320, "raw>qcow2", Compress: true),
        new TurnsCase("compression_type=zlib", 9_000_448, Compress: true),
        new TurnsCase("compression_type=zlib,cluster_size=4k", 1_000_448, Snapshots: true, Compress: true),
        new TurnsCase("compression_type=zstd,cluster_size=16k,refcount_bits=2", 3_000_320, Compress: true),
        new TurnsCase("compression_type=zstd,cluster_size=2M", 20_000_256, Compress: true),
        new TurnsCase("compat=0.10,cluster_size=4k", 1_000_448, Snapshots: true, Compress: true),
        new TurnsCase("data_file=@data", 9_000_448),
        new TurnsCase("data_file=@data,cluster_size=512", 150_016, "qcow2"),
        new TurnsCase("data_file=@data,extended_l2=on,cluster_size=16k", 3_000_320),
        new TurnsCase("data_file=@data,data_file_raw=on,cluster_size=4k", 3_000_320),
        new TurnsCase("lazy_refcounts=on,cluster_size=4k", 3_000_320, Snapshots: true),
        new TurnsCase("cluster_size=4k", 3_000_320, "raw"),
        new TurnsCase("cluster_size=64k", 9_000_448, "raw>qcow2>qcow2", Snapshots: true),
        new TurnsCase("preallocation=metadata", 9_000_448),
        new TurnsCase("preallocation=metadata,extended_l2=on", 9_000_448),
        new TurnsCase("preallocation=metadata,cluster_size=512", 150_016),
        new TurnsCase("preallocation=falloc,cluster_size=4k", 3_000_320),
        new TurnsCase("preallocation=full,cluster_size=4k", 3_000_320, Snapshots: true),
    ];

    [SkippableTheory]
    [MemberData(nameof(Cases))]
    public void In_turns_with_QEMU(TurnsCase turns)
    {
        int count = int.TryParse(Environment.GetEnvironmentVariable("QCOWFS_TURNS"), out int wanted) ? wanted : DefaultTurns;
        foreach (ulong seed in Seeds.Between(1, 1))
        {
            using TempDirectory temp = TempDirectory.InMemory();
            try
            {
                new QemuTurns(temp, turns, seed).Run(count);
            }
            catch (Exception exception) when (exception is not Xunit.SkipException)
            {
                throw new InvalidOperationException($"{turns}, seed {seed}: {exception.Message}", exception);
            }
        }
    }
}
