// Many threads on one image. Every sector that is written carries its own number and its writer's count, so that any read shows
// whether it saw bytes of another place (I5, I6) or lost a write.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class ConcurrencyTests
{
    private const int Sector = 512;
    private const int Writers = 4;

    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=4096", 1_048_576),
        new Geometry("cluster_size=65536", 4_194_304),
        new Geometry("cluster_size=16384,extended_l2=on", 1_048_576),
        new Geometry("cluster_size=4096", 1_048_576, InitialContent.Snapshot),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Writers_that_share_clusters_lose_nothing(Geometry geometry)
    {
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        MemoryStorage file = new("image");
        file.Write(0, prepared.File);
        int sectors = geometry.Size / Sector;
        int[] expected = new int[sectors]; // the owner's last count; 0: never written; negative: discarded
        using (CowImage image = Open(file))
        {
            using ManualResetEventSlim done = new();
            Thread[] helpers =
            [
                Start(() => ReadUntil(done, image, sectors, prepared.Guest)),
                Start(() => SyncUntil(done, image)),
            ];
            Exception?[] failures = new Exception?[Writers];
            Thread[] writers = [.. Enumerable.Range(0, Writers).Select(number => Start(() =>
            {
                try
                {
                    WriteOwn(image, number, sectors, expected);
                }
                catch (Exception exception)
                {
                    failures[number] = exception;
                }
            }))];
            foreach (Thread writer in writers)
                Assert.True(writer.Join(TimeSpan.FromMinutes(2)), "a writer hangs");
            done.Set();
            foreach (Thread helper in helpers)
                Assert.True(helper.Join(TimeSpan.FromMinutes(1)), "a reader or a sync hangs");
            Assert.All(failures, Assert.Null);
            Assert.Null(_failure);
            image.Close();
        }

        Verify(file, prepared, expected);
    }

    /// <summary>Whole clusters are written and discarded, so that host blocks go from guest block to guest block while others read
    /// (I6).</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Readers_never_see_a_block_that_was_given_to_another(bool compress)
    {
        Geometry geometry = new("cluster_size=4096", 262_144, Compress: compress);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        MemoryStorage file = new("image");
        file.Write(0, prepared.File);
        int sectors = geometry.Size / Sector;
        using CowImage image = Open(file, compress);
        using ManualResetEventSlim done = new();
        Thread[] helpers =
        [
            Start(() => ReadUntil(done, image, sectors, prepared.Guest)),
            Start(() => ReadUntil(done, image, sectors, prepared.Guest)),
            Start(() => SyncUntil(done, image)),
        ];
        byte[] cluster = new byte[4096];
        Random random = new(3);
        for (int count = 1; count <= 20_000 && _failure is null; count++)
        {
            int first = random.Next(sectors / 8) * 8;
            if (random.Next(2) == 0)
            {
                image.Discard((long)first * Sector, cluster.Length);
                continue;
            }

            for (int i = 0; i < 8; i++)
                Stamp(cluster.AsSpan(i * Sector, Sector), first + i, count);
            image.Write((long)first * Sector, cluster);
        }

        done.Set();
        foreach (Thread helper in helpers)
            Assert.True(helper.Join(TimeSpan.FromMinutes(1)), "a reader or a sync hangs");
        Assert.Null(_failure);
        image.Close();
    }

    /// <summary>The same at the one instant that matters: between a reader's lookup and its read, the block is discarded, the
    /// discard committed, and another guest block written. The commit must wait for the reader.</summary>
    [Fact]
    public void A_block_is_not_reused_under_a_reader()
    {
        Geometry geometry = new("cluster_size=4096", 262_144);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage image = SimulatedImages.Open(disk, prepared);
        byte[] bytes = new byte[4096];
        bytes.AsSpan().Fill(1);
        image.Write(0, bytes);
        image.Sync();
        long host = image.QueryExtent(0, 1).Host;
        Thread? other = null;
        bool begun = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Read || call.Offset != host || begun)
                return;
            begun = true; // before the other thread can come here
            other = Start(() =>
            {
                byte[] twos = new byte[4096];
                twos.AsSpan().Fill(2);
                image.Discard(0, 4096);
                image.Sync();
                image.Write(8192, twos);
            });

            // Either the commit waits for this reader, or it does not and ends.
            SpinWait.SpinUntil(() => ((Qcow2BlockMap)image.Map).State.Epoch.IsWaiting || !other.IsAlive);
        };
        image.Read(0, bytes);
        Assert.Equal(-1, bytes.AsSpan().IndexOfAnyExcept((byte)1));
        Assert.True(other!.Join(TimeSpan.FromMinutes(1)), "the commit hangs");
        image.Close();
    }

    /// <summary>When a block is punched it must not be free yet: whoever got it would lose what it wrote (I3).</summary>
    [Fact]
    public void A_block_is_not_free_before_it_is_punched()
    {
        Geometry geometry = new("cluster_size=4096", 262_144);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage image = SimulatedImages.Open(disk, prepared);
        byte[] twos = new byte[4096];
        twos.AsSpan().Fill(2);
        image.Write(0, twos);
        image.Sync();
        image.Discard(0, 4096);
        bool written = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Discard || written)
                return;
            written = true;
            image.Write(8192, twos);
        };
        image.Sync();
        Assert.True(written);
        byte[] bytes = new byte[4096];
        image.Read(8192, bytes);
        Assert.Equal(twos, bytes);
        image.Close();
    }

    /// <summary>A write and a sync that come while another commit is at its device sync: the second sync needs a commit of its own
    /// (I4).</summary>
    [Fact]
    public void A_sync_does_not_share_a_commit_that_began_before_it()
    {
        Geometry geometry = new("cluster_size=4096", 262_144);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage image = SimulatedImages.Open(disk, prepared);
        byte[] ones = new byte[4096];
        ones.AsSpan().Fill(1);
        image.Write(0, ones);
        SimulatedDisk? crashed = null;
        Thread? late = null;
        bool begun = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Sync || begun)
                return;
            begun = true; // before the other thread can come here
            using ManualResetEventSlim written = new();
            late = Start(() =>
            {
                image.Write(8192, ones);
                written.Set();
                image.Sync();
                crashed = disk.Crash(CrashChoice.Nothing);
            });
            Assert.True(written.Wait(TimeSpan.FromMinutes(1)));
            late.LetWait(); // so that it waits for this commit, where it does
        };
        image.Sync();
        Assert.True(late!.Join(TimeSpan.FromMinutes(1)), "the late sync hangs");
        using CowImage survivor = SimulatedImages.Open(crashed!, prepared, writable: false);
        byte[] bytes = new byte[4096];
        survivor.Read(8192, bytes);
        Assert.Equal(ones, bytes);
    }

    /// <summary>A sync that comes while a commit is making the caller's data durable returns only when it is (I4).</summary>
    [Fact]
    public void A_sync_waits_for_the_commit_that_carries_its_data()
    {
        Geometry geometry = new("cluster_size=4096", 262_144, InitialContent.Full);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage image = SimulatedImages.Open(disk, prepared);
        byte[] ones = new byte[4096];
        ones.AsSpan().Fill(1);
        image.Write(0, ones);
        image.Sync();
        image.Write(4096, ones);
        SimulatedDisk? crashed = null;
        Thread? other = null;
        bool begun = false;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Sync || begun)
                return;
            begun = true; // before the other thread can come here
            other = Start(() =>
            {
                image.Sync();
                crashed = disk.Crash(CrashChoice.Nothing);
            });
            other.LetGoOn(); // returns early only where the other sync does not wait
        };
        image.Sync();
        Assert.True(other!.Join(TimeSpan.FromMinutes(1)), "the other sync hangs");
        using CowImage survivor = SimulatedImages.Open(crashed!, prepared, writable: false);
        byte[] bytes = new byte[4096];
        survivor.Read(4096, bytes);
        Assert.Equal(ones, bytes);
    }

    private volatile Exception? _failure;

    private static CowImage Open(MemoryStorage file, bool compress = false) => (CowImage)Qcow2Image.Open(new Qcow2Parts(
        Qcow2HeaderReader.Read(file),
        new BorrowedStorage(file),
        null,
        null,
        new OpenOptions { Writable = true, CommitInterval = TimeSpan.FromMilliseconds(2), CacheSize = 64 * 1024, Compress = compress }));

    private static Thread Start(Action body)
    {
        Thread thread = new(() => body()) { IsBackground = true };
        thread.Start();
        return thread;
    }

    /// <summary>Writes and discards the sectors whose number leaves the writer's remainder, and reads each back.</summary>
    private static void WriteOwn(CowImage image, int number, int sectors, int[] expected)
    {
        Random random = new(number);
        byte[] bytes = new byte[Sector];
        for (int count = 1; count <= 3000; count++)
        {
            int sector = (random.Next(sectors / Writers) * Writers) + number;
            if (random.Next(4) == 0)
            {
                image.Discard((long)sector * Sector, Sector);
                expected[sector] = -1;
            }
            else
            {
                Stamp(bytes, sector, count);
                image.Write((long)sector * Sector, bytes);
                expected[sector] = count;
            }

            image.Read((long)sector * Sector, bytes);
            Assert.Equal(Math.Max(0, expected[sector]), BinaryPrimitives.ReadInt32LittleEndian(bytes.AsSpan(4)));
        }
    }

    private void ReadUntil(ManualResetEventSlim done, CowImage image, int sectors, byte[] initial)
    {
        try
        {
            Random random = new(99);
            byte[] bytes = new byte[64 * Sector];
            while (!done.IsSet)
            {
                int first = random.Next(sectors - 64);
                image.Read((long)first * Sector, bytes);
                for (int i = 0; i < 64; i++)
                    CheckSector(bytes.AsSpan(i * Sector, Sector), first + i, initial);
            }
        }
        catch (Exception exception)
        {
            _failure = exception;
        }
    }

    private void SyncUntil(ManualResetEventSlim done, CowImage image)
    {
        try
        {
            while (!done.IsSet)
                image.Sync();
        }
        catch (Exception exception)
        {
            _failure = exception;
        }
    }

    private static void Stamp(Span<byte> bytes, int sector, int count)
    {
        for (int at = 0; at < Sector; at += 8)
        {
            BinaryPrimitives.WriteInt32LittleEndian(bytes[at..], sector + 1);
            BinaryPrimitives.WriteInt32LittleEndian(bytes[(at + 4)..], count);
        }
    }

    /// <summary>A sector holds zeros, the initial bytes, or stamps of its own number; a mixture is a read during a write.</summary>
    private static void CheckSector(ReadOnlySpan<byte> bytes, int sector, byte[] initial)
    {
        if (bytes.SequenceEqual(initial.AsSpan(sector * Sector, Sector)))
            return;
        for (int at = 0; at < Sector; at += 8)
        {
            int owner = BinaryPrimitives.ReadInt32LittleEndian(bytes[at..]);
            bool isInitial = bytes.Slice(at, 8).SequenceEqual(initial.AsSpan((sector * Sector) + at, 8));
            Assert.True(owner == sector + 1 || owner == 0 || isInitial, $"sector {sector} read bytes of sector {owner - 1}");
        }
    }

    private static void Verify(MemoryStorage file, PreparedImage prepared, int[] expected)
    {
        CheckReport report = Qcow2Checker.Check(file);
        Assert.True(report.ExitCode == 0, string.Join("; ", report.Findings.Select(f => f.Message)));
        using CowImage image = Open(file);
        byte[] bytes = new byte[Sector];
        byte[] wanted = new byte[Sector];
        for (int sector = 0; sector < expected.Length; sector++)
        {
            image.Read((long)sector * Sector, bytes);
            if (expected[sector] == 0)
                prepared.Guest.AsSpan(sector * Sector, Sector).CopyTo(wanted);
            else if (expected[sector] < 0)
                wanted.AsSpan().Clear();
            else
                Stamp(wanted, sector, expected[sector]);
            Assert.True(bytes.AsSpan().SequenceEqual(wanted), $"sector {sector} does not hold what was written last");
        }
    }
}
