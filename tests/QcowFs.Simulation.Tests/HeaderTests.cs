// What a session writes to the header (I9, I10), and how many device syncs it takes.
using System.Buffers.Binary;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class HeaderTests
{
    private static readonly Geometry Small = new("cluster_size=4096", 1_048_576);

    [Fact]
    public void Unknown_autoclear_bits_are_cleared_before_the_first_write()
    {
        SimulatedDisk disk = WithAutoclear(1UL << 5 | 1UL << 40);
        using CowImage image = SimulatedImages.Open(disk, SimulatedImages.Prepare(Small));
        Assert.Equal(1UL << 5 | 1UL << 40, Autoclear(disk.DurableContent("image")));
        ulong atFirstData = 0;
        disk.BeforeCall = call =>
        {
            if (call.Offset >= 4096 && atFirstData == 0)
                atFirstData = Autoclear(disk.DurableContent("image"));
        };
        image.Write(0, [1, 2, 3]);
        Assert.Equal((ulong)AutoclearFeatures.InUse, atFirstData);
        image.Close();
        Assert.Equal(0UL, Autoclear(disk.DurableContent("image")));
    }

    [Fact]
    public void A_session_without_a_write_changes_nothing()
    {
        SimulatedDisk disk = WithAutoclear(1UL << 5);
        byte[] before = disk.Content("image");
        using (CowImage image = SimulatedImages.Open(disk, SimulatedImages.Prepare(Small)))
        {
            image.Read(0, new byte[100]);
            image.Sync();
            image.Close();
        }

        Assert.Equal(before, disk.Content("image"));
        Assert.Equal(0, disk.Count(StorageCalls.Changes));
    }

    [Fact]
    public void Syncs_per_fsync_are_one_for_overwrites_two_for_allocations_three_for_a_new_refcount_block()
    {
        Geometry geometry = new("cluster_size=512", 1_048_576);
        SimulatedDisk disk = SimulatedImages.DiskOf(SimulatedImages.Prepare(geometry));
        using CowImage image = SimulatedImages.Open(disk, SimulatedImages.Prepare(geometry));
        byte[] cluster = new byte[512];
        cluster.AsSpan().Fill(1);
        image.Write(0, cluster);
        image.Sync();
        Assert.Equal(1, SyncsOf(disk, () => image.Write(0, cluster), image));
        Assert.Equal(2, SyncsOf(disk, () => image.Write(512, cluster), image));
        Assert.Equal(0, SyncsOf(disk, static () => { }, image));

        // One refcount block counts 256 clusters: soon a commit needs a new one, and never more than three syncs.
        HashSet<long> counts = [];
        for (int i = 2; i < 400; i++)
            counts.Add(SyncsOf(disk, () => image.Write(i * 512, cluster), image));
        Assert.Equal([2, 3], counts.Order());
        image.Close();
    }

    private static long SyncsOf(SimulatedDisk disk, Action operation, CowImage image)
    {
        operation();
        long before = disk.Count(StorageCalls.Sync);
        image.Sync();
        return disk.Count(StorageCalls.Sync) - before;
    }

    private static SimulatedDisk WithAutoclear(ulong bits)
    {
        byte[] bytes = (byte[])SimulatedImages.Prepare(Small).File.Clone();
        BinaryPrimitives.WriteUInt64BigEndian(bytes.AsSpan(Qcow2HeaderLayout.AutoclearFeaturesAt), bits);
        SimulatedDisk disk = new();
        disk.Create("image", bytes);
        return disk;
    }

    private static ulong Autoclear(byte[] image) =>
        BinaryPrimitives.ReadUInt64BigEndian(image.AsSpan(Qcow2HeaderLayout.AutoclearFeaturesAt));
}
