// The dedup index on its own: what it finds was inserted, whatever happens to its file; it keeps within its budgets; it never throws.
using System.Collections;
using QcowFs.Images.Dedup;
using QcowFs.Native;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Dedup;

public sealed class DedupIndexTests
{
    private const long SmallIndex = 8L << 20;
    private const long SmallMemory = 4L << 20;
    private static readonly ImageBinding Image = new(1, 2, 3, 4, 5);

    [Fact]
    public void Finds_what_was_inserted_through_logs_tables_and_reopening()
    {
        SimulatedDisk disk = new();
        disk.Create("index");
        const int count = 60_000;
        using (DedupIndex index = Open(disk))
        {
            for (int i = 0; i < count; i++)
                index.Insert(Entry(i));
            Assert.True(index.TableCount >= 3);
            AssertFound(index, 0, count, leastShare: 0.99);
            Assert.True(index.TryFlush(null));
            index.Bind(Image);
        }

        using DedupIndex again = Open(disk);
        AssertFound(again, 0, count, leastShare: 0.99);
        Assert.Null(again.Paused);
    }

    [Fact]
    public void Drops_the_oldest_and_keeps_within_both_budgets()
    {
        SimulatedDisk disk = new();
        SimulatedStorage file = disk.Create("index");
        const int count = 400_000;
        using DedupIndex index = Open(disk);
        Assert.True(index.Geometry.FileSize <= SmallIndex && index.Geometry.MostMemory <= SmallMemory);
        long fixedPart = (2 * LogFilter.BytesFor(index.Geometry.LogEntries) / 8) + (4 * IndexPage.Size) + index.Geometry.BuildBuffer;
        for (int i = 0; i < count; i++)
        {
            index.Insert(Entry(i));
            if (i % 1000 != 0)
                continue;
            Assert.True(index.Memory <= SmallMemory, $"{index.Memory} bytes at {i}");
            Assert.True(index.Memory <= (8 * index.Entries) + fixedPart, $"{index.Memory} bytes for {index.Entries} entries");
        }

        Assert.True(file.Length <= SmallIndex, $"the file has {file.Length} bytes");
        Assert.Equal(index.Geometry.Tables - 1, index.TableCount);
        AssertFound(index, count - 20_000, count, leastShare: 0.99);
        Assert.Equal(0, Found(index, 0, 20_000));
    }

    [Fact]
    public void Newest_entry_of_a_hash_wins_and_a_removed_one_stays_away()
    {
        SimulatedDisk disk = new();
        disk.Create("index");
        using (DedupIndex index = Open(disk))
        {
            for (int i = 0; i < 30_000; i++)
                index.Insert(Entry(i));
            IndexEntry moved = Entry(100) with { Guest = 777_777, Host = 888_888 };
            index.Insert(moved);
            Assert.Equal(moved, Find(index, moved.Hash));
            foreach (int gone in new[] { 5, 14_000, 29_999 })
            {
                Assert.NotNull(Find(index, Entry(gone).Hash));
                index.Remove(Entry(gone));
                Assert.Null(Find(index, Entry(gone).Hash));
            }

            index.Remove(Entry(100)); // the one that moved is not meant
            Assert.Equal(moved, Find(index, moved.Hash));
            Assert.True(index.TryFlush(null));
            index.Bind(Image);
        }

        using (DedupIndex index = Open(disk))
        {
            foreach (int gone in new[] { 5, 14_000, 29_999 })
                Assert.Null(Find(index, Entry(gone).Hash));
            for (int i = 30_000; i < 80_000; i++)
                index.Insert(Entry(i));
            foreach (int gone in new[] { 5, 14_000, 29_999 })
                Assert.Null(Find(index, Entry(gone).Hash));
        }
    }

