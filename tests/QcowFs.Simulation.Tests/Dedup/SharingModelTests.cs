// Deduplicated images against a plain byte array and QEMU: every geometry, constant collisions, every state of the index file, widths of
// reference counts, full hosts, snapshots, sizes, and mounts without deduplication in between.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class SharingModelTests
{
    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 300_032),
        new Geometry("cluster_size=4096,refcount_bits=2", 500_224),
        new Geometry("cluster_size=4096,refcount_bits=8", 1_000_448),
        new Geometry("cluster_size=65536", 2_000_384),
        new Geometry("cluster_size=16384,extended_l2=on", 1_000_448, InitialContent.Backing),
        new Geometry("cluster_size=4096", 500_224, InitialContent.Backing),
        new Geometry("cluster_size=4096", 500_224, InitialContent.Snapshot),
        new Geometry("cluster_size=4096", 500_224, InitialContent.Compressed),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Agrees_with_bytes_and_with_qemu_over_sessions(Geometry geometry)
    {
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        int block = SimulatedImages.ClusterSize(prepared);
        foreach (ulong seed in Seeds.Between(1, 4))
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            long shared = 0;
            for (ulong session = 0; session < 3; session++)
            {
                // The second session is one without deduplication: it overwrites what is shared.
                using CowImage image = session == 1
                    ? SimulatedImages.Open(disk, prepared) : SharingImages.Open(disk, prepared, weakHash: seed % 2 == 0);
                Run(image, model, geometry, seed + (session * 100), 120, block);
                model.CheckLive(image);
                image.Close();
                shared += image.Statistics.Dedup?.Shared ?? 0;
                AssertClean(disk, $"{geometry} seed {seed} session {session}");
            }

            Assert.True(shared > 3, $"{geometry} seed {seed}: {shared} blocks shared");
            SimulatedImages.JudgeByQemu(disk, prepared, model.Current.AsSpan(0, geometry.Size), $"{geometry} seed {seed}");
            if (geometry.Content == InitialContent.Snapshot)
                SimulatedImages.JudgeSnapshotByQemu(disk, prepared.Guest, $"{geometry} seed {seed}");
        }
    }

    [Theory]
    [InlineData("deleted")]
    [InlineData("truncated")]
    [InlineData("garbage")]
    [InlineData("another image's")]
    [InlineData("older than the image")]
    public void Whatever_becomes_of_the_index_bytes_are_right(string fate)
    {
        Geometry geometry = new("cluster_size=4096", 500_224);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        foreach (ulong seed in Seeds.Between(1, 3))
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            byte[]? older = null;
            for (ulong session = 0; session < 4; session++)
            {
                using (CowImage image = SharingImages.Open(disk, prepared))
                {
                    Run(image, model, geometry, seed + (session * 100), 80, 4096);
                    model.CheckLive(image);
                    image.Close();
                    Assert.True(image.Statistics.Dedup!.Shared > 0);
                }

                AssertClean(disk, $"{fate} seed {seed} session {session}");
                byte[] index = disk.Content("image.dedup");
                older ??= index;
                byte[]? next = fate switch
                {
                    "deleted" => null,
                    "truncated" => index[..(index.Length / 3)],
                    "garbage" => Pattern.Bytes(seed, 0, index.Length),
                    "another image's" => IndexOfAnotherImage(seed),
                    _ => older,
                };
                ((IHostFiles)disk).Delete("image.dedup");
                if (next is not null)
                    disk.Create("image.dedup", next);
            }
        }
    }

    /// <summary>Entries with the right hashes and any block numbers: of other blocks, of metadata, far outside, of the block itself.</summary>
    [Fact]
    public void An_index_that_lies_changes_no_byte()
    {
        Geometry geometry = new("cluster_size=4096", 500_224);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        foreach (ulong seed in Seeds.Between(1, 4))
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            Random random = new((int)seed);
            using (CowImage image = SharingImages.Open(disk, prepared))
            {
                for (int round = 0; round < 10; round++)
                {
                    for (int i = 1; i < 30; i++)
                    {
                        long guest = random.Next(8) == 0 ? random.NextInt64(1L << 48) : random.Next(130);
                        long host = random.Next(8) == 0 ? random.NextInt64(1L << 48) : random.Next(140);
                        image.LieToIndex(SharingOperation.Content(i, 4096), guest, host);
                    }

                    Run(image, model, geometry, seed + ((ulong)round * 100), 30, 4096);
                    model.CheckLive(image);
                }

                Assert.True(image.Statistics.Dedup!.Stale > 20);
                image.Close();
            }

            AssertClean(disk, $"seed {seed}");
            SimulatedImages.JudgeByQemu(disk, prepared, model.Current.AsSpan(0, geometry.Size), $"seed {seed}");
        }
    }

    [Theory]
    [InlineData(2, 2)]
    [InlineData(4, 7)]
    [InlineData(8, 127)]
    [InlineData(16, 32_767)]
    public void A_cluster_is_shared_up_to_the_limit_and_then_overwritten_one_by_one(int bits, int limit)
    {
        int blocks = limit * 2;
        Geometry geometry = new($"cluster_size=512,refcount_bits={bits}", blocks * 512);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        byte[] same = Pattern.Bytes(1, 0, 512);
        using (CowImage image = SharingImages.Open(disk, prepared, cacheSize: 1 << 20))
        {
            for (int i = 0; i < blocks; i++)
                image.Write(i * 512L, same);
            image.Sync();
            Assert.Equal(blocks - 2, image.Statistics.Dedup!.Shared); // two clusters, each with as many references as it may have
            AssertAllEqual(image, same, 0, blocks);
            image.Close();
        }

        AssertClean(disk, $"{bits} bits, all shared");
        using (CowImage image = SharingImages.Open(disk, prepared, cacheSize: 1 << 20))
        {
            byte[] own = new byte[512];
            for (int i = 0; i < blocks; i++)
            {
                BitConverter.TryWriteBytes(own, i + 1);
                image.Write(i * 512L, own);
                if (i % Math.Max(1, blocks / 50) == 0)
                {
                    image.Sync();
                    AssertAllEqual(image, same, i + 1, Math.Min(blocks, i + 50));
                }
            }

            for (int i = 0; i < blocks; i++)
            {
                image.Read(i * 512L, own);
                Assert.Equal(i + 1, BitConverter.ToInt32(own));
            }

            image.Close();
        }

        AssertClean(disk, $"{bits} bits, overwritten");
        Assert.Equal(0, SharingImages.CountShared(disk.Content("image")));
    }

    /// <summary>Deduplication and a journal in one session, over sessions: equal to bytes, clean, plain, and bound to its index.</summary>
    [Theory]
    [InlineData("cluster_size=512", 300_032, InitialContent.Empty)]
    [InlineData("cluster_size=4096,refcount_bits=2", 500_224, InitialContent.Snapshot)]
    [InlineData("cluster_size=16384,extended_l2=on", 1_000_448, InitialContent.Backing)]
    public void Agrees_with_a_journal_too(string options, int size, InitialContent content)
    {
        Geometry geometry = new(options, size, content);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        foreach (ulong seed in Seeds.Between(1, 3))
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            long shared = 0;
            for (ulong session = 0; session < 3; session++)
            {
                JournalOptions journal = new() { RingBytes = JournalOptions.MinBytes, NewId = () => new UInt128(seed, session + 1) };
                using CowImage image = SharingImages.Open(disk, prepared, weakHash: seed % 2 == 0, journal: journal);
                Run(image, model, geometry, seed + (session * 100), 120, SimulatedImages.ClusterSize(prepared));
                model.CheckLive(image);
                image.Close();
                shared += image.Statistics.Dedup!.Shared;
                AssertClean(disk, $"{geometry} seed {seed} session {session}");
                Qcow2Header header = Qcow2HeaderReader.Read(disk.Open("image"));
                Assert.False(header.HasJournal);
                Assert.Equal(AutoclearFeatures.DedupIndex, header.AutoclearFeatures);
            }

            Assert.True(shared > 3, $"{geometry} seed {seed}: {shared} blocks shared");
            SimulatedImages.JudgeByQemu(disk, prepared, model.Current.AsSpan(0, geometry.Size), $"{geometry} seed {seed}");
            if (content != InitialContent.Backing) // the name of that lies outside the simulation
                Assert.True(new ImageDeduplicator(disk).ReadStatus("image", "qcow2").IsBound);
        }
    }

    /// <summary>A session with a journal and without deduplication overwrites what is shared: counts fall to one late.</summary>
    [Fact]
    public void A_journal_leaves_no_flag_missing_in_a_deduplicated_image()
    {
        Geometry geometry = new("cluster_size=4096", 500_224);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        foreach (ulong seed in Seeds.Between(1, 4))
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            Session(disk, prepared, model, geometry, seed);
            int shared = SharingImages.CountShared(disk.Content("image"));
            SimulatedStorage file = disk.Open("image");
            OpenOptions options = new()
            {
                Writable = true,
                CommitInterval = TimeSpan.Zero,
                BackgroundRecovery = false,
                HasDedupIndex = true,
                Journal = new JournalOptions { RingBytes = JournalOptions.MinBytes, NewId = () => seed + 1 },
            };
            using (CowImage image = (CowImage)Qcow2Image.Open(new Qcow2Parts(Qcow2HeaderReader.Read(file), file, null, null, options)))
            {
                Run(image, model, geometry, seed + 70, 120, 4096);
                model.CheckLive(image);
                image.Close();
            }

            Assert.True(SharingImages.CountShared(disk.Content("image")) < shared, "the session overwrote nothing that is shared");
            AssertClean(disk, $"seed {seed}");
            SimulatedImages.JudgeByQemu(disk, prepared, model.Current.AsSpan(0, geometry.Size), $"seed {seed}");
        }
    }

    [Fact]
    public void Full_host_and_full_index_lose_nothing()
    {
        Geometry geometry = new("cluster_size=512", 70_144);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        for (long n = 1; n <= 120; n += 3)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            using (CowImage image = SharingImages.Open(disk, prepared))
            {
                disk.Fail(StorageCalls.Changes, Errno.ENOSPC, n, times: 3, storage: n % 2 == 0 ? "image" : null);
                foreach (SharingOperation operation in SharingOperation.Random((ulong)n, 40, geometry.Size, 512))
                    RunAgainUntilDone(operation, image, model);
                disk.ClearFaults();
                model.CheckLive(image);
                image.Close();
            }

            model.Sync();
            CrashRun.Judge(disk.Crash(CrashChoice.Nothing), model, prepared, $"full at {n}");
            AssertClean(disk, $"full at {n}");
        }
    }

    [Fact]
    public void An_unreadable_index_stops_sharing_with_one_line_and_nothing_else()
    {
        Geometry geometry = new("cluster_size=512", 70_144);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        List<string> log = [];
        using CowImage image = SharingImages.Open(disk, prepared, log: log.Add);
        disk.Fail(StorageCalls.Changes | StorageCalls.Read, Errno.EIO, times: long.MaxValue, storage: "image.dedup");
        Run(image, model, geometry, 1, 200, 512);
        model.CheckLive(image);
        image.Close();
        Assert.Single(log);
        AssertClean(disk, "after the index failed");
    }

    [Fact]
    public void Snapshots_and_sizes_of_a_deduplicated_image()
    {
        Geometry geometry = new("cluster_size=4096", 500_224);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        Session(disk, prepared, model, geometry, 1);
        byte[] before = model.Current;
        ImageEditor editor = new(disk, TimeProvider.System);
        editor.EditSnapshot("image", "qcow2", SnapshotAction.Create, "before");
        AssertClean(disk, "snapshot created");
        Session(disk, prepared, model, geometry, 2);
        SimulatedImages.JudgeSnapshotByQemu(disk, before, "after more sharing");
        editor.EditSnapshot("image", "qcow2", SnapshotAction.Apply, "before");
        AssertClean(disk, "snapshot applied");
        model = new DiskModel(before);
        Session(disk, prepared, model, geometry, 3);
        editor.EditSnapshot("image", "qcow2", SnapshotAction.Delete, "before");
        AssertClean(disk, "snapshot deleted");
        Session(disk, prepared, model, geometry, 4);

        // The new end lies in a block that others share.
        editor.Resize("image", new OpenOptions { Format = "qcow2" }, new SizeChange(201_216), mayShrink: true);
        AssertClean(disk, "shrunk");
        editor.Resize("image", new OpenOptions { Format = "qcow2" }, new SizeChange(geometry.Size), mayShrink: false);
        AssertClean(disk, "grown");
        model.SetLength(201_216);
        model.SetLength(geometry.Size);
        Session(disk, prepared, model, geometry, 5);
        SimulatedImages.JudgeByQemu(disk, prepared, model.Current, "in the end");
    }

    /// <summary>QEMU does not know that other mappings of a cluster want their flag back: that is all it leaves, and we mend it.</summary>
    [Fact]
    public void Qemu_writes_and_snapshots_the_image_and_we_go_on()
    {
        Geometry geometry = new("cluster_size=4096", 1_000_448);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        foreach (ulong seed in Seeds.Between(1, 3))
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            Session(disk, prepared, model, geometry, seed);
            disk = WriteWithQemu(disk, model, seed);
            CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
            Assert.True(report is { Leaks: 0, CheckErrors: 0 } && report.Corruptions == report.HarmlessCorruptions, "more than missing flags");
            Assert.All(report.Findings, finding => Assert.Equal("copied-missing", finding.Kind));
            Session(disk, prepared, model, geometry, seed + 50);
            SimulatedImages.JudgeByQemu(disk, prepared, model.Current, $"seed {seed}");
        }
    }

    internal static void AssertClean(SimulatedDisk disk, string where)
    {
        CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
        Assert.True(report.ExitCode == 0, $"{where}: {report.Leaks} leaks, {string.Join("; ", report.Findings.Select(f => f.Message))}");
        string? broken = SharingImages.FindBrokenSharing(disk.Content("image"));
        Assert.True(broken is null, $"{where}: {broken}");
    }

    private static void Run(CowImage image, DiskModel model, Geometry geometry, ulong seed, int steps, int block)
    {
        int step = 0;
        int contents = seed % 3 == 0 ? 5 : Math.Clamp(geometry.Size / block / 4, 5, 60);
        foreach (SharingOperation operation in SharingOperation.Random(seed, steps, geometry.Size, block, contents))
        {
            operation.Run(image, model);
            if (++step % 30 == 0)
                model.CheckLive(image);
        }
    }

    private static void Session(SimulatedDisk disk, PreparedImage prepared, DiskModel model, Geometry geometry, ulong seed)
    {
        using (CowImage image = SharingImages.Open(disk, prepared))
        {
            model.CheckLive(image);
            Run(image, model, geometry, seed, 150, SimulatedImages.ClusterSize(prepared));
            image.Close();
            Assert.True(image.Statistics.Dedup!.Shared > 0);
        }

        AssertClean(disk, $"{geometry} session with seed {seed}");
    }

    private static byte[] IndexOfAnotherImage(ulong seed)
    {
        SimulatedDisk other = new();
        DiskModel model = new(500_224);
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 500_224));
        other.Create("image", prepared.File);
        using (CowImage image = SharingImages.Open(other, prepared))
        {
            Run(image, model, new Geometry("", 500_224), seed + 77, 80, 4096);
            image.Close();
        }

        return other.Content("image.dedup");
    }

    private static void RunAgainUntilDone(SharingOperation operation, CowImage image, DiskModel model)
    {
        if (operation.Kind == SharingKind.FlushIndex)
            return;
        for (int attempt = 0; ; attempt++)
        {
            try
            {
                operation.Run(image, model);
                return;
            }
            catch (Storage.StorageException exception) when (exception.IsOutOfSpace && attempt < 20)
            {
                continue;
            }
        }
    }

    private static void AssertAllEqual(CowImage image, byte[] same, int first, int end)
    {
        byte[] read = new byte[512];
        for (int i = first; i < end; i++)
        {
            image.Read(i * 512L, read);
            Assert.True(read.AsSpan().SequenceEqual(same), $"block {i}");
        }
    }

    private static SimulatedDisk WriteWithQemu(SimulatedDisk disk, DiskModel model, ulong seed)
    {
        using TempDirectory folder = new();
        string path = folder["image"];
        File.WriteAllBytes(path, disk.Content("image"));
        Random random = new((int)seed);
        List<string> commands = [];
        for (int i = 0; i < 60; i++)
        {
            int offset = random.Next(0, 200) * 4096;
            int length = random.Next(1, 9) * 512;
            byte fill = (byte)random.Next(1, 255);
            commands.AddRange(["-c", $"write -P {fill} {offset} {length}"]);
            byte[] bytes = new byte[length];
            bytes.AsSpan().Fill(fill);
            model.Write(offset, bytes);
        }

        SimulatedImages.Run("qemu-io", ["-f", "qcow2", .. commands, path]);
        SimulatedImages.Run("qemu-img", "snapshot", "-c", "qemu", path);
        SimulatedImages.Run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", path);
        SimulatedImages.Run("qemu-img", "snapshot", "-d", "qemu", path);
        byte[] sevens = new byte[65536];
        sevens.AsSpan().Fill(7);
        model.Write(0, sevens);
        SimulatedDisk after = new();
        after.Create("image", File.ReadAllBytes(path));
        after.Create("image.dedup", disk.Content("image.dedup"));
        return after;
    }
}
