// Partition tables: what each kind states, what is wrong with it, and that nothing in them leads out of the disk.
using QcowFs.FileSystem.Partitions;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class PartitionTableTests
{
    private const int Size = 1 << 20;

    [Fact]
    public void The_checksum_is_that_of_the_standard() => Assert.Equal(0xCBF43926u, GuidTable.Crc32("123456789"u8));

    [Theory]
    [InlineData(512)]
    [InlineData(4096)]
    public void A_GPT_numbers_partitions_by_their_entries(int sectorSize)
    {
        PartitionTable table = new PartitionBytes(Size, sectorSize).Gpt((100, 109), default, (50, 50)).Read();
        Assert.Equal(PartitionScheme.Gpt, table.Scheme);
        Assert.Equal(sectorSize, table.SectorSize);
        Assert.Equal(
            [new Partition(1, 100L * sectorSize, 10L * sectorSize), new Partition(3, 50L * sectorSize, sectorSize)], table.Partitions);
        Assert.Empty(table.Warnings);
    }

    [Theory]
    [InlineData(512, 512)]          // the header's signature
    [InlineData(512, 512 + 40)]     // a byte that the header's checksum covers
    [InlineData(512, 1024 + 33)]    // a byte of the entries
    [InlineData(4096, 4096 + 72)]
    [InlineData(512, 0)]            // and the MBR too: see below
    public void The_backup_is_used_where_the_first_is_broken(int sectorSize, int broken)
    {
        PartitionBytes disk = new PartitionBytes(Size, sectorSize).Gpt((50, 59));
        if (broken == 0) disk.Bytes.AsSpan(0, 8 * sectorSize).Clear(); // the start of the disk overwritten with zeros
        else disk.Bytes[broken] ^= 1;
        PartitionTable table = disk.Read();
        Assert.Equal([new Partition(1, 50L * sectorSize, 10L * sectorSize)], table.Partitions);
        Assert.Contains("backup", Assert.Single(table.Warnings), StringComparison.Ordinal);
        disk.Bytes[Size - sectorSize + 40] ^= 1;
        Assert.Empty(disk.Read().Partitions);
        Assert.Equal(broken == 0 ? [] : ["the MBR protects a GPT, of which neither copy is valid"], disk.Read().Warnings);
    }

    [Fact]
    public void A_GPT_wins_over_a_protective_MBR_and_not_over_one_in_use()
    {
        PartitionBytes disk = new PartitionBytes(Size).Gpt((50, 59));
        Assert.Equal(PartitionScheme.Gpt, disk.Mbr(1, 0x83, 50, 10).Read().Scheme); // a hybrid protects too
        disk.Mbr(0, 0x83, 60, 10).Mbr(1, 0, 0, 0);
        PartitionTable table = disk.Read();
        Assert.Equal(PartitionScheme.Mbr, table.Scheme);
        Assert.Equal([new Partition(1, 60 * 512, 10 * 512)], table.Partitions);
        Assert.Equal(PartitionScheme.Gpt, disk.Mbr(0, 0, 0, 0).Read().Scheme); // an empty one does not count
    }

    [Fact]
    public void Logical_partitions_are_counted_from_5_and_the_extended_one_is_not_shown()
    {
        PartitionTable table = new PartitionBytes(Size)
            .Mbr(0, 0x83, 10, 20).Mbr(1, 0x0F, 100, 1000).Mbr(3, 0x82, 2000, 10)
            .Mbr(0, 0x83, 2, 50, tableSector: 100).Mbr(1, 0x05, 200, 100, tableSector: 100)
            .Mbr(0, 0x83, 2, 60, tableSector: 300)
            .Read();
        Assert.Equal(
            [new(1, 10 * 512, 20 * 512), new(4, 2000 * 512, 10 * 512), new(5, 102 * 512, 50 * 512), new(6, 302 * 512, 60 * 512)],
            table.Partitions);
        Assert.Empty(table.Warnings);
    }

    [Fact]
    public void Where_an_MBR_counts_larger_sectors_what_it_leads_to_tells()
    {
        PartitionBytes disk = new(Size, 4096);
        disk.Mbr(0, 0x83, 10, 20).Mbr(1, 0x05, 100, 100).Mbr(0, 0x83, 2, 50, tableSector: 100);
        Assert.Equal([new(1, 40960, 81920), new(5, 102 * 4096, 50 * 4096)], disk.Read().Partitions);
        PartitionBytes plain = new(Size, 4096);
        plain.Mbr(0, 0x83, 10, 20);
        Assert.Equal(512, plain.Read().SectorSize); // nothing tells
        "XFSB"u8.CopyTo(plain.Bytes.AsSpan(40960));
        Assert.Equal(4096, plain.Read().SectorSize);
        plain.Bytes[(10 * 512) + 1080] = 0x53;
        plain.Bytes[(10 * 512) + 1081] = 0xEF;
        Assert.Equal(512, plain.Read().SectorSize); // tried first
    }

    [Fact]
    public void A_chain_that_goes_in_a_circle_ends()
    {
        PartitionTable table = new PartitionBytes(Size)
            .Mbr(0, 0x05, 100, 1000)
            .Mbr(0, 0x83, 2, 5, tableSector: 100).Mbr(1, 0x05, 50, 10, tableSector: 100)
            .Mbr(0, 0x83, 2, 5, tableSector: 150).Mbr(1, 0x05, 50, 10, tableSector: 150)
            .Read();
        Assert.Equal([5, 6], table.Partitions.Select(p => p.Number));
        Assert.Contains("circle", Assert.Single(table.Warnings), StringComparison.Ordinal);
    }

    [Fact]
    public void A_chain_that_does_not_end_is_cut()
    {
        PartitionBytes disk = new(Size);
        disk.Mbr(0, 0x05, 100, 1000);
        for (uint i = 0; i < 500; i++)
            disk.Mbr(0, 0x83, 1, 1, tableSector: 100 + (2 * i)).Mbr(1, 0x05, 2 * (i + 1), 10, tableSector: 100 + (2 * i));
        PartitionTable table = disk.Read();
        Assert.Equal(100, table.Partitions.Count);
        Assert.Contains("too long", Assert.Single(table.Warnings), StringComparison.Ordinal);
    }

    [Fact]
    public void What_reaches_past_the_end_is_cut_and_overlaps_are_told()
    {
        PartitionTable table = new PartitionBytes(Size).Gpt((2000, 5000), (9000, 9999), (1990, 2010), (60, 50), (0, ulong.MaxValue)).Read();
        Assert.Equal(
            [new(1, 2000 * 512, 48 * 512), new(2, Size, 0), new(3, 1990 * 512, 21 * 512), new(4, 60 * 512, 0), new(5, 0, 0)],
            table.Partitions);
        Assert.Equal(
            [
                "partition 1 (3001 sectors from 2000) reaches past the end of the disk and is cut there",
                "partition 2 (1000 sectors from 9000) reaches past the end of the disk and is cut there",
                "partition 4 ends before it begins (sectors 60 to 50)",
                "partition 5 ends before it begins (sectors 0 to 18446744073709551615)",
                "partition 1 overlaps partition 3",
            ],
            table.Warnings);
    }

    [Fact]
    public void An_MBR_whose_partitions_lie_past_the_end_is_cut_too()
    {
        PartitionTable table = new PartitionBytes(Size)
            .Mbr(0, 0x83, uint.MaxValue, uint.MaxValue).Mbr(1, 0x05, uint.MaxValue, 1000).Mbr(2, 0x83, 2040, 1000).Read();
        Assert.Equal([new(1, Size, 0), new(3, 2040 * 512, 8 * 512)], table.Partitions);
        Assert.Equal(3, table.Warnings.Count);
    }

    [Fact]
    public void A_file_systems_boot_sector_is_no_table()
    {
        PartitionBytes disk = new(Size);
        disk.Mbr(0, 0x20, 0x6B736964, 0x0A0D7265, status: 0x6F); // text where the table would be
        Assert.Equal(PartitionTable.None, disk.Read());
        Assert.Equal(PartitionTable.None, new PartitionBytes(Size).Read());
        Assert.Equal(PartitionTable.None, new PartitionBytes(511).Read());
        Assert.Equal(PartitionTable.None, new PartitionBytes(0).Read());
    }

    [Fact]
    public void No_more_partitions_are_shown_than_the_limit()
    {
        PartitionBytes disk = new(8 << 20);
        disk.Gpt([.. Enumerable.Range(0, 128).Select(i => ((ulong)(100 + i), (ulong)(100 + i)))]);
        Assert.Equal(128, disk.Read().Partitions.Count);
        PartitionListing listing = new(8 << 20, 512);
        for (int i = 1; i <= 300; i++) listing.Add(i, (ulong)i, 1);
        PartitionTable table = listing.Finish(PartitionScheme.Gpt);
        Assert.Equal(PartitionTable.MostPartitions, table.Partitions.Count);
        Assert.Contains("only the first 256", table.Warnings[0], StringComparison.Ordinal);
        for (int i = 0; i < 1000; i++) listing.Warn($"warning {i}");
        Assert.InRange(listing.Finish(PartitionScheme.Gpt).Warnings.Count, 20, 22);
    }

    [Fact]
    public void Whatever_the_bytes_are_nothing_lies_outside_the_disk()
    {
        foreach (ulong seed in Seeds.Between(1, 4))
        {
            Random random = new((int)seed);
            for (int round = 0; round < 500; round++)
            {
                PartitionBytes disk = Make(random);
                for (int i = random.Next(6); i > 0; i--) disk.Bytes[random.Next(2) == 0 ? random.Next(1200) : random.Next(disk.Bytes.Length)] ^= (byte)random.Next(256);
                if (random.Next(4) == 0) Repair(disk, random);
                PartitionTable table = disk.Read();
                Assert.All(table.Partitions, p => Assert.True(
                    p.Offset >= 0 && p.Length >= 0 && p.Offset <= disk.Bytes.Length && p.Length <= disk.Bytes.Length - p.Offset, $"seed {seed}, round {round}: {p}"));
                Assert.Equal(table.Partitions.Count, table.Partitions.Select(p => p.Number).Distinct().Count());
            }
        }

        static PartitionBytes Make(Random random)
        {
            PartitionBytes disk = new(random.Next(40_000, 200_000), random.Next(2) == 0 ? 512 : 4096);
            if (random.Next(2) == 0 && disk.Sectors > 20)
                return disk.Gpt(((ulong)random.Next(300), (ulong)random.Next(300)), ((ulong)random.NextInt64(), (ulong)random.NextInt64()));
            for (int slot = 0; slot < 4; slot++)
                disk.Mbr(slot, (byte)(random.Next(2) == 0 ? 5 : 0x83), (uint)random.Next(disk.Sectors), (uint)random.Next(200));
            for (int chain = 0; chain < 8; chain++)
                disk.Mbr(random.Next(2), (byte)(random.Next(2) == 0 ? 5 : 0x83), (uint)random.Next(disk.Sectors), (uint)random.Next(), (uint)random.Next(disk.Sectors - 1));
            return disk;
        }

        // Checksums that agree with what was changed, so that the parser looks further.
        static void Repair(PartitionBytes disk, Random random)
        {
            Span<byte> header = disk.Bytes.AsSpan(disk.SectorSize, 92);
            BitConverter.TryWriteBytes(header[72..], (ulong)random.NextInt64());
            BitConverter.TryWriteBytes(header[80..], random.Next(3) == 0 ? uint.MaxValue : (uint)random.Next(64));
            BitConverter.TryWriteBytes(header[84..], random.Next(3) == 0 ? uint.MaxValue : 128u);
            header[16..20].Clear();
            BitConverter.TryWriteBytes(header[16..], GuidTable.Crc32(header));
        }
    }
}
