// Single promises of the writer: what it syncs, what it believes, what it gives back, what it leaves in the headers.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxWriteTests
{
    private const int Block = 1 << 20;

    /// <summary>An allocating write costs two device syncs with its fsync, an overwrite one, nothing none.</summary>
    [Theory]
    [InlineData(VhdxKind.Dynamic)]
    [InlineData(VhdxKind.Differencing)]
    public void Syncs_are_few(VhdxKind kind)
    {
        PreparedVhdx prepared = VhdxImages.Prepare(kind);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        using CowImage image = VhdxImages.Open(disk, prepared);
        image.Write(0, [1]);
        image.Sync();
        Assert.Equal(2, SyncsOf(() => image.Write(Block, [1])));
        Assert.Equal(1, SyncsOf(() => image.Write(Block, [2])));
        Assert.Equal(0, SyncsOf(static () => { }));
        Assert.Equal(1, SyncsOf(() => image.Discard(Block, Block)));
        // A long series of them: the tail moves with the data's syncs, so a full ring costs nothing.
        for (int i = 0; i < 300; i++)
        {
            image.Discard(0, Block);
            image.Sync();
            Assert.Equal(2, SyncsOf(() => image.Write(0, [7])));
        }

        image.Close();

        long SyncsOf(Action work)
        {
            long before = disk.Count(StorageCalls.Sync);
            work();
            image.Sync();
            return disk.Count(StorageCalls.Sync) - before;
        }
    }

    /// <summary>A session's first change renews both GUIDs in both headers; a session without one changes nothing (C2).</summary>
    [Fact]
    public void Write_guids_are_new_before_the_first_change()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Full);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        byte[] before = disk.Content("image");
        using (CowImage idle = VhdxImages.Open(disk, prepared))
        {
            idle.Sync();
            idle.Close();
        }

        Assert.True(before.AsSpan().SequenceEqual(disk.Content("image")), "a session without a change changed the file");
        using CowImage image = VhdxImages.Open(disk, prepared);
        bool written = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Write || call.Offset < 4 << 20)
                return;
            written = true;
            byte[] durable = disk.DurableContent("image");
            foreach (int at in new[] { 0x10000, 0x20000 })
            {
                Assert.False(durable.AsSpan(at + 16, 16).SequenceEqual(before.AsSpan(at + 16, 16)), "the file write GUID is the old one");
                Assert.False(durable.AsSpan(at + 32, 16).SequenceEqual(before.AsSpan(at + 32, 16)), "the data write GUID is the old one");
                Assert.True(durable.AsSpan(at + 48, 16).ContainsAnyExcept((byte)0), "the log is not in use");
            }
        };
        image.Write(10, [1, 2, 3]);
        Assert.True(written);
        disk.BeforeCall = null;
        image.Close();
    }

    /// <summary>Both headers hold every change, so that either may be lost (H2).</summary>
    [Theory]
    [InlineData(0x10000)]
    [InlineData(0x20000)]
    public void Either_header_may_be_lost(int at)
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Dynamic);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        using (CowImage image = VhdxImages.Open(disk, prepared))
        {
            image.Write(0, [1, 2, 3]);
            image.Sync();
        }

        byte[] bytes = disk.Crash(CrashChoice.Nothing).Content("image");
        bytes[at + 100] ^= 1;
        SimulatedDisk damaged = new();
        damaged.Create("image", bytes);
        using (CowImage image = VhdxImages.Open(damaged, prepared, session: 2))
        {
            byte[] read = new byte[3];
            image.Read(0, read);
            Assert.Equal([1, 2, 3], read);
            image.Close();
        }

        using SimulatedStorage file = damaged.Open("image");
        Assert.True(VhdxHeaders.Read(file).OtherIsValid);
    }

    /// <summary>A write never goes to the header that is current on the disk (H1).</summary>
    [Fact]
    public void The_current_header_is_never_written()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Dynamic);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        int writes = 0;
        for (int session = 1; session <= 3; session++)
        {
            using CowImage image = VhdxImages.Open(disk, prepared, session: session);
            disk.BeforeCall = call =>
            {
                if (call.Kind != StorageCalls.Write || call.Offset >= 0x30000)
                    return;
                byte[] durable = disk.DurableContent("image");
                ulong first = BinaryPrimitives.ReadUInt64LittleEndian(durable.AsSpan(0x10008));
                ulong second = BinaryPrimitives.ReadUInt64LittleEndian(durable.AsSpan(0x20008));
                Assert.Equal(first > second ? 0x20000 : 0x10000, call.Offset);
                writes++;
            };
            image.Write(session * 1000, [1]);
            image.Close();
            disk.BeforeCall = null;
        }

        Assert.Equal(12, writes);
    }

    /// <summary>A sequence number at its end begins anew, and no torn write on the way leaves a file without a valid header (H3).</summary>
    [Fact]
    public void Sequence_numbers_that_come_to_their_end_begin_anew()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Dynamic);
        byte[] bytes = [.. prepared.File];
        foreach ((int at, ulong sequence) in new[] { (0x10000, ulong.MaxValue), (0x20000, ulong.MaxValue - 1) })
        {
            BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(at + 8), sequence);
            BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(at + 4), VhdxReader.Checksum(bytes.AsSpan(at, 4096), 4));
        }

        PreparedVhdx last = prepared with { File = bytes };
        for (long tick = 1; ; tick++)
        {
            SimulatedDisk disk = VhdxImages.DiskOf(last);
            DiskModel model = new(last.Guest);
            disk.CrashAt(tick);
            bool ended = false;
            try
            {
                using CowImage image = VhdxImages.Open(disk, last);
                new Operation(OperationKind.Write, 0, new byte[600]).Run(image, model);
                new Operation(OperationKind.Write, 5000, Pattern.Bytes(1, 0, 600)).Run(image, model);
                new Operation(OperationKind.Sync, 0, []).Run(image, model);
                image.Close();
                ended = true;
            }
            catch (SimulatedCrashException)
            {
                // The crash that was asked for.
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(8, (ulong)tick))
                VhdxCrashRun.Judge(survivor, model, last, $"tick {tick} {choice}");
            if (ended)
                return;
        }
    }

    /// <summary>Bits that stand in a sector bitmap for a block that is not present mean nothing, also when it becomes present (M3).</summary>
    [Fact]
    public void Stale_bits_of_an_absent_block_are_not_believed()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Differencing);
        byte[] bytes = VhdxImages.WithStaleBits(prepared, block: 1);
        SimulatedDisk stale = new();
        stale.Create("image", bytes);
        using (CowImage image = VhdxImages.Open(stale, prepared, session: 2))
        {
            image.Write(Block + 5120, [9]);
            byte[] expected = prepared.Guest.AsSpan(Block, Block).ToArray();
            expected[5120] = 9;
            byte[] read = new byte[Block];
            image.Read(Block, read);
            Assert.True(read.AsSpan().SequenceEqual(expected));
            image.Close();
        }
    }

    /// <summary>Free space that a crash or another program left full of bytes reads as zeros when it is used again (A1).</summary>
    [Fact]
    public void Space_left_by_a_crash_is_clean_when_it_is_taken()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Dynamic);
        byte[] bytes = new byte[prepared.File.Length + (2 * Block)];
        bytes.AsSpan().Fill(0xEE);
        prepared.File.CopyTo(bytes, 0);
        SimulatedDisk disk = new();
        disk.Create("image", bytes);
        using CowImage image = VhdxImages.Open(disk, prepared);
        image.Write(1000, [1]);
        image.Write(Block + 1000, [1]);
        image.Write((2 * Block) + 1000, [1]);
        byte[] read = new byte[3 * Block];
        image.Read(0, read);
        Assert.Equal(3, read.Count(value => value != 0));
        image.Close();
        Assert.Equal(prepared.File.Length + (3 * Block), disk.Content("image").Length);
    }

    /// <summary>Freed blocks are used again, and the file ends behind the last one in use.</summary>
    [Fact]
    public void Space_is_used_again_and_given_back()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Full);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        long full = disk.Content("image").Length;
        using (CowImage image = VhdxImages.Open(disk, prepared))
        {
            image.Discard(0, 2 * Block);
            image.Sync();
            Assert.True(disk.UsedSpace < full - Block);
            image.Write(0, Pattern.Bytes(1, 0, 5000));
            image.Write(Block, Pattern.Bytes(1, 0, 5000));
            Assert.Equal(full, disk.Content("image").Length);
            image.Discard(0, VhdxImages.DiskSize);
            image.Close();
        }

        Assert.Equal(4 << 20, disk.Content("image").Length);
    }

    /// <summary>The file is not cut while its log is in use: one shorter than the log says is taken for damaged (C3).</summary>
    [Fact]
    public void The_file_is_cut_after_the_log_is_closed()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Full);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        using CowImage image = VhdxImages.Open(disk, prepared);
        image.Discard(0, VhdxImages.DiskSize);
        bool cut = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.SetLength)
                return;
            cut = true;
            Assert.True(new VhdxReader(disk.DurableContent("image")).LogIsEmpty);
        };
        image.Close();
        Assert.True(cut);
    }

    /// <summary>While a reader holds a block's place, nothing else comes to live there (I6).</summary>
    [Fact]
    public void A_block_is_not_reused_under_a_reader()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Full);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        using CowImage image = VhdxImages.Open(disk, prepared);
        image.Write(0, [1]);
        image.Sync();
        long host = image.QueryExtent(0, 1).Host;
        Thread? other = null;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Read || call.Offset != host + 512 || other is not null)
                return;
            other = new Thread(() =>
            {
                image.Discard(0, Block);
                image.Sync();
            });
            other.Start();

            // Either the commit waits for this reader, or it does not and ends.
            SpinWait.SpinUntil(() => ((VhdxBlockMap)image.Map).State.Epoch.IsWaiting || !other.IsAlive);
        };
        byte[] read = new byte[4096];
        image.Read(512, read);
        Assert.True(read.AsSpan().SequenceEqual(prepared.Guest.AsSpan(512, 4096)), "the reader saw what came after");
        Assert.True(other!.Join(TimeSpan.FromMinutes(1)), "the commit hangs");
        image.Close();
    }

    /// <summary>A table that names one place twice is never written over.</summary>
    [Fact]
    public void A_file_whose_blocks_overlap_is_only_read()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Full);
        byte[] bytes = [.. prepared.File];
        bytes.AsSpan(3 << 20, 8).CopyTo(bytes.AsSpan((3 << 20) + 8));
        using MemoryStorage file = VhdxImages.StorageOf("image", bytes);
        using (CowImage image = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), new BorrowedStorage(file), null, new OpenOptions())))
            image.Read(0, new byte[10]);
        ImageFormatException refusal = Assert.Throws<ImageFormatException>(() => LogFile.OpenToWrite(file));
        Assert.Contains("block 1: its place at byte 4194304 is in use by something else too; see qcowfs check image, or mount it without -w", refusal.Message, StringComparison.Ordinal);
        Assert.True(VhdxImages.BytesOf(file).AsSpan().SequenceEqual(bytes));
        Assert.Equal(2, VhdxChecker.Check(file).ExitCode);
    }
}
