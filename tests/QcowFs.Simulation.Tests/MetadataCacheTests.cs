// The cache of metadata pages, alone: what it must never do while others miss.
using QcowFs.Images.Metadata;
using QcowFs.Storage;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class MetadataCacheTests
{
    private const int PageSize = 512;

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_page_of_a_commit_is_not_given_away(bool written)
    {
        using MemoryStorage file = new("image");
        file.SetLength(64 * PageSize);
        MetadataCache cache = new(file, PageSize, 4 * PageSize);
        using CancellationTokenSource done = new();
        Thread reader = new(() =>
        {
            for (long i = 1; !done.IsCancellationRequested; i++)
                cache.Get((1 + (i % 63)) * PageSize);
        });
        reader.Start();
        try
        {
            for (int round = 0; round < 1_000_000; round++)
                Commit(cache, written);
        }
        finally
        {
            done.Cancel();
            reader.Join();
        }
    }

    private static void Commit(MetadataCache cache, bool written)
    {
        MetadataPage page = cache.Pin(0);
        lock (cache.Gate)
        {
            cache.BeginChange(page, CommitStage.Links);
            page.EndChange();
        }

        cache.Unpin(page);
        List<MetadataPage> frozen;
        lock (cache.Gate)
            frozen = cache.Freeze();
        Assert.All(frozen, taken => Assert.Equal(0, taken.Offset));
        lock (cache.Gate)
        {
            cache.Thaw(frozen, written);
            Assert.True(written || page.Offset == 0, "a dirty page was given away");
        }
    }
}
