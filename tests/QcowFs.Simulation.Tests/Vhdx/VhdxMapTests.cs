// The block map at its worst moments: a cache of few pages, and somebody else at work in the middle of a lookup or a change. The moment
// is when the file's length is asked for, which both do; so no thread and no luck is needed.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxMapTests
{
    private const long Size = 16L << 30;
    private const int Block = 1 << 20;
    private const int BlocksPerPage = 512;
    private const int Pages = 32;

    private static readonly byte[] Image = VhdxImages.Create(new VhdxCreateOptions
    {
        VirtualSize = Size,
        BlockSize = Block,
        LogSize = 1 << 20,
        LogicalSectorSize = 512,
        ParentPath = "parent",
        Parent = (new Guid(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), new Guid(2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)),
    }, 4000);

    /// <summary>M1: the page that a lookup reads is given to another part of the table meanwhile.</summary>
    [Fact]
    public void A_lookup_believes_no_page_that_was_replaced_under_it()
    {
        using MemoryStorage storage = VhdxImages.StorageOf("image", Image);
        VhdxImages.Kept file = new(storage);
        using CowImage image = Open(file);
        image.Discard(0, Block);
        image.Sync();
        bool replaced = false;
        file.OnLength = () =>
        {
            if (replaced)
                return;
            replaced = true;
            ReplacePages(image);
        };
        Assert.Equal(ExtentKind.Zero, image.QueryExtent(0, Block).Kind);
        Assert.True(replaced);
        file.OnLength = null;
        image.Close();
    }

    /// <summary>M2: the page that a change is made in stays where it is until the change is complete.</summary>
    [Fact]
    public void A_change_is_made_in_the_page_that_it_is_for()
    {
        using MemoryStorage storage = VhdxImages.StorageOf("image", Image);
        VhdxImages.Kept file = new(storage);
        using CowImage image = Open(file);
        VhdxState state = ((VhdxBlockMap)image.Map).State;
        bool replaced = false;
        file.OnLength = () =>
        {
            // Changes hold the gate.
            if (replaced || !state.Cache.Gate.IsHeldByCurrentThread)
                return;
            replaced = true;
            ReplacePages(image);
        };
        image.Discard(0, Block);
        Assert.True(replaced);
        file.OnLength = null;
        image.Sync();
        for (int page = 0; page < Pages; page++)
            Assert.Equal(page == 0 ? ExtentKind.Zero : ExtentKind.Data, image.QueryExtent((long)page * BlocksPerPage * Block, Block).Kind);
        image.Close();
    }

    /// <summary>M4: who looks a block up while it becomes partially present finds the parent's bytes, whatever bits an earlier use left.</summary>
    [Fact]
    public void Bits_are_right_before_the_entry_makes_them_count()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Differencing);
        using MemoryStorage storage = VhdxImages.StorageOf("image", VhdxImages.WithStaleBits(prepared, block: 1));
        using MemoryStorage parent = VhdxImages.StorageOf("parent", prepared.Parent!);
        CowImage below = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(parent), new VhdxImages.Kept(parent), null, new OpenOptions()));
        VhdxImages.Kept file = new(storage);
        using CowImage image = Open(file, below);
        VhdxState state = ((VhdxBlockMap)image.Map).State;
        byte[] read = new byte[512];
        bool reads = false;
        file.OnLength = () =>
        {
            if (reads || !state.Cache.Gate.IsHeldByCurrentThread)
                return;
            reads = true;
            image.Read(Block + 10_240, read);
            Assert.True(read.AsSpan().SequenceEqual(prepared.Guest.AsSpan(Block + 10_240, 512)), "a reader saw what no one wrote");
        };
        image.Write(Block + 5120, [9]);
        file.OnLength = null;
        image.Read(Block + 10_240, read);
        Assert.True(read.AsSpan().SequenceEqual(prepared.Guest.AsSpan(Block + 10_240, 512)));
        image.Close();
    }

    /// <summary>A3: what the log may hold pages for comes to nobody else's use.</summary>
    [Fact]
    public void A_sector_bitmap_keeps_its_place_while_the_image_is_open()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Differencing);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        using CowImage image = VhdxImages.Open(disk, prepared);
        image.Write(5120, [1]);
        image.Write(Block + 5120, [1]);
        image.Sync();
        byte[] entry = disk.Content("image").AsSpan((3 << 20) + (4096 * 8), 8).ToArray();
        long bitmap = BinaryPrimitives.ReadInt64LittleEndian(entry) & ~0xFFFFFL;
        image.Discard(0, Block);
        image.Sync();
        image.Write(2 * Block, Pattern.Bytes(1, 0, Block));
        image.Write(0, Pattern.Bytes(2, 0, Block));
        image.Sync();
        for (int block = 0; block < 3; block++)
            Assert.NotEqual(bitmap, image.QueryExtent((block * (long)Block) + (block == 1 ? 5120 : 0), 1).Host & -Block);
        byte[] expected = prepared.Guest.AsSpan(Block, Block).ToArray();
        expected[5120] = 1;
        byte[] read = new byte[Block];
        image.Read(Block, read);
        Assert.True(read.AsSpan().SequenceEqual(expected));
        image.Close();
    }

    /// <summary>A4: space in crumbs takes no more memory than some; what is forgotten is not lost for good.</summary>
    [Fact]
    public void Free_runs_are_remembered_in_bounds()
    {
        using MemoryStorage file = VhdxImages.StorageOf("image", VhdxImages.Prepare(VhdxKind.Dynamic).File);
        VhdxSpace space = VhdxSpace.Scan(VhdxLayout.Read(file), file);
        long first = file.Length >> 20;
        for (int i = 0; i < 140_000; i++)
            space.Free((first + (2L * i)) << 20, 1 << 20);
        Assert.Equal(1 << 17, space.RememberedRuns);
        Assert.Equal(first << 20, space.Take(1 << 20, out bool grown));
        Assert.False(grown);
    }

    private static CowImage Open(VhdxImages.Kept file, IDiskImage? parent = null) => VhdxImage.Open(new VhdxParts(
        VhdxLayout.Read(file), file, parent ?? new FilledDisk(Size, 0xAA),
        new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero, CacheSize = 16 << 10 })
    { Guids = new VhdxImages.CountedGuids(5) });

    // Four pages fit.
    private static void ReplacePages(CowImage image)
    {
        for (int page = 1; page < Pages; page++)
            image.QueryExtent((long)page * BlocksPerPage * Block, Block);
    }
}
