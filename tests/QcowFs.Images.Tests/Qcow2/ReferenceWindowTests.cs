// The counts of a check: a byte each until one grows beyond it, and what is stored likewise.
using System.Buffers.Binary;
using QcowFs.Images.Qcow2;
using QcowFs.Storage;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class ReferenceWindowTests
{
    [Theory]
    [InlineData(1)]
    [InlineData(100)]
    [InlineData(254)]
    [InlineData(255)]
    [InlineData(256)]
    [InlineData(1L << 31)]
    [InlineData(1L << 33)]
    public void Counts_stop_only_at_the_largest(long weight)
    {
        ReferenceWindow window = new(10);
        window.Reset(100, 200);
        for (int i = 1; i <= 5; i++)
        {
            window.Add(103, 105, weight);
            Assert.Equal((uint)Math.Min(weight * i, uint.MaxValue), window[104]);
            Assert.Equal((byte)Math.Min(weight * i, ReferenceWindow.Many), window.Small[4]);
        }

        Assert.Equal((0u, 0u), (window[102], window[106]));
        window.Reset(100, 200);
        Assert.Equal(0u, window[104]);
    }

    [Fact]
    public void Entries_count_one_each_across_the_border_and_outside()
    {
        ReferenceWindow window = new(4);
        window.Reset(10, 100);
        ulong[] entries = [.. new long[] { 9, 10, 11, 13, 14, 90, 12, 12 }.Select(c => BinaryPrimitives.ReverseEndianness((ulong)c << 16 | 1UL << 63))];
        for (int i = 0; i < 300; i++)
            window.AddEntries(entries, 16);
        Assert.Equal([300u, 300u, 600u, 300u], Enumerable.Range(10, 4).Select(c => window[c]));
        Assert.Equal(14, window.NextReferenced);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    [InlineData(6)]
    public void Stored_counts_of_every_width_fit_into_a_byte(int order)
    {
        Qcow2Header header = new()
        {
            Version = 3,
            ClusterBits = 12,
            VirtualSize = 0,
            L1Size = 0,
            L1Offset = 0,
            RefcountTableOffset = 4096,
            RefcountTableClusters = 1,
            RefcountOrder = order,
            HeaderLength = Qcow2HeaderLayout.WrittenLength,
        };
        using MemoryStorage file = new("image", 3 * 4096);
        byte[] entry = new byte[8];
        RefcountTableEntry.Block(8192).WriteTo(entry);
        file.Write(4096, entry);
        byte[] block = new byte[4096];
        Random random = new(order);
        int counts = 4096 * 8 >> order;
        ulong most = order == 6 ? ulong.MaxValue : (1UL << (1 << order)) - 1;
        for (int i = 0; i < counts; i++)
        {
            ulong count = random.Next(4) switch { 0 => 0, 1 => 1, 2 => (ulong)random.Next(250, 260), _ => (ulong)random.NextInt64() };
            RefcountEncoding.Set(block, i, order, Math.Min(count, most));
        }

        file.Write(8192, block);
        RefcountTable table = new(header, file);
        foreach ((int first, int length) in ((int, int)[])[(0, counts), (1, 17), (33, 31), (counts - 5, 5)])
        {
            byte[] small = new byte[length];
            table.CopySmall(first, small);
            for (int i = 0; i < length; i++)
                Assert.Equal((byte)Math.Min(table[first + i], 255), small[i]);
        }
    }
}