    [Fact]
    public void After_a_crash_it_opens_and_finds_nothing_that_was_never_inserted()
    {
        foreach (ulong seed in Seeds.Between(1, 12))
        {
            SimulatedDisk disk = new();
            disk.Create("index");
            Random random = new(unchecked((int)seed));
            disk.CrashAt(random.Next(2, 600));
            try
            {
                using DedupIndex index = Open(disk);
                for (int i = 0; i < 50_000; i++)
                {
                    index.Insert(Entry(i));
                    if (i % 7 == 0)
                        index.Remove(Entry(i / 2));
                    if (i == 20_000)
                        Assert.True(index.TryFlush(new BitArray(100)));
                }
            }
            catch (SimulatedCrashException)
            {
                // The crash that was asked for.
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(12, seed))
            {
                using DedupIndex index = Open(survivor);
                Assert.True(index.Paused is null, $"seed {seed} {choice}: {index.Paused}");
                AssertSane(index, 50_000, $"seed {seed} {choice}");
                for (int i = 60_000; i < 62_000; i++)
                    index.Insert(Entry(i));
                AssertFound(index, 60_000, 62_000, leastShare: 0.99);
            }
        }
    }

    [Fact]
    public void Damaged_file_costs_entries_only()
    {
        SimulatedDisk disk = new();
        disk.Create("index");
        using (DedupIndex index = Open(disk))
        {
            for (int i = 0; i < 40_000; i++)
                index.Insert(Entry(i));
            Assert.True(index.TryFlush(new BitArray(40_000, true)));
            index.Bind(Image);
        }

        byte[] whole = disk.Content("index");
        foreach (ulong seed in Seeds.Between(1, 60))
        {
            Random random = new(unchecked((int)seed));
            byte[] bytes = (byte[])whole.Clone();
            switch (random.Next(4))
            {
                case 0:
                    bytes = bytes[..random.Next(bytes.Length)];
                    break;
                case 1:
                    random.NextBytes(bytes.AsSpan(random.Next(bytes.Length / 2), bytes.Length / 3));
                    break;
                case 2:
                    for (int i = 0; i < 2000; i++)
                        bytes[random.Next(bytes.Length)] ^= (byte)(1 << random.Next(8));
                    break;
                default:
                    // A superblock that lies, with a right checksum.
                    IndexSuperblock lie = IndexSuperblock.Choose(bytes)! with
                    {
                        Sequence = 1000,
                        LogPages = random.Next(2) == 0 ? random.NextInt64() : IndexSuperblock.Choose(bytes)!.LogPages,
                        Buckets = random.Next(2) == 0 ? random.NextInt64() : IndexSuperblock.Choose(bytes)!.Buckets,
                        TableBits = random.Next(1 << 20),
                        TableRegions = [.. Enumerable.Range(0, 64).Select(_ => new Region(RegionState.InUse, (ulong)random.Next(), (ulong)random.NextInt64(), random.NextInt64()))],
                        LogRegions = [new Region(RegionState.InUse, (ulong)random.Next(), ulong.MaxValue - 9, 0), new Region(RegionState.Freezing, (ulong)random.Next(), 7, 0)],
                    };
                    lie.WriteTo(bytes);
                    break;
            }

            SimulatedDisk damaged = new();
            damaged.Create("index", bytes);
            using DedupIndex index = Open(damaged);
            Assert.True(index.Memory <= SmallMemory, $"seed {seed}: {index.Memory}");
            AssertSane(index, 40_000, $"seed {seed}");
            _ = index.LoadTableBits(Image, 40_000);
            for (int i = 50_000; i < 51_000; i++)
                index.Insert(Entry(i));
            AssertFound(index, 50_000, 51_000, leastShare: 0.9);
            Assert.True(index.Paused is null, $"seed {seed}: {index.Paused}");
        }
    }

    [Fact]
    public void Index_of_another_image_or_another_block_size_is_not_used()
    {
        foreach ((ImageBinding image, int blockSize) in new[] { (Image with { Inode = 9 }, 65536), (Image, 4096) })
        {
            SimulatedDisk disk = new();
            disk.Create("index");
            using (DedupIndex index = Open(disk))
            {
                index.Insert(Entry(1));
                Assert.True(index.TryFlush(null));
                index.Bind(Image);
            }

            List<string> log = [];
            using DedupIndex other = DedupIndex.Open(disk.Open("index"), Settings(), blockSize, image, log.Add);
            Assert.Null(Find(other, Entry(1).Hash));
            Assert.Contains(log, line => line.Contains("another image"));
        }
    }

