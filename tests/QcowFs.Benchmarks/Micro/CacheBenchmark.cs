// A page of metadata that is in the cache, and one that has to be read because the cache is full.
using BenchmarkDotNet.Attributes;
using QcowFs.Images.Metadata;
using QcowFs.Storage;

namespace QcowFs.Benchmarks.Micro;

public class CacheBenchmark
{
    private const int PageSize = 4096;
    private const int Pages = 256;
    private readonly MetadataCache _cache;
    private int _page;

    public CacheBenchmark()
    {
        MemoryStorage file = new("tables");
        file.SetLength(64L * Pages * PageSize);
        _cache = new MetadataCache(file, PageSize, (long)Pages * PageSize);
    }

    [Benchmark]
    public object Hit()
    {
        _page = (_page + 7) & 63;
        return _cache.Get((long)_page * PageSize);
    }

    [Benchmark]
    public object Miss()
    {
        _page = (_page + 1) & ((64 * Pages) - 1);
        return _cache.Get((long)_page * PageSize);
    }
}
