// Thousands of broken add-cow files, of both layouts, through everything that reads or writes one: nothing but the typed faults comes out,
// in bounded memory and time, and no file but the three is asked for. A failure names the seed, which gives the file again.
// QCOWFS_FUZZ_ROUNDS makes it longer.
using System.Buffers.Binary;
using QcowFs.Images.Tests.Support;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.AddCow;

public sealed class AddCowFuzzTests
{
    private const int ImageSize = 300_000;
    private const long AllocationLimit = 64 << 20;

    private static readonly int[] FinalFields = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 60, 64, 76, 80, 84, 4096, 4100, 4104, 4108];
    private static readonly int[] MarchFields = [0, 4, 8, 12, 16, 1032, 1036, 1040, 2056, 2060, 2556, 2560, 2564, 2628];

    [Fact]
    public void Everything_is_total()
    {
        int rounds = Fuzzing.Rounds(1200);
        int opened = 0;
        foreach (ulong seed in Seeds.Between(0, (ulong)rounds - 1))
        {
            byte[] overlay = Damage(new Random(unchecked((int)seed)), isFinal: seed % 3 != 0);
            try
            {
                opened += Try(overlay) ? 1 : 0;
            }
            catch (Exception fault)
            {
                Assert.Fail($"seed {seed}: {fault}");
            }
        }

        Assert.InRange(opened, rounds / 20, rounds - 1); // neither all broken nor all sound
    }

    /// <summary>A disk of terabytes that is all holes costs no more than one that does not, whatever its bitmap is said to be.</summary>
    [Theory]
    [InlineData(12)]
    [InlineData(21)]
    public void A_disk_of_terabytes_that_is_all_holes_costs_nothing(int clusterBits)
    {
        using TempDirectory temp = new();
        const long size = 7L << 40;
        AddCowBytes small = new() { DiskSize = 4096, ClusterBits = clusterBits };
        byte[] header = small.Final().AsSpan(0, small.HeaderSize).ToArray();
        using (FileStream file = File.Create(temp["overlay"]))
        {
            file.Write(header);
            long bitmap = ((size >> clusterBits) + 7) / 8;
            file.SetLength(header.Length + ((bitmap + (1L << clusterBits) - 1) >> clusterBits << clusterBits));
        }

        using (FileStream file = File.Create(temp["image"]))
            file.SetLength(size);
        ImageOpener opener = new(HostFileSystem.Instance);
        Bounded("info", () => Assert.Equal(size, opener.ReadInfo(temp["overlay"]).VirtualSize));
        Bounded("check", () => Assert.Equal(0, opener.Check(temp["overlay"]).ExitCode));
        Bounded("write", () =>
        {
            using IDiskImage image = opener.Open(temp["overlay"], new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero });
            image.Write(size - 5000, new byte[] { 1, 2, 3 });
            image.Close();
        });
        Bounded("info", () => Assert.Contains(new FormatFact("allocated-clusters", 1L), opener.ReadInfo(temp["overlay"]).FormatSpecific));
    }

    private static bool Try(byte[] overlay)
    {
        SimulatedDisk disk = new();
        disk.Create("overlay", overlay);
        disk.Create("base", Pattern.Bytes(1, 0, 200_000));
        disk.Create("image", Pattern.Bytes(2, 0, ImageSize));
        ImageOpener opener = new(disk);
        bool opened = false;
        Bounded("info", () => opener.ReadInfo("overlay"));
        Bounded("inspect", () => opener.Inspect("overlay", null, ReferencePolicy.All));
        Bounded("check", () => opener.Check("overlay"));
        Bounded("open", () =>
        {
            using IDiskImage image = opener.Open("overlay", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero, CacheSize = 4096 });
            byte[] bytes = new byte[50_000];
            for (long offset = 0; offset < image.Length; offset += 70_000)
            {
                image.Read(offset, bytes);
                Assert.InRange(image.QueryExtent(offset, image.Length - offset).Length, 1, image.Length - offset);
                image.Write(offset, bytes.AsSpan(0, 3000));
                image.Discard(offset, Math.Min(10_000, image.Length - offset));
            }

            image.Sync();
            image.Close();
            opened = true;
        });
        Bounded("repair", () => opener.Repair("overlay", RepairMode.All));
        Bounded("resize", () => new ImageEditor(disk, TimeProvider.System).Resize("overlay", new OpenOptions(), new SizeChange(400_000), mayShrink: true));
        Bounded("resize", () => new ImageEditor(disk, TimeProvider.System).Resize("overlay", new OpenOptions(), new SizeChange(5000), mayShrink: true));
        Assert.True(disk.Content("base").AsSpan().SequenceEqual(Pattern.Bytes(1, 0, 200_000)) || !opened, "the backing file was written");
        return opened;
    }

    private static byte[] Damage(Random random, bool isFinal)
    {
        AddCowBytes valid = new() { DiskSize = ImageSize, ClusterBits = 12, Backing = "base", IsAllocated = _ => random.Next(2) == 0 };
        byte[] file = isFinal ? valid.Final() : valid.March();
        int[] fields = isFinal ? FinalFields : MarchFields;
        for (int i = random.Next(1, 4); i > 0; i--)
        {
            Span<byte> field = file.AsSpan(fields[random.Next(fields.Length)], 4);
            uint old = BinaryPrimitives.ReadUInt32LittleEndian(field);
            BinaryPrimitives.WriteUInt32LittleEndian(field, random.Next(9) switch
            {
                0 => 0,
                1 => uint.MaxValue,
                2 => 1U << random.Next(32),
                3 => old ^ (1U << random.Next(32)),
                4 => unchecked(old + (uint)random.Next(-2, 3)),
                5 => (uint)random.Next(5000),
                6 => BinaryPrimitives.ReverseEndianness(old),
                7 => 0x7FFF_FFFF,
                _ => unchecked((uint)random.NextInt64()),
            });
        }

        if (random.Next(10) == 0)
            Array.Resize(ref file, random.Next(file.Length * 2));
        return file;
    }

    private static void Bounded(string what, Action action) => Fuzzing.Bounded(what, AllocationLimit, action);
}
