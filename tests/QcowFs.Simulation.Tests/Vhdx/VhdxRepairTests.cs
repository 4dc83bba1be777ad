// Repairing a VHDX: blocks that share a place get one of their own and read as before, a crash at any instant leaves an image that is no
// worse, and what cannot be trusted is left alone.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxRepairTests
{
    private const int Block = 1 << 20;
    private const int Table = 3 << 20;

    /// <summary>What an image of <see cref="VhdxKind.Full"/> or one over a parent has two of.</summary>
    public enum Sharing
    {
        /// <summary>Two blocks in one place.</summary>
        Whole,
        /// <summary>Three in one place, and two in another.</summary>
        Several,
        /// <summary>A block where the sector bitmap is.</summary>
        Bitmap,
        /// <summary>Reserved bits in the entry besides.</summary>
        Bits,
    }

    [Theory]
    [InlineData(Sharing.Whole)]
    [InlineData(Sharing.Several)]
    [InlineData(Sharing.Bitmap)]
    [InlineData(Sharing.Bits)]
    public void Blocks_that_share_a_place_get_one_of_their_own(Sharing sharing)
    {
        (PreparedVhdx prepared, byte[] bytes, int shared) = Shared(sharing);
        using MemoryStorage file = VhdxImages.StorageOf("image", bytes);
        byte[] before = Read(file, prepared);
        CheckReport found = VhdxChecker.Check(file);
        Assert.Equal(shared, found.Findings.Count(f => f.Kind == "overlap" && f.Repair.StartsWith("give the block a place of its own", StringComparison.Ordinal)));
        Guid dataWritten = VhdxHeaders.Read(file).Current.DataWriteGuid;
        CheckReport left = VhdxRepair.Run(file, RepairMode.All, new VhdxImages.CountedGuids(1));
        Assert.Equal((0, found.Corruptions), (left.ExitCode, left.CorruptionsFixed));
        Assert.True(Read(file, prepared).AsSpan().SequenceEqual(before), "the disk reads otherwise");

        // F5: children of the disk stay valid.
        Assert.Equal(dataWritten, VhdxHeaders.Read(file).Current.DataWriteGuid);
        Assert.Equal(Guid.Empty, VhdxHeaders.Read(file).Current.LogGuid);
        using CowImage image = Open(file, prepared, writable: true);
        image.Write(Block + 100, [1, 2, 3]);
        image.Close();
        before.AsSpan(Block + 100, 3).Clear();
        ((byte[])[1, 2, 3]).CopyTo(before, Block + 100);
        Assert.True(Read(file, prepared).AsSpan().SequenceEqual(before), "a write to one block changed another");
    }

    [Theory]
    [InlineData(Sharing.Several)]
    [InlineData(Sharing.Bitmap)]
    public void A_crash_leaves_it_no_worse(Sharing sharing)
    {
        (PreparedVhdx prepared, byte[] bytes, _) = Shared(sharing);
        SimulatedDisk whole = DiskOf(bytes);
        byte[] expected = Read(whole, prepared);
        Repair(whole);
        Judge(whole.Crash(CrashChoice.Nothing), "no crash");
        Assert.Equal(0, VhdxChecker.Check(whole.Open("image", readOnly: true)).ExitCode);
        for (long tick = 1; tick <= whole.Clock; tick++)
        {
            SimulatedDisk disk = DiskOf(bytes);
            disk.CrashAt(tick);
            Assert.Throws<SimulatedCrashException>(() => Repair(disk));
            int number = 0;
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(6, (ulong)tick))
            {
                Judge(survivor, $"tick {tick} {choice}");
                if (number++ % 3 != 0)
                    continue;
                SimulatedDisk again = survivor.Kill();
                Assert.Equal(0, Repair(again).ExitCode);
                Judge(again.Crash(CrashChoice.Nothing), $"tick {tick} {choice}, again");
            }
        }

        void Judge(SimulatedDisk disk, string where) => Assert.True(Read(disk, prepared).AsSpan().SequenceEqual(expected), $"{where}: the disk reads otherwise");
    }

    /// <summary>F1 and F3: a log in use is replayed first, and entries are mended through it.</summary>
    [Fact]
    public void A_dirty_image_is_replayed_and_its_entries_are_mended_through_the_log()
    {
        LogFile dirty = new LogFile().With(new LogItem(7, LogFile.Maps(2)));
        SimulatedDisk disk = DiskOf(dirty.Bytes);
        Assert.Equal(0, Repair(disk).ExitCode);
        VhdxReader replayed = new(disk.Content("image"));
        Assert.True(replayed.LogIsEmpty);
        Assert.Equal(2, replayed.ReadAll()[0]);

        byte[] bytes = disk.Content("image");
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(Table + 8), 0xFF8);
        disk = DiskOf(bytes);
        bool mended = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Write || call.Offset < Table || call.Offset >= Table + Block)
                return;
            mended = true;
            using SimulatedStorage durable = DiskOf(disk.DurableContent("image")).Open("image", readOnly: true);
            Assert.Equal(0, VhdxChecker.Check(durable).Findings.Count(f => f.Structure == "BAT"));
        };
        CheckReport left = Repair(disk);
        Assert.True(mended);
        Assert.Equal((0, 1), (left.ExitCode, left.CorruptionsFixed));
    }

    /// <summary>F2: a crash while one copy of the region table is written anew leaves the other.</summary>
    [Theory]
    [InlineData(0x30000)]
    [InlineData(0x40000)]
    [InlineData(0x10000)]
    [InlineData(0x20000)]
    public void A_copy_is_written_beside_a_valid_one(int damaged)
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Full);
        byte[] bytes = [.. prepared.File];
        bytes[damaged + 100] ^= 1;
        SimulatedDisk whole = DiskOf(bytes);
        Assert.Equal(0, Repair(whole).ExitCode);
        for (long tick = 1; tick <= whole.Clock; tick++)
        {
            SimulatedDisk disk = DiskOf(bytes);
            disk.CrashAt(tick);
            Assert.Throws<SimulatedCrashException>(() => Repair(disk));
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(6, (ulong)tick))
                Assert.True(Read(survivor, prepared).AsSpan().SequenceEqual(prepared.Guest), $"tick {tick} {choice}");
        }
    }

    /// <summary>A block in a structure's place, or an entry that leads past the end of the file, says that the table is not to be trusted.</summary>
    [Theory]
    [InlineData(1UL << 20)] // the log
    [InlineData(3UL << 20)] // the table itself
    [InlineData(500UL << 20)]
    public void Beside_worse_damage_nothing_is_moved(ulong place)
    {
        (_, byte[] bytes, _) = Shared(Sharing.Whole);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(Table + 16), place | 6);
        using MemoryStorage file = VhdxImages.StorageOf("image", bytes);
        CheckReport left = VhdxRepair.Run(file, RepairMode.All, new VhdxImages.CountedGuids(1));
        Assert.Equal((2, 0L), (left.ExitCode, left.CorruptionsFixed));
        Assert.True(VhdxImages.BytesOf(file).AsSpan().SequenceEqual(bytes));
    }

    private static (PreparedVhdx Prepared, byte[] Bytes, int Shared) Shared(Sharing sharing)
    {
        PreparedVhdx prepared = VhdxImages.Prepare(sharing == Sharing.Bitmap ? VhdxKind.Differencing : VhdxKind.Full);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        if (sharing == Sharing.Bitmap)
        {
            using CowImage image = VhdxImages.Open(disk, prepared);
            image.Write(5120, [1, 2, 3]);
            image.Write(Block, Pattern.Bytes(3, 0, Block));
            image.Close();
        }

        byte[] bytes = disk.Content("image");
        switch (sharing)
        {
            case Sharing.Whole:
                Copy(bytes, from: 0, to: 1);
                return (prepared, bytes, 1);
            case Sharing.Several:
                Copy(bytes, from: 0, to: 1);
                Copy(bytes, from: 0, to: 3);
                return (prepared, bytes, 2);
            case Sharing.Bitmap:
                bytes.AsSpan(Table + (4096 * 8), 8).CopyTo(bytes.AsSpan(Table + 8));
                return (prepared, bytes, 1);
            default:
                Copy(bytes, from: 0, to: 1);
                bytes[Table + 8] |= 0xF8;
                return (prepared, bytes, 1);
        }
    }

    private static void Copy(byte[] bytes, int from, int to) => bytes.AsSpan(Table + (from * 8), 8).CopyTo(bytes.AsSpan(Table + (to * 8)));

    private static SimulatedDisk DiskOf(byte[] bytes)
    {
        SimulatedDisk disk = new();
        disk.Create("image", bytes);
        return disk;
    }

    private static CheckReport Repair(SimulatedDisk disk)
    {
        using SimulatedStorage file = disk.Open("image");
        return VhdxRepair.Run(file, RepairMode.All, new VhdxImages.CountedGuids(50 + unchecked((int)disk.Clock)));
    }

    private static byte[] Read(SimulatedDisk disk, PreparedVhdx prepared)
    {
        using SimulatedStorage file = disk.Open("image", readOnly: true);
        return Read(file, prepared);
    }

    private static byte[] Read(IStorage file, PreparedVhdx prepared)
    {
        byte[] bytes = new byte[file.Length];
        file.Read(0, bytes);
        byte[] independently = new VhdxReader(bytes, prepared.Parent is null ? null : new VhdxReader(prepared.Parent)).ReadAll();
        using CowImage image = Open(file, prepared, writable: false);
        byte[] read = new byte[image.Length];
        image.Read(0, read);
        Assert.True(read.AsSpan().SequenceEqual(independently), "the independent reader reads other bytes");
        return read;
    }

    private static CowImage Open(IStorage file, PreparedVhdx prepared, bool writable)
    {
        IDiskImage? parent = null;
        if (prepared.Parent is not null)
        {
            MemoryStorage below = VhdxImages.StorageOf("parent", prepared.Parent);
            parent = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(below), below, null, new OpenOptions()));
        }

        OpenOptions options = new() { Writable = writable, CommitInterval = TimeSpan.Zero };
        return VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), new VhdxImages.Kept(file), parent, options) { Guids = new VhdxImages.CountedGuids(77) });
    }
}
