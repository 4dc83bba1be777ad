// What the index must not believe, small enough for mutants.
using System.Collections;
using QcowFs.Images;
using QcowFs.Images.Dedup;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public static class SharingIndexTests
{
    [Fact]
    public static void Bits_of_another_state_are_not_believed()
    {
        SimulatedDisk disk = new();
        disk.Create("index");
        ImageBinding then = new(1, 2, 3, 4, 5);
        DedupSettings settings = new() { Memory = DedupSettings.LeastMemory, IndexSize = DedupSettings.LeastIndexSize, FillRandom = new Random(1).NextBytes };
        using DedupIndex index = DedupIndex.Open(disk.Open("index"), settings, 4096, then, null);
        Assert.True(index.TryFlush(new BitArray(10)));
        index.Bind(then);
        Assert.NotNull(index.LoadTableBits(then, 10));
        Assert.Null(index.LoadTableBits(then with { ModifiedSeconds = 9 }, 10));
    }

    [Fact]
    public static void A_torn_page_is_none()
    {
        byte[] old = new byte[IndexPage.Size];
        byte[] page = new byte[IndexPage.Size];
        Pattern.Fill(IndexPage.Content(old), 1, 0);
        Pattern.Fill(IndexPage.Content(page), 2, 0);
        IndexPage.Seal(old, PageKind.Log, 7, 3, 100);
        IndexPage.Seal(page, PageKind.Log, 7, 3, 100);
        Assert.True(IndexPage.TryOpen(page, PageKind.Log, 7, 3, 127, out _));
        Assert.False(IndexPage.TryOpen(page, PageKind.Log, 8, 3, 127, out _));
        Assert.False(IndexPage.TryOpen(page, PageKind.Log, 7, 4, 127, out _));
        Assert.False(IndexPage.TryOpen(page, PageKind.Bucket, 7, 3, 127, out _));
        old.AsSpan(512).CopyTo(page.AsSpan(512));
        Assert.False(IndexPage.TryOpen(page, PageKind.Log, 7, 3, 127, out _));
    }
}
