// Table entries bit by bit, from the layouts of the format.
using QcowFs.Images.Qcow2;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class Qcow2EntryTests
{
    [Fact]
    public void Each_bit_of_an_L1_entry_belongs_to_one_field()
    {
        for (int bit = 0; bit < 64; bit++)
        {
            L1Entry entry = new(1UL << bit);
            Assert.Equal(bit is >= 9 and <= 55 ? 1L << bit : 0, entry.TableOffset);
            Assert.Equal(bit == 63, entry.Copied);
            Assert.Equal(bit is < 9 or (> 55 and < 63), entry.Reserved != 0);
        }

        Assert.Equal(0x8000_0000_0005_0000, L1Entry.Table(0x50000, copied: true).Raw);
        Assert.Equal(0x50000UL, L1Entry.Table(0x50000, copied: true).WithCopied(false).Raw);
    }

    [Fact]
    public void Each_bit_of_a_standard_L2_entry_belongs_to_one_field()
    {
        for (int bit = 0; bit < 64; bit++)
        {
            L2Entry entry = new(1UL << bit);
            Assert.Equal(bit is >= 9 and <= 55 ? 1L << bit : 0, entry.HostOffset.Value);
            Assert.Equal(bit == 0, entry.IsZeroFlag);
            Assert.Equal(bit == 62, entry.IsCompressed);
            Assert.Equal(bit == 63, entry.Copied);
            Assert.Equal(bit is (> 0 and < 9) or (> 55 and < 62), entry.Reserved != 0);
            Assert.Equal(bit is (>= 9 and <= 55) or 63, entry.HasHostCluster);
        }

        Assert.Equal(0x8000_0000_0005_0001, L2Entry.ZeroAllocated(new HostOffset(0x50000), copied: true).Raw);
        Assert.False(new L2Entry(L2Entry.CompressedBit | 1).IsZeroFlag);
    }

    [Fact]
    public void Each_bit_of_a_refcount_table_entry_belongs_to_one_field()
    {
        for (int bit = 0; bit < 64; bit++)
        {
            RefcountTableEntry entry = new(1UL << bit);
            Assert.Equal(bit < 9, entry.Reserved != 0);
            Assert.Equal(bit >= 9, entry.IsAllocated);
        }

        Assert.True(new RefcountTableEntry(1UL << 63).BlockOffset < 0);
    }

    [Theory]
    [InlineData(9)]
    [InlineData(12)]
    [InlineData(16)]
    [InlineData(21)]
    public void A_compressed_descriptor_is_what_was_put_in_and_never_longer_than_two_clusters(int clusterBits)
    {
        Random random = new(clusterBits);
        for (int i = 0; i < 10_000; i++)
        {
            long offset = random.NextInt64(CompressedDescriptor.OffsetLimit(clusterBits));
            int length = random.Next(1, (1 << clusterBits) + 1);
            L2Entry entry = CompressedDescriptor.Entry(offset, length, clusterBits);
            CompressedDescriptor read = CompressedDescriptor.Of(entry, clusterBits);
            Assert.True(entry.IsCompressed && !entry.Copied && read.IsWellFormed);
            Assert.Equal(offset, read.Offset);
            Assert.InRange(read.Length, length, length + 511);
            Assert.Equal(0, read.End % 512);

            CompressedDescriptor any = CompressedDescriptor.Of(new L2Entry((ulong)random.NextInt64() | L2Entry.CompressedBit), clusterBits);
            Assert.InRange(any.Length, 1, 2 << clusterBits);
        }
    }

    [Fact]
    public void Packed_counts_start_at_the_lowest_bit()
    {
        // Eleven clusters of one bit each, as qemu-img writes them.
        byte[] ones = new byte[8];
        for (int i = 0; i < 11; i++)
            RefcountEncoding.Set(ones, i, 0, 1);
        Assert.Equal([0xFF, 0x07, 0, 0, 0, 0, 0, 0], ones);

        for (int order = 0; order <= 6; order++)
        {
            int count = 64 * 8 >> order;
            ulong mask = order == 6 ? ulong.MaxValue : (1UL << (1 << order)) - 1;
            byte[] block = new byte[64];
            Random random = new(order);
            ulong[] expected = [.. Enumerable.Range(0, count).Select(_ => unchecked((ulong)random.NextInt64() * 3) & mask)];
            for (int pass = 0; pass < 2; pass++)
            {
                for (int i = 0; i < count; i++)
                    RefcountEncoding.Set(block, i, order, expected[i]);
            }

            Assert.Equal(expected, Enumerable.Range(0, count).Select(i => RefcountEncoding.Get(block, i, order)));
        }
    }

    [Fact]
    public void Overlapping_ranges_are_cut_into_pieces_with_their_number()
    {
        List<WeightedRange> merged = WeightedRange.Merge([(0, 100), (50, 100), (50, 50), (200, 8), (300, 0), (208, 8)]);
        Assert.Equal(
            [new WeightedRange(0, 50, 1), new(50, 50, 3), new(100, 50, 1), new(200, 8, 1), new(208, 8, 1)], merged);
    }
}
