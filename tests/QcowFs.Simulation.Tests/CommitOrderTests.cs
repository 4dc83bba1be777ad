// What a commit must have made durable when it comes at the worst instant.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class CommitOrderTests
{
    /// <summary>A commit that comes when a mapping has just been published, and the write that published it has not returned yet,
    /// syncs the data before the mapping (I1).</summary>
    [Fact]
    public void A_commit_right_behind_a_publish_syncs_the_data()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=512", 70_144, InitialContent.ExternalData));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage inner = SimulatedImages.Open(disk, prepared);
        SimulatedStorage data = disk.Open("data");
        CommitsAfterPublish map = new(inner.Map);
        CowImageParts parts = new(map, data, [], null, new FailureLatch(null), new ReaderEpoch());
        CowImage image = new(parts, inner.Info, new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero, BackgroundRecovery = false });
        List<PendingChange> left = [];
        map.AfterPublish = () =>
        {
            image.Sync();
            left.AddRange(disk.Pending);
        };
        image.Write(0, new byte[] { 1, 2, 3, 4 });
        Assert.Empty(left);
    }

    /// <summary>A shared table that is replaced while the collection of leaks prepares its first window waits to be freed; it is not a
    /// leak besides, or the snapshot would lose it.</summary>
    [Fact]
    public void A_table_that_waits_to_be_freed_is_no_leak()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot));
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        byte[] bytes = new byte[512];
        bytes.AsSpan().Fill(7);
        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            image.Write(0, bytes);
            image.Sync();
            disk = disk.Crash(CrashChoice.Nothing);
        }

        using (CowImage image = SimulatedImages.Open(disk, prepared))
        {
            image.Write(512, bytes);
            bool written = false;
            disk.BeforeCall = call =>
            {
                if (call.Kind != StorageCalls.Sync || written)
                    return;
                written = true;
                image.Write(40_960, bytes); // another table than that of byte 0
            };
            image.Recover();
            Assert.True(written);
            image.Close();
            Assert.Null(image.Failure);
        }

        byte[] guest = [.. prepared.Guest];
        bytes.CopyTo(guest, 0);
        bytes.CopyTo(guest, 512);
        bytes.CopyTo(guest, 40_960);
        SimulatedImages.JudgeByQemu(disk, prepared, guest, "after the recovery");
        SimulatedImages.JudgeSnapshotByQemu(disk, prepared.Guest, "after the recovery");
    }

    private sealed class CommitsAfterPublish(IBlockMap inner) : IBlockMap
    {
        public Action AfterPublish { get; set; } = static () => { };

        public BlockMapTraits Traits => inner.Traits;

        public bool NeedsCommit => inner.NeedsCommit;

        public bool IsDirty => inner.IsDirty;

        public IRecovery? Recovery => null;

        public Extent Lookup(long offset, long length) => inner.Lookup(offset, length);

        public void ReadCompressed(long descriptor, int offset, Span<byte> destination) => inner.ReadCompressed(descriptor, offset, destination);

        public Reservation Reserve(long offset, long length) => inner.Reserve(offset, length);

        public void Publish(in Reservation reservation)
        {
            inner.Publish(reservation);
            Thread other = new(() => AfterPublish());
            other.Start();
            other.Join();
        }

        public void Abandon(in Reservation reservation) => inner.Abandon(reservation);

        public bool TryPublishZero(long offset, long length) => inner.TryPublishZero(offset, length);

        public void BeginUse() => inner.BeginUse();

        public bool Commit(Func<bool> takeDataDirty) => inner.Commit(takeDataDirty);

        public void EndUse() => inner.EndUse();

        public void Dispose()
        {
        }
    }
}
