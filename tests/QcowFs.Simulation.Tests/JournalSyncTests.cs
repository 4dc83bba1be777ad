// What the journal is for: how many device syncs a guest's fsync costs.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class JournalSyncTests
{
    private const int Cluster = 4096;
    private static readonly Geometry Disk = new("cluster_size=4096", 16 << 20);

    [Fact]
    public void One_for_each_fsync_after_scattered_allocating_writes()
    {
        using Session session = new(Disk);
        session.Write(0, 512);
        session.Image.Sync();
        for (int i = 1; i < 50; i++)
            Assert.Equal(1, session.SyncsOf(() => session.Write(i * 71 % 4000 * Cluster, 512)));
        session.CloseAndJudge();
    }

    [Fact]
    public void One_for_each_fsync_after_appends_into_one_cluster()
    {
        using Session session = new(Disk);
        session.Write(0, 512);
        session.Image.Sync();
        for (int i = 0; i < 8; i++)
            Assert.Equal(1, session.SyncsOf(() => session.Write(Cluster + (i * 512), 512)));
        session.CloseAndJudge();
    }

    [Theory]
    [InlineData(512)]
    [InlineData(Cluster)]
    public void One_more_than_the_rewrites_of_a_new_block(int length)
    {
        const int rewrites = 7;
        using Session session = new(Disk);
        session.Write(0, 512);
        session.Image.Sync();
        long syncs = 0;
        for (int i = 0; i < rewrites; i++)
            syncs += session.SyncsOf(() => session.Write(Cluster, length));
        Assert.Equal(rewrites + 1, syncs);
        session.CloseAndJudge();
    }

    [Fact]
    public void One_after_overwrites_and_none_when_there_is_nothing_to_sync()
    {
        using Session session = new(Disk);
        session.Write(0, Cluster);
        session.Image.Sync();
        _ = session.SyncsOf(() => session.Write(0, Cluster));
        for (int i = 0; i < 5; i++)
            Assert.Equal(1, session.SyncsOf(() => session.Write(0, Cluster)));
        Assert.Equal(0, session.SyncsOf(() => { }));
        session.CloseAndJudge();
    }

    /// <summary>New tables and reference-count blocks, checkpoints and turns of the ring share the commits' syncs.</summary>
    [Fact]
    public void None_besides_for_turns_of_the_ring()
    {
        using Session session = new(new Geometry("cluster_size=512,refcount_bits=64", 1 << 20)) { RingBytes = 256 << 10 };
        session.Write(0, 512);
        session.Image.Sync();
        long syncs = 0;
        const int writes = 400;
        for (int i = 1; i <= writes; i++)
            syncs += session.SyncsOf(() => session.Write(i * 37 % 2048 * 512, 512));
        long turned = session.RecordBlocks / (session.RingBytes / 4096);
        Assert.True(turned >= 3, $"the ring turned {turned} times");
        Assert.InRange(syncs, writes, writes + (4 * turned));
        session.CloseAndJudge();
    }

    /// <summary>A sync of a fresh session and of its end: the journal is made and taken away with a bounded number of them.</summary>
    [Fact]
    public void A_bounded_number_to_make_it_and_to_take_it_away()
    {
        using Session session = new(Disk);
        Assert.InRange(session.SyncsOf(() => session.Write(0, 512)), 2, 10);
        long before = session.Storage.Count(StorageCalls.Sync);
        session.CloseAndJudge();
        Assert.InRange(session.Storage.Count(StorageCalls.Sync) - before, 2, 14);
    }

    private sealed class Session : IDisposable
    {
        private readonly PreparedImage _prepared;
        private readonly DiskModel _model;
        private CowImage? _image;

        public Session(Geometry geometry)
        {
            _prepared = SimulatedImages.Prepare(geometry);
            _model = new DiskModel(_prepared.Guest);
            Storage = SimulatedImages.DiskOf(_prepared);
        }

        public int RingBytes { get; init; } = 1 << 20;

        public SimulatedDisk Storage { get; }

        public CowImage Image => _image ??= SimulatedImages.Open(Storage, _prepared, cacheSize: 1 << 20,
            journal: new JournalOptions { RingBytes = RingBytes, NewId = static () => 17 });

        /// <summary>Blocks of records so far, by the last sequence: no record is shorter than one.</summary>
        public long RecordBlocks => (long)((Qcow2BlockMap)Image.Map).JournalCommit!.Head.Block;

        public void Write(int offset, int length)
        {
            byte[] bytes = new byte[length];
            bytes.AsSpan().Fill((byte)(1 + (Storage.Clock % 250)));
            _model.Write(offset, bytes);
            Image.Write(offset, bytes);
        }

        public long SyncsOf(Action write)
        {
            _ = Image;
            long before = Storage.Count(StorageCalls.Sync);
            write();
            Image.Sync();
            return Storage.Count(StorageCalls.Sync) - before;
        }

        public void CloseAndJudge()
        {
            _model.CheckLive(Image);
            Image.Close();
            _model.Sync();
            CrashRun.Judge(Storage.Crash(CrashChoice.Nothing), _model, _prepared, "closed");
            Assert.Equal(0, Qcow2Checker.Check(Storage.Open("image", readOnly: true)).ExitCode);
            SimulatedImages.JudgeByQemu(Storage, _prepared, _model.Current, "closed");
        }

        public void Dispose() => _image?.Dispose();
    }
}
