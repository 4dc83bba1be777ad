// Random operations on a qcow2 image and on a plain byte array must agree, for every geometry, with a cache of two pages; and QEMU
// agrees with what was written.
using FsCheck;
using FsCheck.Fluent;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class ModelTests
{
    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 1_000_448),
        new Geometry("cluster_size=512,refcount_bits=1", 1_000_448),
        new Geometry("cluster_size=512,refcount_bits=2", 1_000_448),
        new Geometry("cluster_size=512,refcount_bits=4", 1_000_448),
        new Geometry("cluster_size=4096,refcount_bits=8", 1_000_448),
        new Geometry("cluster_size=4096,refcount_bits=32", 1_000_448),
        new Geometry("cluster_size=512,refcount_bits=64", 1_000_448),
        new Geometry("cluster_size=65536", 1_000_448),
        new Geometry("cluster_size=2M", 5_000_192),
        new Geometry("cluster_size=512,compat=0.10", 1_000_448),
        new Geometry("cluster_size=512,compat=0.10", 1_000_448, InitialContent.Backing),
        new Geometry("cluster_size=4096", 1_000_448, InitialContent.Backing),
        new Geometry("cluster_size=16384,extended_l2=on", 1_000_448),
        new Geometry("cluster_size=65536,extended_l2=on", 1_000_448, InitialContent.Backing),
        new Geometry("cluster_size=16384,extended_l2=on", 1_000_448, InitialContent.Snapshot),
        new Geometry("cluster_size=16384,extended_l2=on", 1_000_448, InitialContent.Compressed),
        new Geometry("cluster_size=4096", 1_000_448, InitialContent.Snapshot),
        new Geometry("cluster_size=4096,compression_type=zstd", 1_000_448, InitialContent.Compressed),
        new Geometry("cluster_size=65536", 1_000_448, InitialContent.Compressed),
        new Geometry("cluster_size=4096", 1_000_448, InitialContent.ExternalData),
        new Geometry("cluster_size=16384,extended_l2=on", 1_000_448, InitialContent.ExternalData),
        new Geometry("cluster_size=4096,data_file_raw=on", 1_000_448, InitialContent.ExternalData),
        new Geometry("cluster_size=512", 300_032, Compress: true),
        new Geometry("cluster_size=512,compat=0.10", 300_032, InitialContent.Backing, Compress: true),
        new Geometry("cluster_size=2048,refcount_bits=1", 1_000_448, Compress: true),
        new Geometry("cluster_size=4096,refcount_bits=2", 1_000_448, Compress: true),
        new Geometry("cluster_size=4096,refcount_bits=4", 1_000_448, InitialContent.Snapshot, Compress: true),
        new Geometry("cluster_size=4096,refcount_bits=64,compression_type=zstd", 1_000_448, InitialContent.Backing, Compress: true),
        new Geometry("cluster_size=4096", 1_000_448, InitialContent.Compressed, Compress: true),
        new Geometry("cluster_size=16384,extended_l2=on", 1_000_448, InitialContent.Snapshot, Compress: true),
        new Geometry("cluster_size=16384,extended_l2=on,compression_type=zstd", 1_000_448, InitialContent.Backing, Compress: true),
        new Geometry("cluster_size=65536", 3_000_320, Compress: true),
        new Geometry("cluster_size=2M", 9_000_448, Compress: true),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Agrees_with_bytes_and_with_qemu(Geometry geometry)
    {
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        foreach (ulong seed in Seeds.Between(1, 4))
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            using (CowImage image = SimulatedImages.Open(disk, prepared, cacheSize: 2 * 4096))
            {
                int step = 0;
                foreach (Operation operation in Operation.Random(seed, 300, geometry))
                {
                    operation.Run(image, model);
                    if (++step % 60 == 0)
                        model.CheckLive(image);
                }

                model.CheckLive(image);
                image.Close();
            }

            if (geometry.Content == InitialContent.Snapshot)
                SimulatedImages.JudgeSnapshotByQemu(disk, prepared.Guest, $"{geometry} seed {seed}");
            SimulatedImages.JudgeByQemu(disk, prepared, model.Current.AsSpan(0, geometry.Size), $"{geometry} seed {seed}");
        }
    }

    /// <summary>The same with operations that shrink to the smallest failing list.</summary>
    [Fact]
    public void Agrees_with_bytes_after_any_short_list_of_operations()
    {
        Geometry geometry = new("cluster_size=512", 40_448, InitialContent.Backing);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        Gen<Operation> operation =
            from kind in Gen.Choose(0, 3)
            from sector in Gen.Choose(0, 78)
            from skew in Gen.Choose(0, 511)
            from length in Gen.Choose(1, 3000)
            from fill in Gen.Choose(0, 2)
            let offset = (sector * 512) + skew
            select new Operation((OperationKind)kind, offset, Filled(Math.Min(length, geometry.Size - offset), kind == (int)OperationKind.Write ? fill : 0));
        Arbitrary<List<Operation>> lists = operation.ListOf().Select(list => list.ToList()).ToArbitrary();
        Prop.ForAll(lists, operations =>
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            using (CowImage image = SimulatedImages.Open(disk, prepared))
            {
                foreach (Operation one in operations)
                    one.Run(image, model);
                model.CheckLive(image);
                image.Close();
            }

            return Qcow2Checker.Check(disk.Open("image", readOnly: true)).ExitCode == 0;
        }).Check(Config.QuickThrowOnFailure.WithMaxTest(300));
    }

    /// <summary>After a reservation writes need no space: the disk has none left, and they succeed.</summary>
    [Fact]
    public void Reserved_space_is_there_when_the_host_is_full()
    {
        Geometry geometry = new("cluster_size=4096", 1_000_448, InitialContent.Backing);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        using CowImage image = SimulatedImages.Open(disk, prepared);
        image.Reserve(5_000, 300_000);
        byte[] read = new byte[geometry.Size];
        image.Read(0, read);
        Assert.True(read.AsSpan().SequenceEqual(prepared.Guest), "a reservation changed what the disk holds");
        disk.SpaceLimit = disk.UsedSpace;
        image.Write(5_000, new byte[300_000]);
        image.Sync();
        image.Close();
    }

    private static byte[] Filled(int length, int fill)
    {
        byte[] bytes = new byte[length];
        bytes.AsSpan().Fill((byte)fill);
        return bytes;
    }
}
