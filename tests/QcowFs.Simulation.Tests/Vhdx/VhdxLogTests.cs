// Logs at the edges of the format: which entries count, which files are refused.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxLogTests
{
    [Fact]
    public void A_log_of_one_entry() => new LogFile().With(new LogItem(7, LogFile.Maps(2))).Reads(2);

    [Fact]
    public void The_newest_of_a_run_wins() => new LogFile().With(
        new LogItem(7, LogFile.Maps(1)), new LogItem(8, LogFile.Maps(3)) { Tail = 0 }).Reads(3);

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void An_entry_may_wrap_at_the_end_of_the_ring(int sectorsBefore) => new LogFile().With(
        new LogItem(7, LogFile.Maps(1)) { At = LogFile.RingLength - (sectorsBefore * LogFile.Sector) },
        new LogItem(8, LogFile.Maps(4)) { Tail = LogFile.RingLength - (sectorsBefore * LogFile.Sector) }).Reads(4);

    [Fact]
    public void Numbers_may_be_the_last_ones() => new LogFile().With(
        new LogItem(ulong.MaxValue - 1, LogFile.Maps(1)), new LogItem(ulong.MaxValue, LogFile.Maps(2)) { Tail = 0 }).Reads(2);

    [Fact]
    public void Nothing_follows_the_last_number()
    {
        // What lies behind it would have number 0, which no entry has.
        new LogFile().With(new LogItem(ulong.MaxValue, LogFile.Maps(1)), new LogItem(0, LogFile.Maps(2)) { Tail = 0 }).Reads(1);
    }

    [Fact]
    public void Entries_of_an_earlier_log_do_not_count() => new LogFile().With(
        new LogItem(7, LogFile.Maps(1)), new LogItem(8, LogFile.Maps(2)) { Tail = 0, Guid = new Guid("99999999-2222-3333-4444-555555555555") }).Reads(1);

    [Theory]
    [InlineData(20, 30, 2)]
    [InlineData(30, 20, 1)]
    public void Of_two_runs_the_one_with_the_newest_entry_counts(int first, int second, int expected) => new LogFile().With(
        new LogItem((ulong)first, LogFile.Maps(1)), new LogItem((ulong)second, LogFile.Maps(2)) { At = 40 * LogFile.Sector }).Reads(expected);

    [Fact]
    public void A_run_whose_tail_is_gone_does_not_count() => new LogFile().With(
        new LogItem(30, LogFile.Maps(1)) { Tail = 100 * LogFile.Sector }, new LogItem(20, LogFile.Maps(2)) { At = 40 * LogFile.Sector }).Reads(2);

    /// <summary>The entries before the newest one's tail are whole, but were applied long ago: what they wrote over the first place is the
    /// guest's now.</summary>
    [Fact]
    public void What_lies_before_the_tail_is_not_applied_again()
    {
        byte[] stale = new byte[LogFile.Sector];
        stale.AsSpan().Fill(99);
        new LogFile().With(
            new LogItem(5, LogFile.Maps(1), new LogChange(4 << 20, stale)),
            new LogItem(6, LogFile.Maps(1)) { Tail = 0 },
            new LogItem(7, LogFile.Maps(1)) { Tail = 5 * LogFile.Sector }).Reads(1);
    }

    [Fact]
    public void A_torn_entry_ends_the_run() => new LogFile().With(
        new LogItem(7, LogFile.Maps(1)), new LogItem(8, LogFile.Maps(2)) { Tail = 0, Damage = entry => entry[5000] ^= 1 }).Reads(1);

    [Fact]
    public void An_entry_without_changes_is_a_log_in_use() => new LogFile().With(new LogItem(7)).Reads(0);

    [Fact]
    public void Zeros_and_pages_apply_in_their_order()
    {
        new LogFile().With(new LogItem(7, LogFile.Maps(1), new LogChange(LogFile.TableAt, null, 8192))).Reads(0);
        new LogFile().With(new LogItem(7, new LogChange(LogFile.TableAt, null, 8192), LogFile.Maps(3))).Reads(3);
        new LogFile().With(new LogItem(7, LogFile.Maps(1), new LogChange(4 << 20, null, 1 << 20))).Reads(0);
    }

    /// <summary>More descriptors than the first sector holds.</summary>
    [Fact]
    public void Descriptors_may_fill_several_sectors()
    {
        LogChange[] changes = [.. Enumerable.Range(1, 130).Select(i => new LogChange((7 << 20) + (i * LogFile.Sector), new byte[LogFile.Sector])), LogFile.Maps(2)];
        new LogFile().With(new LogItem(7, changes)).Reads(2);
    }

    /// <summary>The bytes that a data sector replaces by its signature and numbers are the page's own again after the replay.</summary>
    [Fact]
    public void The_ends_of_a_page_come_back()
    {
        byte[] page = Pattern.Bytes(3, 0, LogFile.Sector);
        LogFile file = new LogFile().With(new LogItem(0x1122334455667788, LogFile.Maps(1), new LogChange(4 << 20, page)));
        using MemoryStorage storage = VhdxImages.StorageOf("image", file.Bytes);
        byte[] read = new byte[LogFile.Sector];
        VhdxLayout.Read(storage).View.Read(4 << 20, read);
        Assert.Equal(page, read);
        Assert.Equal("the last writer did not end properly; 1 log entry with 8192 bytes of metadata were replayed",
            VhdxReplay.Run(storage, new VhdxImages.CountedGuids(1)));
        storage.Read(4 << 20, read);
        Assert.Equal(page, read);
    }

    [Fact]
    public void The_file_grows_to_what_the_log_says()
    {
        LogFile file = new LogFile().With(new LogItem(7, LogFile.Maps(1)) { LastFileOffset = 20 << 20 });
        file.Reads(1);
        using MemoryStorage storage = VhdxImages.StorageOf("image", file.Bytes);
        Assert.Equal(20 << 20, VhdxLayout.Read(storage).View.Length);
        VhdxReplay.Run(storage, new VhdxImages.CountedGuids(1));
        Assert.Equal(20 << 20, storage.Length);
    }

    /// <summary>The region tables may be stale before the replay, so nothing is read of them.</summary>
    [Fact]
    public void Region_tables_can_be_in_the_log()
    {
        LogFile file = new();
        LogChange[] changes = [.. Enumerable.Range(0, 32).Select(i => new LogChange(0x30000 + (i * LogFile.Sector), file.Bytes.AsSpan(0x30000 + (i * LogFile.Sector), LogFile.Sector).ToArray()))];
        file.Bytes.AsSpan(0x30000, 0x20000).Clear();
        file.With(new LogItem(7, [.. changes, LogFile.Maps(2)])).Reads(2);
    }

    [Theory]
    [InlineData(0L, "the file identifier or the headers")]
    [InlineData(0x10000L, "the file identifier or the headers")]
    [InlineData(0x2F000L, "the file identifier or the headers")]
    [InlineData(0x100000L, "the log itself")]
    [InlineData(0x1FF000L, "the log itself")]
    [InlineData(0x800000L, "past the end of the file")]
    [InlineData(0x7FFFFFFFFFFFE000L, "past the end of the file")]
    public void Changes_of_the_wrong_places_are_refused(long target, string reason) =>
        new LogFile().With(new LogItem(7, LogFile.Maps(1), new LogChange(target, new byte[LogFile.Sector]))).IsRefused(reason);

    [Fact]
    public void Zeros_that_reach_into_the_wrong_place_are_refused()
    {
        new LogFile().With(new LogItem(7, new LogChange(0x30000, null, 1 << 20))).IsRefused("the log itself");
        new LogFile().With(new LogItem(7, new LogChange(7 << 20, null, 0x7FFFFFFFFF000))).IsRefused("past the end of the file");
        new LogFile().With(new LogItem(7, new LogChange(-4096, null, 4096))).IsRefused("an entry changes 4096 bytes at byte 18446744073709547520");
    }

    [Fact]
    public void A_file_that_was_cut_is_refused() =>
        new LogFile().With(new LogItem(7, LogFile.Maps(1)) { FlushedFileOffset = (8 << 20) + 1 }).IsRefused("when it was written the file had 8388609 bytes, now it has 8388608; the file is cut short");

    [Fact]
    public void A_file_that_would_be_too_long_is_refused() =>
        new LogFile().With(new LogItem(7, LogFile.Maps(1)) { LastFileOffset = (1L << 47) + 1 }).IsRefused("it states a file of 140737488355329 bytes");

    [Fact]
    public void A_log_in_use_without_entries_is_refused() => new LogFile().With().IsRefused("no run of entries is whole; restore the file from a copy");

    [Theory]
    [InlineData(4)] // checksum
    [InlineData(12)] // tail, not a multiple
    [InlineData(64)] // descriptor's signature
    [InlineData(88)] // its number
    [InlineData(4096)] // data sector's signature
    [InlineData(8191)] // its number
    public void A_damaged_entry_does_not_count(int at) =>
        new LogFile().With(new LogItem(7, LogFile.Maps(1)) { Damage = entry => entry[at] ^= 1 }).IsRefused("no run of entries is whole");

    /// <summary>The checksum is right, and something that it covers is not.</summary>
    [Theory]
    [InlineData(80, 1)] // place of a page, not a multiple of 4096
    [InlineData(4096, 'x')] // data sector's signature
    [InlineData(4100, 1)] // high half of its number
    [InlineData(88, 9)] // a descriptor's number
    [InlineData(16, 0)] // number 0
    public void Every_part_of_an_entry_is_held_against_its_rule(int at, byte value) => new LogFile().With(new LogItem(7, LogFile.Maps(1))
    {
        Damage = entry =>
        {
            entry[at] = value;
            BinaryPrimitives.WriteUInt32LittleEndian(entry.AsSpan(4), VhdxReader.Checksum(entry, 4));
        },
    }).IsRefused("no run of entries is whole");

    [Fact]
    public void What_looks_like_an_entry_inside_a_page_is_none()
    {
        LogFile inner = new LogFile().With(new LogItem(9));
        byte[] bait = inner.Bytes.AsSpan(LogFile.RingOffset, LogFile.Sector).ToArray();
        new LogFile().With(new LogItem(7, LogFile.Maps(1), new LogChange(5 << 20, bait))).Reads(1);
    }

    [Fact]
    public void A_file_without_a_log_can_be_read_and_is_given_one_by_a_repair()
    {
        LogFile file = new LogFile().ChangeHeaders(header => header.AsSpan(68, 12).Clear());
        using MemoryStorage storage = VhdxImages.StorageOf("image", file.Bytes);
        IImageLayer layer = new VhdxFormat().Read(storage);
        layer.RequireOpenable(writable: false);
        Assert.Contains("run qcowfs check --repair", Assert.Throws<ImageFormatException>(() => layer.RequireOpenable(writable: true)).Message, StringComparison.Ordinal);
        CheckReport report = VhdxRepair.Run(storage, RepairMode.All, new VhdxImages.CountedGuids(1));
        Assert.Equal((0, 1), (report.ExitCode, report.CorruptionsFixed));
        using (IDiskImage image = LogFile.OpenToWrite(storage))
        {
            image.Write(0, [5]);
            image.Close();
        }

        Assert.Equal(5, new VhdxReader(VhdxImages.BytesOf(storage)).ReadAll()[0]);
    }

    [Fact]
    public void A_log_in_use_that_has_no_length_is_refused() => new LogFile().With(new LogItem(7)).ChangeHeaders(header => header.AsSpan(68, 4).Clear())
        .IsRefused("the log is in use but has no length");

    /// <summary>Each sector of the ring is the head of an entry that fills it: whoever checks all of them works for ever.</summary>
    [Fact]
    public void A_ring_made_to_be_checksummed_for_ever_is_refused()
    {
        const int ring = 64 << 20;
        LogFile file = new LogFile().With(new LogItem(7) { Damage = entry => BinaryPrimitives.WriteInt32LittleEndian(entry.AsSpan(8), ring) });
        byte[] head = file.Bytes.AsSpan(LogFile.RingOffset, LogFile.Sector).ToArray();
        using MemoryStorage storage = VhdxImages.StorageOf("image", file.Bytes);
        for (int at = 0; at < ring; at += LogFile.Sector)
            storage.Write((8 << 20) + at, head);
        file.ChangeHeaders(header =>
        {
            BinaryPrimitives.WriteInt32LittleEndian(header.AsSpan(68), ring);
            BinaryPrimitives.WriteInt64LittleEndian(header.AsSpan(72), 8 << 20);
        });
        storage.Write(0, file.Bytes.AsSpan(0, 0x30000));
        ImageFormatException refusal = Assert.Throws<ImageFormatException>(() => VhdxLayout.Read(storage));
        Assert.Contains("would not end soon", refusal.Message, StringComparison.Ordinal);
    }
}
