// The hashes of deduplication.
using BenchmarkDotNet.Attributes;
using QcowFs.Images;
using QcowFs.Images.Dedup;

namespace QcowFs.Benchmarks.Micro;

public class HashBenchmark
{
    private readonly byte[] _block = new byte[64 << 10];
    private readonly BlockHash _xxh3 = new(DedupHash.Xxh3, new byte[192], null);
    private readonly BlockHash _sha256 = new(DedupHash.Sha256, [], null);

    [GlobalSetup]
    public void Fill() => new Random(1).NextBytes(_block);

    [Benchmark]
    public UInt128 Xxh3Of64K() => _xxh3.Of(_block);

    [Benchmark]
    public UInt128 Sha256Of64K() => _sha256.Of(_block);
}
