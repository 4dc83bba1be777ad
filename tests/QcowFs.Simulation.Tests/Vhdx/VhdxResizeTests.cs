// Resizing a VHDX: what is there afterwards, and what a crash at any instant leaves: a disk of the old size or of the new one, whole.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxResizeTests
{
    [Theory]
    [InlineData(VhdxKind.Full, 5 << 20)]
    [InlineData(VhdxKind.Full, 1_500_160)]
    [InlineData(VhdxKind.Full, 512)]
    [InlineData(VhdxKind.Fixed, 5 << 20)]
    [InlineData(VhdxKind.Fixed, 1_500_160)]
    public void A_crash_leaves_the_old_disk_or_the_new_one(VhdxKind kind, int size)
    {
        PreparedVhdx prepared = VhdxImages.Prepare(kind);
        byte[] after = new byte[size];
        prepared.Guest.AsSpan(0, Math.Min(size, prepared.Guest.Length)).CopyTo(after);
        SimulatedDisk whole = VhdxImages.DiskOf(prepared);
        Resize(whole, size);
        Judge(whole.Crash(CrashChoice.Nothing), after, after, "no crash", isClosed: true);
        for (long tick = 1; tick <= whole.Clock; tick++)
        {
            SimulatedDisk disk = VhdxImages.DiskOf(prepared);
            disk.CrashAt(tick);
            Assert.Throws<SimulatedCrashException>(() => Resize(disk, size));
            int number = 0;
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(6, (ulong)tick))
            {
                Judge(survivor, prepared.Guest, after, $"{kind} to {size}, tick {tick}, {choice}");
                if (number++ % 4 != 0)
                    continue;
                // And once more, to the end.
                SimulatedDisk again = survivor.Kill();
                Resize(again, size);
                Judge(again.Crash(CrashChoice.Nothing), after, after, $"{kind} to {size}, tick {tick}, {choice}, again", isClosed: true);
            }
        }
    }

    /// <summary>What was cut off does not come back.</summary>
    [Fact]
    public void What_grows_back_is_zero()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Full);
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        Resize(disk, 1_500_160);
        Resize(disk, VhdxImages.DiskSize);
        byte[] expected = new byte[VhdxImages.DiskSize];
        prepared.Guest.AsSpan(0, 1_500_160).CopyTo(expected);
        Judge(disk, expected, expected, "cut and grown", isClosed: true);
    }

    /// <summary>A table that has no room for the new blocks moves; a crash meanwhile finds one of the two, also where the first copy of the
    /// region table, which counts before the second, was damaged and becomes valid with the move.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_table_that_is_too_small_moves(bool isFirstDamaged)
    {
        byte[] image = VhdxImages.Create(new VhdxCreateOptions { VirtualSize = 8 << 20, BlockSize = 1 << 20, LogSize = 1 << 20, LogicalSectorSize = 512 }, 1);
        if (isFirstDamaged)
            image[RegionTable.FirstOffset + 100] ^= 1;
        PreparedVhdx prepared = new(VhdxKind.Dynamic, image, null, new byte[8 << 20]);
        const long size = 200L << 30; // 204,800 blocks, in a table that had room for 131,072 entries
        SimulatedDisk start = VhdxImages.DiskOf(prepared);
        using (CowImage opened = VhdxImages.Open(start, prepared))
        {
            opened.Write(5 << 20, Pattern.Bytes(1, 0, 3000));
            opened.Close();
        }

        SimulatedDisk whole = start.Crash(CrashChoice.Everything);
        Resize(whole, size);
        Check(whole.Crash(CrashChoice.Nothing), size, "no crash");
        for (long tick = 1; tick <= whole.Clock; tick++)
        {
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            disk.CrashAt(tick);
            Assert.Throws<SimulatedCrashException>(() => Resize(disk, size));
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(5, (ulong)tick))
                Check(survivor, size, $"tick {tick} {choice}");
        }

        void Check(SimulatedDisk disk, long newSize, string where)
        {
            using CowImage opened = VhdxImages.Open(disk, prepared, writable: false);
            Assert.True(opened.Length == newSize || opened.Length == 8 << 20, where);
            byte[] read = new byte[3000];
            opened.Read(5 << 20, read);
            Assert.True(read.AsSpan().SequenceEqual(Pattern.Bytes(1, 0, 3000)), where);
            Assert.All(VhdxChecker.Check(disk.Open("image", readOnly: true)).Findings, finding => Assert.Contains(finding.Kind, new[] { "header", "region-table" }));
        }
    }

    [Fact]
    public void Sizes_that_cannot_be_are_refused()
    {
        using MemoryStorage file = VhdxImages.StorageOf("image", VhdxImages.Prepare(VhdxKind.Full).File);
        Assert.Contains("give a multiple of 512", Refusal(file, 1000), StringComparison.Ordinal);
        Assert.Contains("more than the 64 TiB", Refusal(file, (64L << 40) + 512), StringComparison.Ordinal);
        using MemoryStorage child = VhdxImages.StorageOf("image", VhdxImages.Prepare(VhdxKind.Differencing).File);
        Assert.Contains("a disk with a parent has its parent's size", Refusal(child, 8 << 20), StringComparison.Ordinal);
    }

    private static string Refusal(MemoryStorage file, long size)
    {
        byte[] before = VhdxImages.BytesOf(file);
        string refusal = Assert.Throws<ImageFormatException>(() => VhdxResize.Run(VhdxLayout.Read(file), file, size, new VhdxImages.CountedGuids(1))).Message;
        Assert.True(before.AsSpan().SequenceEqual(VhdxImages.BytesOf(file)));
        return refusal;
    }

    private static void Resize(SimulatedDisk disk, long size)
    {
        using SimulatedStorage file = disk.Open("image");
        VhdxResize.Run(VhdxLayout.Read(file), file, size, new VhdxImages.CountedGuids(50 + unchecked((int)disk.Clock)));
    }

    private static void Judge(SimulatedDisk disk, byte[] before, byte[] after, string where, bool isClosed = false)
    {
        using SimulatedStorage file = disk.Open("image", readOnly: true);
        CheckReport report = VhdxChecker.Check(file);
        Assert.True(report.Findings.All(finding => !isClosed && finding.Kind == "header"), $"{where}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
        byte[] found = new VhdxReader(disk.Content("image")).ReadAll();
        Assert.True(found.AsSpan().SequenceEqual(before) || found.AsSpan().SequenceEqual(after), $"{where}: {found.Length} bytes, neither the old disk nor the new one");
        if (isClosed)
            Assert.True(file.Length == report.ImageEndOffset, $"{where}: the file has {file.Length} bytes, used are {report.ImageEndOffset}");
        using CowImage image = VhdxImage.Open(new VhdxParts(VhdxLayout.Read(file), disk.Open("image", readOnly: true), null, new OpenOptions()));
        byte[] read = new byte[image.Length];
        image.Read(0, read);
        Assert.True(read.AsSpan().SequenceEqual(found), $"{where}: the independent reader reads other bytes");
    }
}