    [Fact]
    public void Table_bits_are_believed_for_the_bound_state_only()
    {
        SimulatedDisk disk = new();
        disk.Create("index");
        BitArray bits = new(70_000);
        bits[0] = bits[32_511] = bits[32_512] = bits[69_999] = true;
        using (DedupIndex index = Open(disk))
        {
            Assert.True(index.TryFlush(bits));
            index.Bind(Image);
        }

        using (DedupIndex index = Open(disk))
        {
            BitArray? found = index.LoadTableBits(Image, 70_000);
            Assert.NotNull(found);
            Assert.Equal(bits.Cast<bool>(), found.Cast<bool>());
            Assert.Null(index.LoadTableBits(Image with { ModifiedNanoseconds = 6 }, 70_000));
            Assert.Null(index.LoadTableBits(Image with { Length = 4 }, 70_000));
            Assert.Null(index.LoadTableBits(Image, 70_001));
        }
    }

    [Theory]
    [InlineData(Errno.ENOSPC)]
    [InlineData(Errno.EIO)]
    public void An_error_of_the_file_pauses_with_one_line(Errno errno)
    {
        SimulatedDisk disk = new();
        disk.Create("index");
        List<string> log = [];
        using DedupIndex index = DedupIndex.Open(disk.Open("index"), Settings(), 65536, Image, log.Add);
        disk.Fail(StorageCalls.Write, errno, nth: 40, times: long.MaxValue);
        for (int i = 0; i < 50_000; i++)
        {
            index.Insert(Entry(i));
            index.Remove(Entry(i - 3));
            _ = Find(index, Entry(i / 2).Hash);
        }

        Assert.NotNull(index.Paused);
        Assert.Single(log);
        Assert.False(index.TryFlush(null));
        index.Bind(Image);
    }

    [Fact]
    public void Many_threads_at_once()
    {
        SimulatedDisk disk = new();
        disk.Create("index");
        using DedupIndex index = DedupIndex.Open(disk.Open("index"), Settings() with { Background = true }, 65536, Image, null);
        Thread[] threads = [.. Enumerable.Range(0, 4).Select(t => new Thread(() =>
        {
            for (int i = t * 20_000; i < (t + 1) * 20_000; i++)
            {
                index.Insert(Entry(i));
                IndexEntry? found = Find(index, Entry(i - 500 < t * 20_000 ? i : i - 500).Hash);
                Assert.True(found is null || found == Entry((int)found.Value.Guest));
                if (i % 11 == 0)
                    index.Remove(Entry(i - 5));
            }
        }))];
        foreach (Thread thread in threads)
            thread.Start();
        foreach (Thread thread in threads)
            thread.Join();
        index.WaitForFreezing();
        AssertSane(index, 80_000, "after the threads");
        Assert.Null(index.Paused);
    }

    internal static DedupSettings Settings(int seed = 1)
    {
        Random random = new(seed);
        return new DedupSettings { Memory = SmallMemory, IndexSize = SmallIndex, FillRandom = random.NextBytes, Background = false };
    }

    private static DedupIndex Open(SimulatedDisk disk) =>
        DedupIndex.Open(disk.Open("index"), Settings((int)disk.Clock), 65536, Image, null);

    private static IndexEntry Entry(int number) =>
        new(XxHash.Hash128(BitConverter.GetBytes(number)), number, number * 3L);

    private static IndexEntry? Find(DedupIndex index, UInt128 hash)
    {
        IndexEntry?[] found = new IndexEntry?[1];
        index.Find([hash], found);
        return found[0];
    }

    private static int Found(DedupIndex index, int first, int end)
    {
        int count = 0;
        IndexEntry?[] found = new IndexEntry?[100];
        for (int i = first; i < end; i += 100)
        {
            index.Find([.. Enumerable.Range(i, 100).Select(number => Entry(number).Hash)], found);
            for (int j = 0; j < 100; j++)
            {
                if (found[j] is not { } entry)
                    continue;
                Assert.Equal(Entry(i + j), entry);
                count++;
            }
        }

        return count;
    }

    private static void AssertFound(DedupIndex index, int first, int end, double leastShare)
    {
        int found = Found(index, first, end);
        Assert.True(found >= (end - first) * leastShare, $"found {found} of {end - first}");
    }

    private static void AssertSane(DedupIndex index, int count, string where)
    {
        try
        {
            _ = Found(index, 0, count);
        }
        catch (Exception exception)
        {
            throw new InvalidOperationException($"{where}: {exception.Message}", exception);
        }
    }
}
