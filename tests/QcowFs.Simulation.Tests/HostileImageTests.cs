// Images that lie about where their structures are: writing to one never overwrites a structure, and says what is wrong.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class HostileImageTests
{
    private const int ClusterSize = 4096;
    private const ulong Copied = 1UL << 63;

    private static readonly Geometry Written = new($"cluster_size={ClusterSize}", 65_536, InitialContent.Full);

    public static TheoryData<string> Structures => ["header", "L1 table", "refcount table", "refcount block", "L2 table"];

    /// <summary>Counts that call everything free.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_structure_that_is_counted_as_free_is_not_handed_out(bool withBlock)
    {
        Parts parts = Parts.Of(Written);
        if (withBlock)
            parts.Bytes.AsSpan((int)parts.Places["refcount block"], ClusterSize).Clear();
        else
            parts.Put(parts.Places["refcount table"], 0);
        parts.Put(parts.Places["L2 table"], 0); // a guest cluster without a place, to be written
        SimulatedDisk disk = parts.Disk();
        using CowImage image = SimulatedImages.Open(disk, parts.Prepared);
        ImageFormatException fault = Assert.Throws<ImageFormatException>(() => image.Write(0, Ones));
        Assert.Contains("counted as free", fault.Message, StringComparison.Ordinal);
        Assert.Contains("qcowfs check", image.Failure, StringComparison.Ordinal);
        Assert.Throws<StorageException>(() => image.Write(ClusterSize, Ones));
        Assert.Throws<StorageException>(image.Close);
        parts.RequireUnchanged(disk);
    }

    [Theory]
    [MemberData(nameof(Structures))]
    public void Guest_data_that_is_a_structure_is_not_written_or_given_up(string structure)
    {
        foreach (ulong flag in (ulong[])[0, Copied])
        {
            Parts parts = Parts.Of(Written);
            ulong entry = (ulong)parts.Places[structure] | flag;
            if (entry == 0)
                continue; // an unallocated cluster
            parts.Put(parts.Places["L2 table"] + 8, entry); // the second guest cluster; the first is sound
            SimulatedDisk disk = parts.Disk();
            using CowImage image = SimulatedImages.Open(disk, parts.Prepared);
            Assert.Throws<ImageFormatException>(() => image.Write(ClusterSize, Ones));
            Assert.Throws<ImageFormatException>(() => image.Discard(0, 3 * ClusterSize));
            image.Sync();
            image.Close();
            parts.RequireUnchanged(disk);
        }
    }

    [Theory]
    [MemberData(nameof(Structures))]
    public void Structures_that_overlap_are_not_written(string structure)
    {
        if (structure == "L2 table")
            return; // the one that is moved over the others
        Parts parts = Parts.Of(Written);
        parts.Put(parts.Places["L1 table"], (ulong)parts.Places[structure] | Copied);
        if (structure == "header")
            parts.Put(parts.Places["refcount table"] + 8, (ulong)parts.Places["L1 table"]);
        ImageFormatException fault = Assert.Throws<ImageFormatException>(() => SimulatedImages.Open(parts.Disk(), parts.Prepared));
        Assert.Contains("qcowfs check", fault.Message, StringComparison.Ordinal);
        using CowImage readable = SimulatedImages.Open(parts.Disk(), parts.Prepared, writable: false);
    }

    [Fact]
    public void What_no_block_counts_is_refused_before_the_change()
    {
        Parts parts = Parts.Of(Written);
        // A cluster so far on that its counts would be in a second block, which is not there.
        long far = 4096L * 8 / 16 * ClusterSize;
        parts.Put(parts.Places["L2 table"] + 8, (ulong)far | Copied);
        SimulatedDisk disk = parts.Disk();
        using (SimulatedStorage file = disk.Open("image"))
            file.SetLength(far + ClusterSize);
        using CowImage image = SimulatedImages.Open(disk, parts.Prepared);
        Assert.Throws<ImageFormatException>(() => image.Discard(0, 3 * ClusterSize));
        image.Sync();
        Assert.Null(image.Failure);
        image.Close();
    }

    private static byte[] Ones { get; } = [.. Enumerable.Repeat((byte)1, ClusterSize)];

    /// <summary>An image's bytes and where its structures are.</summary>
    private sealed record Parts(PreparedImage Prepared, byte[] Bytes, IReadOnlyDictionary<string, long> Places)
    {
        public static Parts Of(Geometry geometry)
        {
            PreparedImage prepared = SimulatedImages.Prepare(geometry);
            byte[] bytes = [.. prepared.File];
            Qcow2Header header = Qcow2HeaderReader.Parse(bytes, "image");
            Dictionary<string, long> places = new()
            {
                ["header"] = 0,
                ["L1 table"] = header.L1Offset,
                ["refcount table"] = header.RefcountTableOffset,
                ["refcount block"] = RefcountTableEntry.Read(bytes.AsSpan((int)header.RefcountTableOffset)).BlockOffset,
                ["L2 table"] = L1Entry.Read(bytes.AsSpan((int)header.L1Offset)).TableOffset,
            };
            return new Parts(prepared, bytes, places);
        }

        public void Put(long offset, ulong entry) => BinaryPrimitives.WriteUInt64BigEndian(Bytes.AsSpan((int)offset), entry);

        public SimulatedDisk Disk() => SimulatedImages.DiskOf(Prepared with { File = Bytes });

        /// <summary>Nothing but the in-use mark in the header may have changed, and what lies past the end.</summary>
        public void RequireUnchanged(SimulatedDisk disk)
        {
            byte[] now = disk.Content("image")[..Bytes.Length];
            now.AsSpan(Qcow2HeaderLayout.AutoclearFeaturesAt, 8).Clear();
            Assert.True(now.AsSpan().SequenceEqual(Bytes), $"byte {now.AsSpan().CommonPrefixLength(Bytes)} changed");
        }
    }
}
