// Where a guest block lives, with its page in the cache; and a read and an overwrite through the engine, which add the locks, the
// epoch and one system call.
using BenchmarkDotNet.Attributes;
using QcowFs.Images.Engine;

namespace QcowFs.Benchmarks.Micro;

public class LookupBenchmark
{
    private const long Mask = ImageFixture.Size - 1;
    private readonly byte[] _block = new byte[4096];
    private ImageFixture? _fixture;
    private long _offset;

    [Params("qcow2", "vhdx")]
    public string Format { get; set; } = "";

    private CowImage Image => _fixture!.Image;

    [GlobalSetup]
    public void Open() => _fixture = ImageFixture.Make(Format, isFull: true);

    [GlobalCleanup]
    public void Close() => _fixture!.Dispose();

    [Benchmark]
    public long Lookup() => Image.Map.Lookup(Next(), 4096).Host;

    [Benchmark]
    public long LookupOfOneMebibyte() => Image.Map.Lookup(Next() & -(1L << 20), 1 << 20).Host;

    [Benchmark]
    public void Read() => Image.Read(Next(), _block);

    [Benchmark]
    public void Overwrite() => Image.Write(Next(), _block);

    // Far enough from one to the next that no processor guesses it.
    private long Next() => _offset = unchecked((_offset * 6364136223846793005L) + 1442695040888963407L) & Mask & -4096L;
}
