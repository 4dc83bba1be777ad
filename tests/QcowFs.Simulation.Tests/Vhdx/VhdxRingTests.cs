// A ring that is full most of the time: every commit logs 16 pages, not those of the one before, and syncs no data, so that the tail
// moves only when it must. Crashed at many instants; what a sync acknowledged is there after the replay.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Vhdx;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxRingTests
{
    private const long Size = 16L << 30;
    private const long Block = 1 << 20;
    private const int BlocksPerPage = 512;
    private const int Pages = 32;
    internal const int Rounds = 30; // the ring holds fourteen

    private static readonly byte[] Image = VhdxImages.Create(new VhdxCreateOptions
    {
        VirtualSize = Size,
        BlockSize = (int)Block,
        LogSize = 1 << 20,
        LogicalSectorSize = 512,
        ParentPath = "parent",
        Parent = (new Guid(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), new Guid(2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)),
    }, 4000);

    [Fact]
    public void A_full_ring_loses_nothing() => Run(step: 23, choices: 6);

    internal static void Run(int step, int choices)
    {
        SimulatedDisk whole = NewDisk();
        Assert.Equal(Rounds, Work(whole));
        Judge(whole.Crash(CrashChoice.Nothing), Rounds, "no crash");
        for (long instant = 1; instant <= whole.Clock; instant += step)
        {
            SimulatedDisk disk = NewDisk();
            disk.CrashAt(instant);
            int acknowledged = Work(disk);
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(choices, (ulong)instant))
                Judge(survivor, acknowledged, $"instant {instant} {choice}");
        }
    }

    /// <summary>More pages than an entry holds go into several.</summary>
    [Fact]
    public void A_commit_larger_than_the_ring_is_cut()
    {
        const long size = 160L << 30; // 320 pages of the table
        byte[] image = VhdxImages.Create(new VhdxCreateOptions
        {
            VirtualSize = size,
            BlockSize = (int)Block,
            LogSize = 1 << 20,
            LogicalSectorSize = 512,
            ParentPath = "parent",
            Parent = (Guid.Empty, Guid.Empty),
        }, 4000);
        SimulatedDisk disk = new();
        disk.Create("image", image);
        using (CowImage opened = Open(disk, writable: true, size))
        {
            // Straight at the map, past the engine, which would commit before so much is dirty.
            opened.Map.BeginUse();
            for (long page = 0; page < 320; page++)
                Assert.True(opened.Map.TryPublishZero(page * BlocksPerPage * Block, Block));
            long syncs = disk.Count(StorageCalls.Sync);
            opened.Sync();
            Assert.Equal(4, disk.Count(StorageCalls.Sync) - syncs); // two entries; between them the tail moves, by a sync and an entry
        }

        using CowImage after = Open(disk.Crash(CrashChoice.Nothing), writable: false, size);
        for (long page = 0; page < 320; page++)
            Assert.Equal(ExtentKind.Zero, after.QueryExtent(page * BlocksPerPage * Block, Block).Kind);
    }

    internal static SimulatedDisk NewDisk()
    {
        SimulatedDisk disk = new();
        disk.Create("image", Image);
        return disk;
    }

    private static CowImage Open(SimulatedDisk disk, bool writable, long size = Size)
    {
        SimulatedStorage file = disk.Open("image", readOnly: !writable);
        OpenOptions options = new() { Writable = writable, CommitInterval = TimeSpan.Zero, CacheSize = 4 << 20 };
        return VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), file, new FilledDisk(size, 0xAA), options) { Guids = new VhdxImages.CountedGuids(5), LogStart = 40 * 4096 });
    }

    /// <summary>In each round one block of every other page becomes zero, then a sync. Gives how many rounds were acknowledged.</summary>
    internal static int Work(SimulatedDisk disk)
    {
        int acknowledged = 0;
        try
        {
            using CowImage image = Open(disk, writable: true);
            for (int round = 0; round < Rounds; round++)
            {
                for (int page = round % 2; page < Pages; page += 2)
                    image.Discard(Place(page, round), Block);
                image.Sync();
                acknowledged++;
            }
        }
        catch (SimulatedCrashException)
        {
            // The crash that was asked for.
        }

        return acknowledged;
    }

    private static void Judge(SimulatedDisk disk, int acknowledged, string where)
    {
        using CowImage image = Open(disk, writable: false);
        for (int round = 0; round < Rounds; round++)
        {
            for (int page = round % 2; page < Pages; page += 2)
            {
                Extent extent = image.QueryExtent(Place(page, round), Block);
                Assert.True(extent.Kind == ExtentKind.Zero || (round >= acknowledged && extent is { Kind: ExtentKind.Data, Depth: 1 }),
                    $"{where}: the block of page {page} in round {round} of {acknowledged} acknowledged is {extent}");
            }
        }
    }

    private static long Place(int page, int round) => ((page * BlocksPerPage) + (round * 3)) * Block;
}
