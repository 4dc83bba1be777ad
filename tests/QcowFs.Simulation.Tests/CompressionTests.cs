// Writing compressed clusters: what is compressed and what is not, how streams share host clusters and sectors, many threads at once,
// and QEMU as the reader. Models, crashes and faults of the same are among those of plain writes (Geometry.Compress).
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class CompressionTests
{
    private const int Cluster = 4096;
    private static readonly Geometry Small = new("cluster_size=4096", 262_144, Compress: true);

    public static TheoryData<string> OptionSets =>
    [
        "cluster_size=512", "cluster_size=4096", "cluster_size=65536", "cluster_size=2M", "compat=0.10",
        "compression_type=zstd", "cluster_size=2M,compression_type=zstd", "cluster_size=4096,compression_type=zstd",
        "refcount_bits=1", "refcount_bits=2,cluster_size=4096", "refcount_bits=8", "refcount_bits=64", "extended_l2=on",
        "extended_l2=on,cluster_size=16k,compression_type=zstd",
    ];

    [Theory]
    [MemberData(nameof(OptionSets))]
    public void QEMU_reads_what_is_compressed(string options)
    {
        using TempDirectory folder = new();
        string path = folder["disk.qcow2"];
        byte[] bytes = Text(6_000_128);
        Random random = new(1);
        random.NextBytes(bytes.AsSpan(2_000_000, 500_000)); // does not shrink
        bytes.AsSpan(3_000_000, 600_000).Clear();
        File.WriteAllBytes(folder["disk.raw"], bytes);
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", options, path, bytes.Length.ToString());
        ImageOpener opener = new(HostFileSystem.Instance);
        using (IDiskImage image = opener.Open(path, new OpenOptions { Writable = true, Compress = true }))
        {
            Parallel.For(0, 3, part => image.Write((long)part << 21, bytes.AsSpan(part << 21, Math.Min(1 << 21, bytes.Length - (part << 21)))));
            image.Close();
        }

        Qemu.CheckClean(path);
        Qemu.Img("compare", "-q", "-f", "qcow2", "-F", "raw", path, folder["disk.raw"]);
        Qemu.Img("convert", "-f", "qcow2", "-O", "raw", path, folder["again.raw"]);
        Assert.True(File.ReadAllBytes(folder["again.raw"]).AsSpan().SequenceEqual(bytes), "qemu-img convert reads something else");
        CheckReport report = opener.Check(path);
        Assert.Equal(0, report.ExitCode);
        Assert.InRange(report.CompressedClusters!.Value, report.AllocatedClusters!.Value / 2, report.AllocatedClusters.Value);
        Assert.True(options.Contains("2M") || report.CompressedClusters < report.AllocatedClusters, "random bytes were compressed");

        // What QEMU writes over it, we read.
        Qemu.Io("qcow2", path, "write -P 7 100k 300k");
        bytes.AsSpan(100 << 10, 300 << 10).Fill(7);
        using IDiskImage again = opener.Open(path, new OpenOptions());
        byte[] read = new byte[bytes.Length];
        again.Read(0, read);
        Assert.True(read.AsSpan().SequenceEqual(bytes), "we read something else");
    }

    [Fact]
    public void Only_whole_clusters_without_space_of_their_own_are_compressed()
    {
        SimulatedDisk disk = NewDisk(Small, out PreparedImage prepared);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            image.Write(0, Text(Cluster)); // compressed
            image.Write(Cluster, Text(Cluster - 512)); // a part
            image.Write(2 * Cluster, Text(Cluster)); // compressed, then overwritten as a whole and in part
            image.Write(3 * Cluster, Text(Cluster));
            image.Write(2 * Cluster, Text(Cluster));
            image.Write(3 * Cluster + 100, Text(100));
            image.Discard(4 * Cluster, Cluster);
            image.Write(4 * Cluster, Text(Cluster)); // over a zero cluster
            image.Reserve(5 * Cluster, Cluster);
            image.Write(5 * Cluster, Text(Cluster)); // has space of its own
            image.Write(6 * Cluster, new byte[Cluster]); // zeros
            image.Write(Small.Size - 2 * Cluster, Text(2 * Cluster));
            image.Close();
        }

        CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
        Assert.Equal((0, 4L, 8L), (report.ExitCode, report.CompressedClusters!.Value, report.AllocatedClusters!.Value));
    }

    [Fact]
    public void The_last_cluster_that_the_disks_end_cuts_is_compressed()
    {
        Geometry geometry = Small with { Size = 3 * Cluster + 1024 };
        SimulatedDisk disk = NewDisk(geometry, out PreparedImage prepared);
        byte[] bytes = Text(geometry.Size);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            image.Write(0, bytes);
            image.Close();
        }

        Assert.Equal(4, Qcow2Checker.Check(disk.Open("image", readOnly: true)).CompressedClusters);
        SimulatedImages.JudgeByQemu(disk, prepared, bytes, "cut cluster");
    }

    /// <summary>K4: with counts of one bit every stream has host clusters of its own, with more they share as many as the count holds.</summary>
    [Theory]
    [InlineData(1, 64)]
    [InlineData(2, 22)]
    [InlineData(4, 5)]
    [InlineData(16, 1)]
    public void Streams_share_a_host_cluster_up_to_the_ceiling_of_its_count(int bits, int clusters)
    {
        Geometry geometry = Small with { Options = $"cluster_size=4096,refcount_bits={bits}" };
        SimulatedDisk disk = NewDisk(geometry, out PreparedImage prepared);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            image.Write(0, Text(geometry.Size)); // 64 streams of some 100 bytes
            image.Close();
        }

        Qcow2Header header = Qcow2HeaderReader.Read(disk.Open("image", readOnly: true));
        HashSet<long> used = [.. Streams(disk.Content("image"), header).Select(s => s.Offset / Cluster)];
        Assert.Equal(clusters, used.Count);
        Assert.Equal(0, Qcow2Checker.Check(disk.Open("image", readOnly: true)).ExitCode);
    }

    /// <summary>K1: whatever is written lies in sectors that no durable mapping needs.</summary>
    [Fact]
    public void No_write_touches_a_sector_of_a_committed_stream()
    {
        SimulatedDisk disk = NewDisk(Small, out PreparedImage prepared);
        Qcow2Header header = Qcow2HeaderReader.Read(disk.Open("image", readOnly: true));
        using CowImage image = SimulatedImages.Open(disk, prepared);
        int writes = 0;
        disk.BeforeCall = call => writes += TouchesNothingCommitted(disk, header, call) ? 1 : 0;
        for (int i = 0; i < Small.Size / Cluster; i++)
        {
            image.Write(i * Cluster, Text(Cluster));
            if (i % 3 == 0)
                image.Sync();
        }

        image.Close();
        Assert.True(writes > 64, "no stream was written");
        Assert.InRange(Streams(disk.Content("image"), header).Select(s => s.Offset / 512).Distinct().Count(), 20, 63);
    }

    /// <summary>K1, at the one instant that matters: a stream that shares its first sector with one before it is being written when a
    /// commit of that one is asked for.</summary>
    [Fact]
    public void A_commit_waits_for_a_stream_under_way()
    {
        SimulatedDisk disk = NewDisk(Small, out PreparedImage prepared);
        Qcow2Header header = Qcow2HeaderReader.Read(disk.Open("image", readOnly: true));
        using CowImage image = SimulatedImages.Open(disk, prepared);
        image.Write(0, Text(Cluster));
        long first = image.Map.Lookup(0, 1).Host;
        Thread? other = null;
        disk.BeforeCall = call =>
        {
            if (call.Kind != StorageCalls.Write || call.Offset / 512 != CompressedDescriptor.Of(new L2Entry((ulong)first), 12).Offset / 512)
                return;
            disk.BeforeCall = null;
            other = new Thread(image.Sync) { IsBackground = true };
            other.Start();

            // Returns at once where the commit does not wait; otherwise the writer goes on and lets the commit go on.
            other.LetGoOn();
            TouchesNothingCommitted(disk, header, call);
        };
        image.Write(Cluster, Text(Cluster));
        Assert.True(other is not null, "the streams do not share a sector");
        Assert.True(other.Join(TimeSpan.FromMinutes(1)), "the commit hangs");
        image.Close();
    }

    /// <summary>K3: a host cluster that holds the place of the next stream loses its last one.</summary>
    [Fact]
    public void A_cluster_that_is_given_up_takes_no_more_streams()
    {
        SimulatedDisk disk = NewDisk(Small, out PreparedImage prepared);
        DiskModel model = new(prepared.Guest);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            for (int round = 0; round < 5; round++)
            {
                Write(image, model, round * Cluster, Text(Cluster));
                image.Sync();
                Write(image, model, round * Cluster, new byte[Cluster]);
                image.Sync();
                Write(image, model, (20 + round) * Cluster, Text(Cluster));
                Write(image, model, (40 + round) * Cluster, Text(700));
                image.Sync();
                model.CheckLive(image);
            }

            image.Close();
        }

        model.Sync();
        CrashRun.Judge(disk.Crash(CrashChoice.Nothing), model, prepared, "given up");
        Assert.Equal(0, Qcow2Checker.Check(disk.Open("image", readOnly: true)).ExitCode);
    }

    /// <summary>Two writers are in the compressor at the same time: neither goes on until the other is there.</summary>
    [Fact]
    public void Threads_compress_at_the_same_time()
    {
        SimulatedDisk disk = NewDisk(Small, out PreparedImage prepared);
        using CowImage inner = SimulatedImages.Open(disk, prepared);
        using Barrier both = new(2);
        MeetingMap map = new((ICompressingMap)inner.Map, both);
        using CowImage image = new(
            new CowImageParts(map, disk.Open("image"), [], null, new FailureLatch(null), new ReaderEpoch()),
            inner.Info,
            new OpenOptions { Writable = true, Compress = true, CommitInterval = TimeSpan.Zero });
        Parallel.Invoke(
            new ParallelOptions { MaxDegreeOfParallelism = 2 },
            () => image.Write(0, Text(Cluster)),
            () => image.Write(Cluster, Text(Cluster)));
        Assert.Equal(0, map.Alone);
        Assert.Equal(ExtentKind.Compressed, map.Lookup(Cluster, 1).Kind);
    }

    [Fact]
    public void Images_that_cannot_hold_compressed_clusters_are_refused()
    {
        using TempDirectory folder = new();
        OpenOptions options = new() { Writable = true, Compress = true };
        Qemu.Img("create", "-q", "-f", "qcow2", "-o", $"data_file={folder["data"]}", folder["disk.qcow2"], "1M");
        File.WriteAllBytes(folder["disk.raw"], new byte[4096]);
        ImageOpener opener = new(HostFileSystem.Instance);
        Assert.Equal(
            $"{folder["disk.qcow2"]}: format: clusters in an external data file cannot be compressed; write it without compression",
            Assert.Throws<ImageFormatException>(() => opener.Open(folder["disk.qcow2"], options)).Message);
        Assert.Equal(
            $"{folder["disk.raw"]}: format: the format has no compressed blocks; write it without compression",
            Assert.Throws<ImageFormatException>(() => opener.Open(folder["disk.raw"], options with { Format = "raw" })).Message);
        opener.Open(folder["disk.qcow2"], options with { Writable = false }).Dispose();
    }

    private static SimulatedDisk NewDisk(Geometry geometry, out PreparedImage prepared)
    {
        prepared = SimulatedImages.Prepare(geometry);
        return SimulatedImages.DiskOf(prepared);
    }

    private static void Write(CowImage image, DiskModel model, int offset, byte[] bytes)
    {
        model.Write(offset, bytes);
        image.Write(offset, bytes);
    }

    /// <summary>Bytes that become much smaller, differing from sector to sector.</summary>
    private static byte[] Text(int length)
    {
        byte[] bytes = new byte[length];
        for (int i = 0; i < length; i++)
            bytes[i] = (byte)(1 + i / 512 % 100 + i % 7);
        return bytes;
    }

    // Whether the call writes behind the header; fails where it touches a sector of a stream that is durably mapped.
    private static bool TouchesNothingCommitted(SimulatedDisk disk, Qcow2Header header, StorageCall call)
    {
        if (call.Kind != StorageCalls.Write || call.Offset == 0)
            return false;
        foreach (CompressedDescriptor stream in Streams(disk.DurableContent("image"), header))
            Assert.True(call.Offset >= stream.End || call.Offset + call.Length <= stream.Offset / 512 * 512, $"{call} touches a sector of the committed stream at {stream.Offset}");
        return true;
    }

    private static IEnumerable<CompressedDescriptor> Streams(byte[] image, Qcow2Header header)
    {
        for (int i = 0; i < header.L1Size; i++)
        {
            int table = (int)L1Entry.Read(image.AsSpan((int)header.L1Offset + i * L1Entry.Size)).TableOffset;
            for (int at = table; table > 0 && at < table + header.ClusterSize; at += header.L2EntrySize)
            {
                L2Entry entry = L2Entry.Read(image.AsSpan(at));
                if (entry.IsCompressed)
                    yield return CompressedDescriptor.Of(entry, header.ClusterBits);
            }
        }
    }

    /// <summary>A map whose compressor lets two callers in together.</summary>
    private sealed class MeetingMap(ICompressingMap inner, Barrier both) : ICompressingMap
    {
        private int _alone;

        public int Alone => _alone;

        public BlockMapTraits Traits => inner.Traits;

        public bool NeedsCommit => inner.NeedsCommit;

        public bool IsDirty => inner.IsDirty;

        public IRecovery? Recovery => inner.Recovery;

        public int Compress(ReadOnlySpan<byte> block, Span<byte> stream)
        {
            if (!both.SignalAndWait(TimeSpan.FromSeconds(60)))
                Interlocked.Increment(ref _alone);
            return inner.Compress(block, stream);
        }

        public Extent Lookup(long offset, long length) => inner.Lookup(offset, length);

        public void ReadCompressed(long descriptor, int offset, Span<byte> destination) => inner.ReadCompressed(descriptor, offset, destination);

        public Reservation Reserve(long offset, long length) => inner.Reserve(offset, length);

        public void Publish(in Reservation reservation) => inner.Publish(reservation);

        public void Abandon(in Reservation reservation) => inner.Abandon(reservation);

        public bool TryPublishZero(long offset, long length) => inner.TryPublishZero(offset, length);

        public void BeginUse() => inner.BeginUse();

        public bool Commit(Func<bool> takeDataDirty) => inner.Commit(takeDataDirty);

        public void EndUse() => inner.EndUse();

        public bool TryReserveCompressed(long block, int length, out CompressedReservation reservation) =>
            inner.TryReserveCompressed(block, length, out reservation);

        public void PublishCompressed(in CompressedReservation reservation) => inner.PublishCompressed(reservation);

        public void AbandonCompressed(in CompressedReservation reservation) => inner.AbandonCompressed(reservation);

        public void Dispose()
        {
            // The image that the map was taken from disposes it.
        }
    }
}
