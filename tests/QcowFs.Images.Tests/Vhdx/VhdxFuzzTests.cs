// Thousands of broken VHDX files through everything that reads or writes one: nothing but the typed faults comes out, in bounded memory
// and time. Checksums are made right again, so that the damage is met behind them. A failure names specimen and seed, which give the
// file again. QCOWFS_FUZZ_ROUNDS makes it longer.
using System.Buffers.Binary;
using QcowFs.Images.Tests.Support;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Vhdx;

public sealed class VhdxFuzzTests
{
    private const long AllocationLimit = 200 << 20;
    private static readonly Specimen[] Specimens = [Specimen.Plain(), Specimen.Dirty(), Specimen.Child()];

    [Fact]
    public void Facts_names_and_check_are_total() => ForEach(120, file =>
    {
        ImageOpener opener = new(new OneImage([], file));
        Bounded("info", () => opener.ReadInfo("image"));
        Bounded("inspect", () => opener.Inspect("image", null, ReferencePolicy.All));
        Bounded("check", () => opener.Check("image"));
    });

    [Fact]
    public void Reading_is_total() => ForEach(70, file => Bounded("open", () =>
    {
        using IDiskImage disk = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), file, null, new OpenOptions()));
        byte[] buffer = new byte[100_000];
        long at = 0;
        for (int i = 0; i < 300 && at < disk.Length; i++)
        {
            Extent extent = disk.QueryExtent(at, disk.Length - at);
            Assert.InRange(extent.Length, 1, disk.Length - at);
            at += extent.Length;
        }

