// Many threads on one add-cow disk: partial writes of one missing cluster, readers, syncs, and the thread that fills the image from its
// backing file, until the disk is complete.
using QcowFs.Images;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class AddCowConcurrencyTests
{
    private const int Sector = 512;
    private const int Writers = 6;

    /// <summary>Every sector belongs to one writer, every cluster to all of them, and each writes parts of sectors. Nothing of anyone is
    /// lost, and what nobody wrote is the backing file's.</summary>
    [Theory]
    [InlineData(12, false)]
    [InlineData(16, false)]
    [InlineData(16, true)]
    [InlineData(9, true)]
    public void Writers_of_one_missing_cluster_lose_nothing(int clusterBits, bool fills)
    {
        AddCowCase image = new(clusterBits, 400_384, 300_001);
        foreach (ulong seed in Seeds.Between(1, 3))
        {
            SimulatedDisk disk = image.MakeDisk();
            byte[] expected = image.Guest;
            using (IDiskImage opened = Open(disk, fills ? long.MaxValue / 4 : null))
            {
                using ManualResetEventSlim done = new();
                Thread[] helpers = [Start(() => ReadUntil(done, opened, image.Guest)), Start(() => SyncUntil(done, opened))];
                Run([.. Enumerable.Range(0, Writers).Select(number => (Action)(() => WriteOwn(opened, number, seed, expected)))]);
                done.Set();
                foreach (Thread helper in helpers)
                    Join(helper);
                Assert.Null(_failure);
                byte[] bytes = new byte[image.Size];
                opened.Read(0, bytes);
                Assert.True(bytes.AsSpan().SequenceEqual(expected), $"seed {seed}: byte {bytes.AsSpan().CommonPrefixLength(expected)} of the running disk");
                opened.Close();
            }

            DiskModel model = new(expected);
            image.Judge(disk.Crash(CrashChoice.Nothing), model, $"seed {seed}");
        }
    }

    /// <summary>The one instant that matters: while one writer has read the rest of its cluster from the backing file, another writes there.</summary>
    [Fact]
    public void Two_partial_writes_of_one_missing_cluster_both_stay()
    {
        AddCowCase image = new(16, 200_000, 200_000);
        SimulatedDisk disk = image.MakeDisk();
        using IDiskImage opened = Open(disk, rate: null);
        Thread? other = null;
        bool begun = false;
        disk.BeforeCall = call =>
        {
            if (call.Storage != AddCowCase.Image || call.Kind != StorageCalls.Write || begun)
                return;
            begun = true; // before the other thread can come here
            other = Start(() => opened.Write(40_000, [2, 2]));

            // Until it waits for this write or, where the cluster is not locked, is done.
            other.LetWait();
        };
        opened.Write(10_000, [1, 1]);
        Join(other!);
        byte[] expected = image.Guest;
        expected.AsSpan(10_000, 2).Fill(1);
        expected.AsSpan(40_000, 2).Fill(2);
        byte[] bytes = new byte[image.Size];
        opened.Read(0, bytes);
        Assert.True(bytes.AsSpan().SequenceEqual(expected), $"byte {bytes.AsSpan().CommonPrefixLength(expected)}");
        opened.Close();
    }

    /// <summary>The thread ends with a complete disk and says so; the backing file is let go while the disk is in use.</summary>
    [Fact]
    public void Filling_ends_with_a_complete_disk()
    {
        AddCowCase image = new(12, 400_001, 300_001);
        SimulatedDisk disk = image.MakeDisk();
        List<string> log = [];
        using IDiskImage opened = Open(disk, 1L << 40, line =>
        {
            lock (log)
                log.Add(line);
        });
        Wait.Until(() => opened.Fill!.State != FillState.Running, "the filling to end");
        Assert.Equal(new FillProgress(FillState.Done, 400_001, 400_001, 303_104, 1L << 40), opened.Fill);
        Assert.True(AddCowCase.IsMarkedComplete(disk.DurableContent(AddCowCase.Overlay)));
        Assert.Equal(image.Guest, disk.DurableContent(AddCowCase.Image));
        lock (log)
            Assert.Equal("streaming is done: overlay holds all of its disk, the backing file is not needed any more", log[^1]);
        opened.Close();
    }

    /// <summary>At a rate of one cluster a second the first second copies one or two, whatever else the machine does: the clock is ours.</summary>
    [Fact]
    public void Filling_keeps_to_its_rate()
    {
        AddCowCase image = new(12, 400_001, 400_001);
        SimulatedDisk disk = image.MakeDisk();
        using ManualResetEventSlim copied = new();
        disk.BeforeCall = call =>
        {
            if (call.Storage == AddCowCase.Image && call.Kind == StorageCalls.Write)
                copied.Set();
        };
        using IDiskImage opened = Open(disk, 4096);
        Assert.True(copied.Wait(TimeSpan.FromMinutes(1)));
        Wait.Until(() => opened.Fill!.Copied > 0, "the first step");
        Assert.InRange(opened.Fill!.Copied, 4096, 3 * 4096); // the clock stands still; a second's worth is due at once
        Assert.Equal(FillState.Running, opened.Fill.State);
        opened.Close();
        Assert.Equal(FillState.Stopped, opened.Fill.State);
    }

    [Fact]
    public void A_fault_of_the_backing_file_ends_the_filling_and_nothing_else()
    {
        AddCowCase image = new(12, 40_001, 40_001);
        SimulatedDisk disk = image.MakeDisk();
        disk.Fail(StorageCalls.Read, QcowFs.Native.Errno.EIO, storage: AddCowCase.Base);
        using IDiskImage opened = Open(disk, 1L << 40);
        Wait.Until(() => opened.Fill!.State != FillState.Running, "the filling to end");
        Assert.Equal(FillState.Stopped, opened.Fill!.State);
        Assert.Null(opened.Failure);
        byte[] bytes = new byte[image.Size];
        opened.Read(0, bytes);
        Assert.True(bytes.AsSpan().SequenceEqual(image.Guest));
        opened.Close();
    }

    private volatile string? _failure;

    private static IDiskImage Open(SimulatedDisk disk, long? rate, Action<string>? log = null) => new ImageOpener(disk).Open(AddCowCase.Overlay, new OpenOptions
    {
        Writable = true,
        CommitInterval = TimeSpan.Zero,
        CacheSize = 8192,
        StreamRate = rate,
        Log = log,
        Time = rate == 4096 ? new StoppedClock() : TimeProvider.System,
    });

    private static void WriteOwn(IDiskImage opened, int number, ulong seed, byte[] expected)
    {
        Random random = new((int)seed * 100 + number);
        for (int i = 0; i < 150; i++)
        {
            // Its own sectors are every sixth one.
            int sector = (random.Next(expected.Length / Sector / Writers) * Writers) + number;
            int from = random.Next(Sector - 1);
            int length = random.Next(1, Sector - from);
            int at = (sector * Sector) + from;
            if (at + length > expected.Length)
                continue;
            byte[] bytes = random.Next(8) == 0 ? new byte[length] : Pattern.Bytes(seed + (ulong)(number * 1000) + (ulong)i, at, length);
            if (random.Next(8) == 0)
            {
                opened.Discard(at, length);
                bytes.AsSpan().Clear();
            }
            else
            {
                opened.Write(at, bytes);
            }

            bytes.CopyTo(expected, at);
        }
    }

    // What nobody writes is always the backing file's: the last byte of each sector belongs to no writer.
    private void ReadUntil(ManualResetEventSlim done, IDiskImage opened, byte[] guest)
    {
        byte[] bytes = new byte[20_000];
        Random random = new(5);
        while (!done.IsSet && _failure is null)
        {
            int offset = random.Next(guest.Length - bytes.Length);
            opened.Read(offset, bytes);
            for (int i = 0; i < bytes.Length; i++)
            {
                if ((offset + i) % Sector == Sector - 1 && bytes[i] != guest[offset + i])
                    _failure = $"byte {offset + i}, which nobody writes, was read as {bytes[i]}";
            }
        }
    }

    private static void SyncUntil(ManualResetEventSlim done, IDiskImage opened)
    {
        while (!done.IsSet)
            opened.Sync();
    }

    private static Thread Start(Action action)
    {
        Thread thread = new(() => action());
        thread.Start();
        return thread;
    }

    private static void Join(Thread thread) => Assert.True(thread.Join(TimeSpan.FromMinutes(2)), "a thread hangs");

    private static void Run(Action[] actions)
    {
        Exception?[] failures = new Exception?[actions.Length];
        Thread[] threads = [.. actions.Select((action, number) => Start(() =>
        {
            try
            {
                action();
            }
            catch (Exception exception)
            {
                failures[number] = exception;
            }
        }))];
        foreach (Thread thread in threads)
            Join(thread);
        Assert.All(failures, Assert.Null);
    }

    private sealed class StoppedClock : TimeProvider
    {
        public override long GetTimestamp() => 1_000_000;
    }
}
