// What durability costs in software; tmpfs syncs for nothing.
using BenchmarkDotNet.Attributes;

namespace QcowFs.Benchmarks.Micro;

public class CommitBenchmark
{
    private readonly byte[] _block = new byte[4096];
    private ImageFixture? _fixture;
    private long _offset;

    [Params("qcow2", "vhdx")]
    public string Format { get; set; } = "";

    [GlobalSetup]
    public void Open()
    {
        _fixture = ImageFixture.Make(Format, isFull: false);
        _block.AsSpan().Fill(1);
    }

    [GlobalCleanup]
    public void Close() => _fixture!.Dispose();

    /// <summary>A new block, and its mapping made durable; when the disk is full, it begins anew with an empty one.</summary>
    [Benchmark]
    public void CommitOfNewBlock()
    {
        if (_offset + _block.Length > ImageFixture.Size)
        {
            _fixture!.Image.Discard(0, ImageFixture.Size);
            _offset = 0;
        }

        _fixture!.Image.Write(_offset, _block);
        _fixture.Image.Sync();
        _offset += 64 << 10;
    }

    [Benchmark]
    public void CommitOfOverwrite()
    {
        _fixture!.Image.Write(0, _block);
        _fixture.Image.Sync();
    }
}