        for (long offset = 0; offset < Math.Min(disk.Length, 8 << 20); offset += 433_333)
            Bounded("read", () => disk.Read(offset, buffer));
    }));

    [Fact]
    public void Writing_is_total() => ForEach(70, file => Bounded("open", () =>
    {
        using IDiskImage disk = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), file, null, new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero }));
        byte[] data = Pattern.Bytes(1, 0, 40_000);
        for (long offset = 0; offset + data.Length <= Math.Min(disk.Length, 8 << 20); offset += 1_500_000)
        {
            Bounded("write", () => disk.Write(offset, data));
            Bounded("discard", () => disk.Discard(offset + 5000, 20_000));
        }

        Bounded("sync", disk.Sync);
        Bounded("close", disk.Close);
    }));

    /// <summary>What is repaired once stays so, and nothing is worse.</summary>
    [Fact]
    public void Repair_and_resize_are_total() => ForEach(50, file =>
    {
        try
        {
            CheckReport? first = null;
            Bounded("repair", () => first = VhdxRepair.Run(file, RepairMode.All, Native.GuidSource.System));
            if (first is not null)
                Assert.Equal(first.ExitCode, VhdxRepair.Run(file, RepairMode.All, Native.GuidSource.System).ExitCode);
            Bounded("resize", () => VhdxResize.Run(VhdxLayout.Read(file), file, 12 << 20, Native.GuidSource.System));
            Bounded("shrink", () => VhdxResize.Run(VhdxLayout.Read(file), file, 2 << 20, Native.GuidSource.System));
        }
        catch (ImageFormatException)
        {
            // A structure that everything hangs from.
        }
    });

    /// <summary>What QEMU finds damaged we find damaged, in its class. It looks at little, so there is no comparing the other way: it
    /// takes files for sound with tables of metadata, regions and states that the format forbids. It opens no differencing disk, and
    /// none whose log is in use.</summary>
    [SkippableFact]
    public void What_qemus_check_finds_is_found()
    {
        Tools.Require("qemu-img");
        using TempDirectory temp = new();
        int refused = 0;
        ForEach(150, [Specimens[0]], file =>
        {
            string path = temp["fuzzed.vhdx"];
            byte[] bytes = new byte[file.Length];
            file.Read(0, bytes);
            File.WriteAllBytes(path, bytes);
            ToolResult check = Qemu.TryImg("check", "-f", "vhdx", path);
            int theirs = check.ExitCode;
            try
            {
                CheckReport report = VhdxChecker.Check(file);
                Assert.True(theirs == 0 || report.ExitCode == theirs || (theirs == 1 && report.ExitCode == 2),
                    $"ours {report.ExitCode}, theirs {theirs}: {check.Errors.Trim()}; {string.Join("; ", report.Findings.Select(f => f.Message))}");
                refused += theirs == 0 ? 0 : 1;
            }
            catch (ImageFormatException)
            {
                // A structure that everything hangs from breaks a rule.
                refused += theirs == 0 ? 0 : 1;
            }
        });
        Assert.True(refused > 10, $"QEMU found {refused} files damaged");
    }

    private static void ForEach(int rounds, Action<MemoryStorage> test) => ForEach(rounds, Specimens, test);

    private static void ForEach(int rounds, IEnumerable<Specimen> specimens, Action<MemoryStorage> test) =>
        Fuzzing.ForEach(rounds, specimens, specimen => specimen.Name, (specimen, seed) => test(specimen.Damage(seed)));

    private static void Bounded(string what, Action action) => Fuzzing.Bounded(what, AllocationLimit, action);

    /// <summary>A valid file and the fields worth damaging. The log's entries are sealed anew like the headers.</summary>
    private sealed class Specimen
    {
        private readonly VhdxFile _file;
        private readonly List<(long At, int Width)> _fields = [];

        private Specimen(string name, VhdxFile file)
        {
            Name = name;
            _file = file;
            FindFields();
        }

        public string Name { get; }

        public static Specimen Plain() => new("plain", VhdxFile.Sample());

        /// <summary>A file whose log was left in use.</summary>
        public static Specimen Dirty()
        {
            VhdxFile sample = VhdxFile.Sample();
            MemoryStorage storage = sample.Storage();
            using (IDiskImage image = new ImageOpener(new OneImage([], storage)).Open("image", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero }))
            {
                image.Write(3 << 20, [1]);
                image.Sync();
                image.Write(4 << 20, [1]);
                image.Sync();
            }

            return new Specimen("dirty", new VhdxFile(BytesOf(storage)));
        }

        /// <summary>A differencing disk with a partially present block.</summary>
        public static Specimen Child()
        {
            MemoryStorage storage = new("image");
            VhdxCreator.Create(storage, new VhdxCreateOptions
            {
                VirtualSize = 8 << 20,
                BlockSize = 1 << 20,
                LogSize = 1 << 20,
                LogicalSectorSize = 512,
                ParentPath = "../up/base.vhdx",
                Parent = (Guid.Empty, Guid.Empty),
            }, Native.GuidSource.System);
            byte[] empty = BytesOf(storage);
            using MemoryStorage kept = new("image");
            kept.Write(0, empty);
            OpenOptions options = new() { Writable = true, CommitInterval = TimeSpan.Zero };
            using (IDiskImage image = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(storage), storage, null, options)))
            {
                image.Write(5000, [1, 2, 3]);
                image.Write(2 << 20, Pattern.Bytes(1, 0, 1 << 20));
                image.Sync();
                kept.Write(0, BytesOf(storage));
            }

            return new Specimen("child", new VhdxFile(BytesOf(kept)));
        }

        /// <summary>The file of a seed: the valid one with one to four fields changed, now and then cut short.</summary>
        public MemoryStorage Damage(int seed)
        {
            Random random = new(seed);
            byte[] bytes = [.. _file.Bytes];
            for (int i = random.Next(1, 5); i > 0; i--)
            {
                (long at, int width) = _fields[random.Next(_fields.Count)];
                ulong old = 0;
                for (int b = 0; b < width; b++)
                    old |= (ulong)bytes[at + b] << (8 * b);
                ulong value = Value(random, old);
                for (int b = 0; b < width; b++)
                    bytes[at + b] = (byte)(value >> (8 * b) & 0xFF);
            }

            VhdxFile damaged = Seal(bytes);
            MemoryStorage storage = new("image");
            storage.Write(0, random.Next(12) == 0 ? damaged.Bytes[..random.Next(bytes.Length)] : damaged.Bytes);
            return storage;
        }

        private VhdxFile Seal(byte[] bytes)
        {
            VhdxFile file = new([.. _file.Bytes]);
            bytes.CopyTo(file.Bytes, 0);
            file.Seal();
            for (int at = 1 << 20; at < 2 << 20; at += 4096)
            {
                int length = BinaryPrimitives.ReadInt32LittleEndian(bytes.AsSpan(at + 8));
                if (bytes.AsSpan(at, 4).SequenceEqual("loge"u8) && length > 0 && length <= (2 << 20) - at)
                    BinaryPrimitives.WriteUInt32LittleEndian(file.Bytes.AsSpan(at + 4), VhdxReader.Checksum(file.Bytes.AsSpan(at, length), 4));
            }

            return file;
        }

        private void FindFields()
        {
            foreach (int header in new[] { VhdxFile.Header1, VhdxFile.Header2 })
                Add(header, (0, 4), (8, 8), (32, 8), (48, 8), (64, 2), (66, 2), (68, 4), (72, 8));
            Add(VhdxFile.Regions1, (8, 4), (16, 4), (32, 8), (40, 4), (44, 4), (48, 4), (64, 8), (72, 4));
            Add(_file.Metadata, (0, 8), (10, 2));
            for (int i = 0; i < 6; i++)
                Add(_file.Metadata + 32 + (i * 32), (0, 4), (16, 4), (20, 4), (24, 4));
            for (int at = 0; at < 256; at += 4)
                Add(_file.Metadata + 65536, (at, at % 8 == 0 ? 8 : 4));
            for (int i = 0; i < 12; i++)
                Add(_file.Bat + (i * 8), (0, 8), (0, 1));
            Add(_file.Bat + (4096 * 8), (0, 8), (0, 1));
            for (int at = 1 << 20; at < (1 << 20) + (8 * 4096); at += 4096)
                Add(at, (0, 4), (8, 4), (12, 4), (16, 8), (24, 4), (32, 8), (48, 8), (56, 8), (64, 4), (72, 8), (80, 8), (88, 8), (104, 8));
        }

        private void Add(long at, params (int Offset, int Width)[] fields) => _fields.AddRange(fields.Select(f => (at + f.Offset, f.Width)));

        private ulong Value(Random random, ulong old) => random.Next(12) switch
        {
            0 => 0,
            1 => ulong.MaxValue,
            2 => 1UL << random.Next(64),
            3 => old ^ 1UL << random.Next(64),
            4 => unchecked(old + 4096),
            5 => ((ulong)random.Next(12) << 20) + (ulong)random.Next(8),
            6 => (ulong)random.Next(12) << 20,
            7 => (ulong)_file.Bytes.Length,
            8 => unchecked((ulong)random.NextInt64() + ((ulong)random.Next(2) << 63)),
            9 => (ulong)random.Next(300),
            10 => random.Next(2) == 0 ? 0x7FFF_FFFFUL : 0x7FFF_FFFF_FFFF_FFFF,
            _ => unchecked(old + (ulong)random.Next(-2, 3)),
        };

        private static byte[] BytesOf(MemoryStorage storage)
        {
            byte[] bytes = new byte[storage.Length];
            storage.Read(0, bytes);
            return bytes;
        }
    }
}
