// add-cow images against a plain byte array: content, crashes at any instant across the three files, faults of any call.
using QcowFs.Images;
using QcowFs.Images.AddCow;
using QcowFs.Images.Engine;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class AddCowTests(ITestOutputHelper output)
{
    private const int Steps = 25;

    private static readonly AddCowCase[] Small =
    [
        new(12, 70_144, 70_144),
        new(12, 70_001, 50_003),
        new(12, 70_001, 200_000),
        new(12, 70_001, 0),
        new(12, 70_001, -1),
        new(12, 70_001, 66_000, MissingFrom: 15),
        new(16, 200_007, 150_001),
        new(9, 50_000, 30_001),
        new(9, 50_001, 70_000),
        new(9, 50_001, -1),
        new(12, 70_144, 50_003, IsInQcow2: true),
    ];

    // The last one has more than one page of bits.
    private static readonly AddCowCase[] Large =
        [new(12, 1_000_001, 900_001), new(21, 5_000_001, 3_000_001), new(9, 20_000_001, 10_000_001)];

    public static TheoryData<AddCowCase> Cases => [.. Small];

    public static TheoryData<AddCowCase> ModelCases => [.. Small, .. Large];

    [Theory]
    [MemberData(nameof(ModelCases))]
    public void Agrees_with_bytes(AddCowCase image)
    {
        foreach (ulong seed in Seeds.Between(1, image.Size > 2_000_000 ? 1UL : 4))
        {
            SimulatedDisk disk = image.MakeDisk();
            DiskModel model = new(image.Guest);
            using (CowImage opened = AddCowCase.Open(disk))
            {
                model.CheckLive(opened);
                int step = 0;
                foreach (Operation operation in Operation.Random(seed, 200, image.Size))
                {
                    operation.Run(opened, model);
                    if (++step % 50 == 0)
                        model.CheckLive(opened);
                }

                model.CheckLive(opened);
                opened.Close();
            }

            model.Sync();
            image.Judge(disk.Crash(CrashChoice.Nothing), model, $"seed {seed}");
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Every_instant_of_short_runs(AddCowCase image)
    {
        foreach (ulong seed in Seeds.Between(1, 2))
            new AddCowCrashRun(image, seed).EveryInstant(steps: 10, choices: 24, output.WriteLine);
    }

    /// <summary>Filling and writing until the disk is complete: the switch to ALL_ALLOCATED included.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void Every_instant_of_filling(AddCowCase image)
    {
        foreach (ulong seed in Seeds.Between(1, 2))
            new AddCowCrashRun(image, seed) { Fills = true, Completes = image.ClusterBits > 9 }.EveryInstant(steps: 5, choices: 24, output.WriteLine);
    }

    /// <summary>The order of the calls on the three files: data, its sync, bits, their sync, and the flag after all of them.</summary>
    [Fact]
    public void A_commit_syncs_the_image_file_before_it_writes_bits()
    {
        AddCowCase image = new(12, 8192, 8192);
        SimulatedDisk disk = image.MakeDisk();
        using CowImage opened = AddCowCase.Open(disk);
        disk.KeepsCalls = true;
        opened.Write(100, [1]);
        opened.Sync();
        opened.Write(200, [2]);
        opened.Sync();
        opened.Write(5000, [3]);
        opened.Sync();
        opened.Write(6000, [4]);
        opened.Sync();
        opened.Close();
        Assert.Equal(
            ["image Write", "image Sync", "overlay Write", "overlay Sync", // allocated: two syncs
                "image Write", "image Sync", // overwritten: one
                "image Write", "image Sync", "overlay Write", "overlay Sync", "overlay Write", "overlay Sync", // the last cluster: bits, then the flag
                "image Write", "image Sync"],
            disk.Calls.Where(call => call.Kind != StorageCalls.Read).Select(call => $"{call.Storage} {call.Kind}"));
    }

    /// <summary>There is no zero state: a hole is made in the image file, and is durable before the bit is.</summary>
    [Fact]
    public void A_discard_makes_a_hole_and_syncs_it_before_the_bit()
    {
        AddCowCase image = new(12, 40_960, 40_960);
        SimulatedDisk disk = image.MakeDisk();
        using CowImage opened = AddCowCase.Open(disk);
        disk.KeepsCalls = true;
        opened.Discard(4096, 8192);
        opened.Sync();
        Assert.Equal(["image Discard", "image Sync", "overlay Write", "overlay Sync"],
            disk.Calls.Where(call => call.Kind != StorageCalls.Read).Select(call => $"{call.Storage} {call.Kind}"));
        byte[] expected = image.Guest;
        expected.AsSpan(4096, 8192).Clear();
        image.Judge(disk.Crash(CrashChoice.Nothing), new DiskModel(expected), "after the discard");
        opened.Close();
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Reads_and_overwrites_allocate_no_memory(bool isComplete)
    {
        const int size = 4 << 20;
        MemoryStorage file = new("overlay");
        file.Write(0, new AddCowBytes { DiskSize = size, IsAllocated = cluster => cluster % 2 == 0, CompatFeatures = isComplete ? 1UL : 0 }.Final());
        MemoryStorage data = new("image");
        data.Write(0, Pattern.Bytes(1, 0, size));
        OpenOptions options = new() { Writable = true, CommitInterval = TimeSpan.Zero };
        using IDiskImage image = AddCowImage.Open(new AddCowParts(AddCowHeaderReader.Read(file), file, data, null, options));
        byte[] bytes = new byte[4096];
        Random random = new(1);
        long before = 0;
        for (int i = 0; i < 3000; i++)
        {
            if (i == 1000)
                before = GC.GetAllocatedBytesForCurrentThread();
            image.Read(random.Next(size - bytes.Length), bytes);
            image.Write((random.Next(size >> 17) << 17) + random.Next((1 << 16) - bytes.Length), bytes); // an even cluster
            _ = image.QueryExtent(random.Next(size), 1 << 20);
        }

        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        image.Close();
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void An_error_latches_the_image(AddCowCase image)
    {
        ulong seed = Seeds.Between(5, 5).Single();
        long calls = CallsOf(image, StorageCalls.Changes | StorageCalls.Sync, seed);
        foreach (FaultEffect effect in new[] { FaultEffect.None, FaultEffect.Half, FaultEffect.Whole })
        {
            for (long n = 1; n <= calls; n++)
            {
                SimulatedDisk disk = image.MakeDisk();
                DiskModel model = new(image.Guest);
                disk.Fail(StorageCalls.Changes | StorageCalls.Sync, Errno.EIO, n, effect: effect);
                Assert.True(FailsForGood(disk, image, model, seed), $"{image} call {n} {effect}: nothing failed");
                disk.ClearFaults();
                foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(3, (ulong)n))
                    image.Judge(survivor, model, $"call {n} {effect} {choice}");
            }
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_full_host_loses_nothing(AddCowCase image)
    {
        foreach (ulong seed in Seeds.Between(5, 6))
        {
            long calls = CallsOf(image, StorageCalls.Changes, seed);
            for (long n = 1; n <= calls; n++)
            {
                SimulatedDisk disk = image.MakeDisk();
                DiskModel model = new(image.Guest);
                using (CowImage opened = AddCowCase.Open(disk))
                {
                    disk.Fail(StorageCalls.Changes, Errno.ENOSPC, n, times: n % 2 == 0 ? 1 : 4);
                    foreach (Operation operation in Operation.Random(seed, Steps, image.Size))
                        Persist(operation, opened, model);
                    disk.ClearFaults();
                    model.CheckLive(opened);
                    Assert.Null(opened.Failure);
                    opened.Close();
                }

                model.Sync();
                image.Judge(disk.Crash(CrashChoice.Nothing), model, $"seed {seed} call {n}");
            }
        }
    }

    private static bool FailsForGood(SimulatedDisk disk, AddCowCase image, DiskModel model, ulong seed)
    {
        CowImage opened;
        try
        {
            opened = AddCowCase.Open(disk);
        }
        catch (StorageException)
        {
            return true;
        }

        using (opened)
        {
            bool closing = false;
            try
            {
                foreach (Operation operation in Operation.Random(seed, Steps, image.Size))
                    operation.RunDoubtfully(opened, model);
                closing = true;
                opened.Close();
                return false;
            }
            catch (StorageException exception)
            {
                Assert.Equal(Errno.EIO, exception.Errno);
                if (closing)
                    return true;
            }

            Assert.NotNull(opened.Failure);
            UInt128 before = disk.Fingerprint();
            Assert.Throws<StorageException>(opened.Sync);
            Assert.Throws<StorageException>(() => opened.Write(0, new byte[5000]));
            Assert.Throws<StorageException>(opened.Close);
            Assert.Equal(before, disk.Fingerprint());
            return true;
        }
    }

    /// <summary>Does an operation until it succeeds; a planned fault strikes a few times only.</summary>
    private static void Persist(Operation operation, CowImage opened, DiskModel model)
    {
        for (int attempt = 0; ; attempt++)
        {
            try
            {
                operation.RunDoubtfully(opened, model);
                return;
            }
            catch (StorageException exception) when (exception.IsOutOfSpace && attempt < 10)
            {
                // As a guest that tries again.
            }
        }
    }

    private static long CallsOf(AddCowCase image, StorageCalls kinds, ulong seed)
    {
        SimulatedDisk disk = image.MakeDisk();
        long made = disk.Count(kinds);
        DiskModel model = new(image.Guest);
        using CowImage opened = AddCowCase.Open(disk);
        foreach (Operation operation in Operation.Random(seed, Steps, image.Size))
            operation.Run(opened, model);
        opened.Close();
        return disk.Count(kinds) - made;
    }
}
