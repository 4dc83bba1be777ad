// Committing an overlay into its base: what it must leave, and that at no instant a crash changes what the two show together.
using QcowFs.Images;
using QcowFs.Images.Qcow2;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class OverlayCommitTests
{
    private const int Size = 40_448;

    private static readonly OpenOptions Options = new() { CommitInterval = TimeSpan.Zero, BackgroundRecovery = false, CacheSize = 4096 };

    /// <summary>Options of the overlay, then of the base; the base's size; the overlay's.</summary>
    public static TheoryData<string, string, int, int> Pairs => new()
    {
        { "cluster_size=512", "cluster_size=512", Size, Size },
        { "cluster_size=2048", "raw", Size, Size },
        { "cluster_size=512,refcount_bits=1", "cluster_size=4096,compat=0.10", Size, Size },
        { "cluster_size=16384,extended_l2=on", "cluster_size=512 over", Size, Size },
        { "cluster_size=512", "cluster_size=512", 20_480, Size },
        { "cluster_size=512", "cluster_size=1024 over", 20_480, Size },
        { "cluster_size=1024", "raw", 20_000, Size },
        { "cluster_size=512", "cluster_size=512", Size, 20_480 },
        { "cluster_size=512 snapshot", "cluster_size=512", Size, Size },
        { "cluster_size=4096 moved", "cluster_size=512", Size, Size },
        { "cluster_size=512 foreign", "cluster_size=512", Size, Size },
    };

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Every_instant(string overlay, string @base, int baseSize, int size)
    {
        (SimulatedDisk start, byte[] expected) = Prepare(overlay, @base, baseSize, size);
        string where = $"{overlay} over {@base}";
        SimulatedDisk done = start.Crash(CrashChoice.Everything);
        long first = done.Clock + 1;
        Commit(done);
        JudgeCommitted(done.Crash(CrashChoice.Nothing), expected, baseSize, mayLeak: false, where);
        int survivors = 0;
        for (long instant = first; instant <= done.Clock; instant++)
        {
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            disk.CrashAt(instant);
            Assert.Throws<SimulatedCrashException>(() => Commit(disk));
            HashSet<UInt128> seen = [];
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(32, (ulong)instant))
            {
                if (!seen.Add(survivor.Fingerprint()))
                    continue;
                string at = $"{where}, instant {instant}, {choice}";
                JudgePair(survivor, expected, at);
                if (survivors++ % 7 > 0)
                    continue;
                SimulatedDisk again = survivor.Kill();
                Commit(again);
                JudgeCommitted(again.Crash(CrashChoice.Nothing), expected, baseSize, mayLeak: true, at + ", then finished");
            }
        }

        Assert.True(survivors > 30, $"{where}: {survivors} crashes");
    }

    /// <summary>A crash while an interrupted commit is being finished.</summary>
    [Fact]
    public void Crashes_one_after_the_other()
    {
        (SimulatedDisk start, byte[] expected) = Prepare("cluster_size=4096 moved", "cluster_size=512", 20_480, Size);
        SimulatedDisk whole = start.Crash(CrashChoice.Everything);
        Commit(whole);
        foreach (ulong seed in Seeds.Between(1, 200))
        {
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            for (int crash = 0; crash < 3; crash++)
            {
                disk.CrashAt(disk.Clock + 1 + (long)(Pattern.Mix(seed * 3 + (ulong)crash) % (ulong)(whole.Clock - start.Clock)));
                try
                {
                    Commit(disk);
                    disk.TurnOff();
                }
                catch (SimulatedCrashException)
                {
                    // As planned; a commit with less left to do may end before it.
                }

                disk = disk.Crash(CrashChoice.Sampled(seed + (ulong)crash, bySector: true));
                JudgePair(disk, expected, $"seed {seed}, crash {crash}");
            }

            Commit(disk);
            JudgeCommitted(disk.Crash(CrashChoice.Nothing), expected, 20_480, mayLeak: true, $"seed {seed}");
        }
    }

    [Fact]
    public void Errors_of_the_host_lose_nothing()
    {
        (SimulatedDisk start, byte[] expected) = Prepare("cluster_size=512", "cluster_size=512", 20_480, Size);
        SimulatedDisk whole = start.Crash(CrashChoice.Everything);
        Commit(whole);
        foreach (string storage in new[] { "base", "overlay" })
        {
            for (long nth = 1; ; nth++)
            {
                SimulatedDisk disk = start.Crash(CrashChoice.Everything);
                disk.Fail(StorageCalls.Changes | StorageCalls.Sync, nth % 2 == 0 ? Errno.EIO : Errno.ENOSPC, nth, storage: storage);
                try
                {
                    Commit(disk);
                    break;
                }
                catch (StorageException)
                {
                    disk = disk.Kill();
                }

                JudgePair(disk, expected, $"call {nth} of {storage} failed");
                Commit(disk);
                JudgeCommitted(disk, expected, 20_480, mayLeak: true, $"call {nth} of {storage} failed");
            }
        }
    }

    [Fact]
    public void What_cannot_be_committed_is_refused_and_stays()
    {
        (SimulatedDisk disk, byte[] expected) = Prepare("cluster_size=512", "cluster_size=512,compat=0.10 snapshot", 20_480, Size);
        byte[] overlay = disk.Content("overlay");
        byte[] bottom = disk.Content("base");
        ImageFormatException refused = Assert.Throws<ImageFormatException>(() => Commit(disk));
        Assert.Equal("base: size: snapshot \"before\" does not state its own size, so it would change with the disk's; delete the snapshot first", refused.Message);
        Assert.True(disk.Content("overlay").AsSpan().SequenceEqual(overlay));
        Assert.True(disk.Content("base").AsSpan().SequenceEqual(bottom));
        JudgePair(disk, expected, "refused");
        refused = Assert.Throws<ImageFormatException>(() => new ImageEditor(disk, TimeProvider.System).Commit("base", Options, null));
        Assert.Equal("base: commit: it has no backing image that it could be written to; copy it with qemu-img convert", refused.Message);
    }

    [Fact]
    public void A_base_that_changed_is_refused()
    {
        (SimulatedDisk disk, _) = Prepare("cluster_size=512", "raw", Size, Size);
        using (SimulatedStorage file = disk.Open("base"))
            file.Write(Size - 1, [77]);
        Refusal("the content of the base \"base\", or of a file below it, changed since the overlay was made over it");
        using (SimulatedStorage file = disk.Open("base"))
            file.SetLength(Size + 512);
        Refusal($"the base \"base\" has {Size + 512} bytes and had {Size} when the overlay was last its own");

        void Refusal(string problem)
        {
            byte[] overlay = disk.Content("overlay");
            byte[] bottom = disk.Content("base");
            string advice = "put the base back as it was, or use a new overlay";
            Assert.Equal($"overlay: commit: {problem}; {advice}", Assert.Throws<ImageFormatException>(() => Commit(disk)).Message);
            Assert.Equal($"overlay: overlay: {problem}; {advice}",
                Assert.Throws<ImageFormatException>(() => new OverlayOpener(disk).Open("base", "overlay", Options with { Format = "raw" })).Message);
            Assert.True(disk.Content("overlay").AsSpan().SequenceEqual(overlay));
            Assert.True(disk.Content("base").AsSpan().SequenceEqual(bottom));
        }
    }

    /// <summary>A base, an overlay with data, zeros and discards in it, and what the two show together.</summary>
    internal static (SimulatedDisk Disk, byte[] Expected) Prepare(string overlay, string @base, int baseSize, int size)
    {
        SimulatedDisk disk = new();
        ImageCreator creator = new(disk);
        bool isOver = @base.EndsWith(" over", StringComparison.Ordinal);
        string format = @base == "raw" ? "raw" : "qcow2";
        if (isOver)
            disk.Create("root", Pattern.Bytes(7, 0, Size));
        creator.Create(new ImageRequest
        {
            Path = "base",
            Format = format,
            Size = baseSize,
            BackingName = isOver ? "root" : null,
            BackingFormat = isOver ? "raw" : null,
            Options = OptionsOf(@base),
        });
        using (IDiskImage disk1 = new ImageOpener(disk).Open("base", Options with { Format = format, Writable = true }))
        {
            disk1.Write(512, Pattern.Bytes(1, 512, baseSize / 2));
            disk1.Write(baseSize - 700, Pattern.Bytes(1, baseSize - 700, 700));
            disk1.Close();
        }

        if (@base.EndsWith(" snapshot", StringComparison.Ordinal))
        {
            new ImageEditor(disk, TimeProvider.System).EditSnapshot("base", null, SnapshotAction.Create, "before");
            ResizeTests.DropSnapshotSize(disk, "base"); // so the base cannot have another size
        }

        MakeOverlay(disk, creator, overlay, format, size);
        return (disk.Crash(CrashChoice.Everything), Read(disk, "overlay"));
    }

    private static void MakeOverlay(SimulatedDisk disk, ImageCreator creator, string overlay, string format, int size)
    {
        using (ImageChain chain = ImageChain.Walk(disk, "base", Options with { Format = format }))
        {
            creator.Create(new ImageRequest
            {
                Path = "overlay",
                Format = "qcow2",
                Size = size,
                BackingName = "base",
                BackingFormat = format,
                Options = OptionsOf(overlay),
                Base = overlay.EndsWith(" foreign", StringComparison.Ordinal) ? null : BaseIdentity.Of(chain.Files(skip: 0)),
            });
        }

        if (overlay.EndsWith(" moved", StringComparison.Ordinal))
            MoveExtension(disk);
        using IDiskImage top = new ImageOpener(disk).Open("overlay", Options with { Writable = true });
        byte[] expected = new byte[size];
        top.Read(0, expected);
        Change(1_000, 3_000, zeros: false);
        if (overlay.EndsWith(" snapshot", StringComparison.Ordinal))
        {
            top.Close();
            new ImageEditor(disk, TimeProvider.System).EditSnapshot("overlay", null, SnapshotAction.Create, "before");
            using IDiskImage second = new ImageOpener(disk).Open("overlay", Options with { Writable = true });
            second.Write(2_000, Pattern.Bytes(3, 2_000, 2_500));
            second.Discard(512, 1024);
            second.Close();
            return;
        }

        Change(5_120, 2_048, zeros: true);
        Change(size / 3, 700, zeros: false);
        Change(size - 900, 900, zeros: false);
        Change(size - 4_096, 1_024, zeros: true);
        top.Close();
        Assert.True(Read(disk, "overlay").AsSpan().SequenceEqual(expected));

        void Change(int offset, int length, bool zeros)
        {
            byte[] bytes = zeros ? new byte[length] : Pattern.Bytes(2, offset, length);
            if (zeros)
                top.Discard(offset, length);
            else
                top.Write(offset, bytes);
            bytes.CopyTo(expected, offset);
        }
    }

    /// <summary>As QEMU leaves the header when it rewrites it: what it does not know comes last, here across the end of a sector.</summary>
    private static void MoveExtension(SimulatedDisk disk)
    {
        using SimulatedStorage file = disk.Open("overlay");
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        byte[] cluster = new byte[header.ClusterSize];
        HeaderExtension ours = header.FindExtension(HeaderExtensionType.OverlayBase)!;
        HeaderExtension[] others = [.. header.Extensions.Where(e => e.Type == HeaderExtensionType.BackingFormat)];
        int filler = 512 - 24 - header.HeaderLength - others.Sum(e => e.SizeOnDisk) - (2 * Qcow2HeaderLayout.ExtensionHeadLength);
        Assert.True((header with { Extensions = [.. others, new HeaderExtension((HeaderExtensionType)0x12345678, new byte[filler]), ours] }).TryWriteTo(cluster));
        file.Write(0, cluster);
        HeaderExtension moved = Qcow2HeaderReader.Read(file).FindExtension(HeaderExtensionType.OverlayBase)!;
        Assert.NotEqual(moved.DataOffset / 512, (moved.DataOffset + BaseIdentity.Size - 1) / 512);
    }

    internal static void Commit(SimulatedDisk disk) => new ImageEditor(disk, TimeProvider.System).Commit("overlay", Options, null);

    private static KeyValuePair<string, string>[] OptionsOf(string text) =>
        [.. text.Split(' ')[0].Split(',').Where(o => o.Contains('=', StringComparison.Ordinal)).Select(o => o.Split('=')).Select(o => new KeyValuePair<string, string>(o[0], o[1]))];

    private static byte[] Read(SimulatedDisk disk, string name, string? format = null)
    {
        using IDiskImage image = new ImageOpener(disk).Open(name, Options with { Format = format });
        byte[] bytes = new byte[image.Length];
        image.Read(0, bytes);
        return bytes;
    }

    private static void JudgePair(SimulatedDisk disk, byte[] expected, string where)
    {
        foreach (string name in new[] { "overlay", "base" })
        {
            CheckReport report = new ImageOpener(disk).Check(name, FormatOf(disk, name));
            Assert.True(report.CheckErrors == 0 && report.Corruptions == report.HarmlessCorruptions,
                $"{where}: {name}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
        }

        byte[] found = Read(disk, "overlay");
        Assert.True(found.AsSpan().SequenceEqual(expected), $"{where}: byte {found.AsSpan().CommonPrefixLength(expected)} of the disk changed");
    }

    private static void JudgeCommitted(SimulatedDisk disk, byte[] expected, int baseSize, bool mayLeak, string where)
    {
        JudgePair(disk, expected, where);
        byte[] bottom = Read(disk, "base", FormatOf(disk, "base"));
        Assert.Equal(Math.Max(expected.Length, baseSize), bottom.Length);
        Assert.True(bottom.AsSpan(0, expected.Length).SequenceEqual(expected), $"{where}: the base differs at byte {bottom.AsSpan().CommonPrefixLength(expected)}");
        using (IDiskImage overlay = new ImageOpener(disk).Open("overlay", Options))
        {
            for (long offset = 0; offset < overlay.Length;)
            {
                Extent extent = overlay.QueryExtent(offset, overlay.Length - offset);
                Assert.True(extent.Depth > 0 || extent.Kind == ExtentKind.Backing, $"{where}: the overlay still holds byte {offset}");
                offset += extent.Length;
            }
        }

        if (!mayLeak)
        {
            foreach (string name in new[] { "overlay", "base" })
                Assert.Equal(0, new ImageOpener(disk).Check(name, FormatOf(disk, name)).ExitCode);
        }

        if (new ImageOpener(disk).ReadInfo("overlay").BackingName is null || ImageChain.ReadSource(disk.Open("overlay"), null) is not IOverlayLayer { Base: not null })
            return;
        using IDiskImage resumed = new OverlayOpener(disk).Open("base", "overlay", Options with { Format = FormatOf(disk, "base") });
    }

    private static string FormatOf(SimulatedDisk disk, string name) =>
        disk.Content(name).AsSpan().StartsWith("QFI"u8) ? "qcow2" : "raw";
}
