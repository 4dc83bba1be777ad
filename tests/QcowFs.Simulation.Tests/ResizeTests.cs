// Resizing: sizes, content and consistency afterwards, and after a crash at any instant in it.
using QcowFs.Images;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class ResizeTests
{
    public static TheoryData<Geometry, int> Resizes => new()
    {
        { new Geometry("cluster_size=512", 70_144, InitialContent.Full), 30_208 },
        { new Geometry("cluster_size=512", 70_144, InitialContent.Full), 0 },
        { new Geometry("cluster_size=512", 70_144, InitialContent.Full), 2_200_064 },
        { new Geometry("cluster_size=512,compat=0.10", 70_144, InitialContent.Full), 30_208 },
        { new Geometry("cluster_size=512,refcount_bits=64", 70_144, InitialContent.Full), 3_000_320 },
        { new Geometry("cluster_size=2048", 69_632 + 512, InitialContent.Full), 69_632 + 1024 },
        { new Geometry("cluster_size=2048", 69_632 + 512, InitialContent.Full), 40_960 + 512 },
        { new Geometry("cluster_size=4096", 16_384, InitialContent.Compressed), 5_120 },
        { new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Full), 40_960 },
        { new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Snapshot), 300_032 },
        { new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot), 140_288 },
        { new Geometry("cluster_size=512", 70_144, InitialContent.Backing), 30_208 },
        { new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot), 40_448 },
        { new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Snapshot), 40_960 },
        { new Geometry("cluster_size=512,compat=0.10", 70_144, InitialContent.Snapshot), 80_384 },
        { new Geometry("cluster_size=512", 40_448, InitialContent.ExternalData), 20_480 },
        { new Geometry("cluster_size=512,data_file_raw=on", 40_448, InitialContent.ExternalData), 90_112 },
    };

    [Theory]
    [MemberData(nameof(Resizes))]
    public void Every_instant(Geometry geometry, int size)
    {
        PreparedImage image = SimulatedImages.Prepare(geometry);
        SimulatedDisk start = SimulatedImages.DiskOf(image);
        ImageContent before = EditRun.Read(start, image);
        byte[] active = Resized(before.Active, size);
        SimulatedDisk done = EditRun.CrashEverywhere(
            start, image, before with { Active = active }, disk => Resize(disk, image, size), choices: 12, $"{geometry} to {size}");
        SimulatedImages.JudgeByQemu(done, image, active, $"{geometry} to {size}");
    }

    /// <summary>What was cut off never comes back: not from the file, not from the backing image.</summary>
    [Theory]
    [InlineData("cluster_size=2048", InitialContent.Full)]
    [InlineData("cluster_size=2048", InitialContent.Backing)]
    [InlineData("cluster_size=2048,compat=0.10", InitialContent.Backing)]
    [InlineData("cluster_size=16384,extended_l2=on", InitialContent.Backing)]
    [InlineData("cluster_size=4096", InitialContent.Compressed)]
    public void Grown_again_it_reads_as_zeros(string options, InitialContent content)
    {
        Geometry geometry = new(options, 200_192, content);
        PreparedImage image = SimulatedImages.Prepare(geometry);
        SimulatedDisk start = SimulatedImages.DiskOf(image);
        byte[] small = Resized(EditRun.Read(start, image).Active, 50_688);
        Resize(start, image, small.Length);
        byte[] large = Resized(small, 150_016);
        SimulatedDisk done = EditRun.CrashEverywhere(
            start, image, new ImageContent(large), disk => Resize(disk, image, large.Length), choices: 8, geometry.ToString());
        SimulatedImages.JudgeByQemu(done, image, large, geometry.ToString());
    }

    /// <summary>A crash between the new size and the unmapping leaves clusters mapped past the end; growing finds them.</summary>
    [Fact]
    public void Growing_after_a_crash_in_shrinking()
    {
        Geometry geometry = new("cluster_size=512", 70_144, InitialContent.Full);
        PreparedImage image = SimulatedImages.Prepare(geometry);
        byte[] small = Resized(image.Guest, 30_208);
        byte[] large = Resized(small, 100_352);
        int found = 0;
        for (long instant = 1; ; instant++)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(image);
            disk.CrashAt(disk.Clock + instant);
            try
            {
                Resize(disk, image, small.Length);
                break;
            }
            catch (SimulatedCrashException)
            {
                disk = disk.Crash(CrashChoice.Nothing);
            }

            if (EditRun.Read(disk, image).Active.Length != small.Length)
                continue;
            found++;
            Resize(disk, image, large.Length);
            EditRun.Judge(disk, image, [new ImageContent(large)], $"instant {instant}");
        }

        Assert.True(found > 2);
    }

    [Theory]
    [InlineData("cluster_size=512", InitialContent.Full, 30_000, "a qcow2 disk cannot have 30000 bytes; give a multiple of 512")]
    [InlineData("cluster_size=512", InitialContent.Full, 1L << 40, "1099511627776 bytes are more than clusters of 512 bytes can map; convert the image to one with larger clusters")]
    public void Refused_before_anything_changes(string options, InitialContent content, long size, string message)
    {
        PreparedImage image = SimulatedImages.Prepare(new Geometry(options, 70_144, content));
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        ImageFormatException refused = Assert.Throws<ImageFormatException>(() => Resize(disk, image, size));
        Assert.Equal($"image: size: {message}", refused.Message);
        Assert.True(disk.Content("image").AsSpan().SequenceEqual(image.File));
    }

    /// <summary>An entry of an old image may not state the size of its disk, which is then that of the active one.</summary>
    [Fact]
    public void A_snapshot_whose_size_would_change_too_is_in_the_way()
    {
        PreparedImage image = SimulatedImages.Prepare(new Geometry("cluster_size=512,compat=0.10", 70_144, InitialContent.Snapshot));
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        DropSnapshotSize(disk, "image");
        Assert.Equal(
            "image: size: snapshot \"before\" does not state its own size, so it would change with the disk's; delete the snapshot first",
            Assert.Throws<ImageFormatException>(() => Resize(disk, image, 80_384)).Message);
    }

    internal static void DropSnapshotSize(SimulatedDisk disk, string name)
    {
        using SimulatedStorage file = disk.Open(name);
        Qcow2Snapshot snapshot = Qcow2SnapshotTable.Read(Qcow2HeaderReader.Read(file), file).Snapshots[0];
        byte[] entry = new byte[snapshot.SizeOnDisk];
        (snapshot with { Extra = [] }).WriteTo(entry);
        file.Write(snapshot.Offset, entry);
        file.Sync();
    }

    /// <summary>A smaller disk needs a smaller L1 table, whose rest is given back.</summary>
    [Fact]
    public void Shrinking_gives_L1_space_back()
    {
        PreparedImage image = SimulatedImages.Prepare(new Geometry("cluster_size=512", 5_000_192, InitialContent.Full));
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        Assert.Equal(153, Qcow2HeaderReader.Read(disk.Open("image")).L1Size); // three clusters
        Resize(disk, image, 40_448);
        Assert.Equal(2, Qcow2HeaderReader.Read(disk.Open("image")).L1Size);
        EditRun.Judge(disk, image, [new ImageContent(Resized(image.Guest, 40_448))], "shrunk");
        Assert.Equal(0, Qcow2Checker.Check(disk.Open("image")).ExitCode);
        Resize(disk, image, 5_000_192);
        EditRun.Judge(disk, image, [new ImageContent(Resized(Resized(image.Guest, 40_448), 5_000_192))], "grown again");
        SimulatedImages.JudgeByQemu(disk, image, Resized(Resized(image.Guest, 40_448), 5_000_192), "grown again");
    }

    /// <summary>The data file ends with the disk, and what it held past the old end does not come up.</summary>
    [Theory]
    [InlineData("cluster_size=4096")]
    [InlineData("cluster_size=4096,data_file_raw=on")]
    public void An_external_data_file_is_resized_too(string options)
    {
        PreparedImage image = SimulatedImages.Prepare(new Geometry(options, 40_448, InitialContent.ExternalData));
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        byte[] bytes = new byte[40_448];
        bytes.AsSpan().Fill(9);
        EditRun.Write(disk, image, new ImageContent(bytes), 0, bytes);
        using (SimulatedStorage data = disk.Open("data"))
            data.Write(40_448, bytes.AsSpan(0, 5000));
        Resize(disk, image, 60_416);
        Assert.True(disk.Content("data").AsSpan(0, 60_416).SequenceEqual(Resized(bytes, 60_416)));
        EditRun.Judge(disk, image, [new ImageContent(Resized(bytes, 60_416))], "grown");
        Resize(disk, image, 20_480);
        Assert.Equal(20_480, disk.Content("data").Length);
        SimulatedImages.JudgeByQemu(disk, image, Resized(bytes, 20_480), options);
    }

    internal static byte[] Resized(byte[] content, int size)
    {
        byte[] resized = new byte[size];
        content.AsSpan(0, Math.Min(size, content.Length)).CopyTo(resized);
        return resized;
    }

    internal static void Resize(SimulatedDisk disk, PreparedImage image, long size)
    {
        using SimulatedStorage file = disk.Open("image", readOnly: false);
        IDiskImage? backing = image.Backing is null ? null : SimulatedImages.OpenBacking(image.Backing);
        using SimulatedStorage? data = image.Data is null ? null : disk.Open("data");
        Qcow2Resize.Run(Qcow2HeaderReader.Read(file), file, data, backing, size);
    }
}
