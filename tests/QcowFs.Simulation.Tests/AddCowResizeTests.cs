// The size of an add-cow disk: content afterwards, and after a crash at any instant in the change.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class AddCowResizeTests
{
    public static TheoryData<AddCowCase, int> Changes => new()
    {
        { new AddCowCase(12, 70_001, 50_003), 90_001 },
        { new AddCowCase(12, 70_001, 200_000), 90_001 }, // the backing file would show in what is new
        { new AddCowCase(12, 70_001, 71_000), 90_001 }, // in the last cluster only
        { new AddCowCase(12, 70_001, 200_000), 70_002 },
        { new AddCowCase(12, 69_632, 200_000), 200_704 },
        { new AddCowCase(12, 70_001, 200_000, MissingFrom: 18), 130_000 },
        { new AddCowCase(12, 70_001, -1), 90_001 },
        { new AddCowCase(12, 70_001, 0), 0 },
        { new AddCowCase(12, 70_001, 70_001), 30_001 },
        { new AddCowCase(12, 70_001, 200_000, MissingFrom: 12), 30_001 },
        { new AddCowCase(12, 0, 9_000), 20_000 },
        { new AddCowCase(9, 70_001, 50_003), 90_001 },
        { new AddCowCase(9, 20_001, 80_000, MissingFrom: 30), 20_400 },
        { new AddCowCase(9, 40_001, 80_000, MissingFrom: 12), 9_001 },
    };

    [Theory]
    [MemberData(nameof(Changes))]
    public void Every_instant(AddCowCase image, int size)
    {
        SimulatedDisk start = image.MakeDisk();
        byte[] written = Write(start, image.Guest, 4);
        SimulatedDisk done = CrashEverywhere(image, start, written, size, choices: 40);

        // What was cut off never comes back, from whichever file; and what was gained can be used.
        byte[] again = ResizeTests.Resized(ResizeTests.Resized(written, size), size + 40_001);
        done = CrashEverywhere(image, done, ResizeTests.Resized(written, size), again.Length, choices: 24);
        Judge(done, [Write(done, again, 5)], $"{image} to {size}, then larger");
    }

    [Theory]
    [InlineData(1UL)]
    [InlineData(0UL)]
    public void A_complete_disk_stays_complete(ulong features)
    {
        foreach (int size in new[] { 30_001, 90_001 })
        {
            SimulatedDisk disk = new();
            disk.Create(AddCowCase.Overlay, new AddCowBytes { DiskSize = 70_001, ClusterBits = 12, Backing = AddCowCase.Base, CompatFeatures = features, IsAllocated = _ => true }.Final());
            disk.Create(AddCowCase.Image, Pattern.Bytes(12, 0, 70_001));
            disk.Create(AddCowCase.Base, Pattern.Bytes(11, 0, 200_000));
            Resize(disk, size);
            Judge(disk.Crash(CrashChoice.Nothing), [ResizeTests.Resized(Pattern.Bytes(12, 0, 70_001), size)], $"features {features} to {size}");
        }
    }

    /// <summary>Runs a change to its end, then crashes it at every instant: the disk is as before or as after, opens, is found sound but for
    /// the mark, and takes work and the same change again.</summary>
    private static SimulatedDisk CrashEverywhere(AddCowCase image, SimulatedDisk start, byte[] before, int size, int choices)
    {
        byte[] after = ResizeTests.Resized(before, size);
        SimulatedDisk done = start.Crash(CrashChoice.Everything);
        long first = done.Clock + 1;
        Resize(done, size);
        done = done.Crash(CrashChoice.Nothing);
        Judge(done, [after], $"{image} to {size}");
        Assert.Equal(0, new ImageOpener(done).Check(AddCowCase.Overlay).ExitCode);
        for (long instant = first; ; instant++)
        {
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            disk.CrashAt(instant);
            try
            {
                Resize(disk, size);
                return done;
            }
            catch (SimulatedCrashException)
            {
                int number = 0;
                foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(choices, (ulong)instant))
                    Survive(survivor, before, after, $"{image} to {size}, instant {instant}, {choice}", number++);
            }
        }
    }

    private static void Survive(SimulatedDisk survivor, byte[] before, byte[] after, string where, int number)
    {
        byte[] found = Judge(survivor, [before, after], where);
        CheckReport report = new ImageOpener(survivor).Check(AddCowCase.Overlay);
        Assert.True(report.CheckErrors == 0 && report.Corruptions == report.HarmlessCorruptions, $"{where}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
        if (number % 3 == 0)
        {
            // The first writer ends the change.
            SimulatedDisk disk = survivor.Kill();
            Judge(disk, [Write(disk, found, 6)], where + ", then written");
            Assert.Equal(0, new ImageOpener(disk).Check(AddCowCase.Overlay).ExitCode);
        }

        if (number % 3 == 1)
        {
            SimulatedDisk disk = survivor.Kill();
            Resize(disk, after.Length);
            Judge(disk.Crash(CrashChoice.Nothing), [ResizeTests.Resized(found, after.Length)], where + ", then done again");
        }

        if (number % 3 == 2)
        {
            SimulatedDisk disk = survivor.Kill();
            CheckReport repaired = new ImageOpener(disk).Repair(AddCowCase.Overlay, RepairMode.All);
            Assert.True(repaired.ExitCode == 0, where + ", then repaired");
            Judge(disk.Crash(CrashChoice.Nothing), [found], where + ", then repaired");
        }
    }

    private static void Resize(SimulatedDisk disk, int size) =>
        new ImageEditor(disk, TimeProvider.System).Resize(AddCowCase.Overlay, new OpenOptions { CommitInterval = TimeSpan.Zero }, new SizeChange(size), mayShrink: true);

    /// <summary>Writes here and there through the engine.</summary>
    private static byte[] Write(SimulatedDisk disk, byte[] content, ulong seed)
    {
        byte[] written = [.. content];
        using CowImage opened = AddCowCase.Open(disk);
        for (int offset = 100; offset + 3000 < content.Length; offset += Math.Max(content.Length / 4, 3000))
        {
            byte[] bytes = Pattern.Bytes(seed, offset, 3000);
            bytes.CopyTo(written, offset);
            opened.Write(offset, bytes);
        }

        opened.Close();
        return written;
    }

    private static byte[] Judge(SimulatedDisk disk, byte[][] allowed, string where)
    {
        using CowImage opened = AddCowCase.Open(disk, writable: false);
        byte[] bytes = new byte[opened.Length];
        opened.Read(0, bytes);
        Assert.True(Array.Exists(allowed, content => Matches(bytes, content, allowed.Min(a => a.Length))),
            $"{where}: {bytes.Length} bytes, the first that differ: {string.Join(", ", allowed.Select(a => $"{bytes.AsSpan().CommonPrefixLength(a)} of {a.Length}"))}");
        return bytes;
    }

    /// <summary>Whether the disk holds the content. Where a cut was interrupted, a host may have zeroed sectors that were to go before it
    /// shortened the file: what lies past the new end is no longer promised, but it must not be anything else.</summary>
    private static bool Matches(byte[] found, byte[] content, int kept)
    {
        if (found.Length != content.Length || !found.AsSpan(0, kept).SequenceEqual(content.AsSpan(0, kept)))
            return false;
        for (int at = kept; at < found.Length; at++)
        {
            if (found[at] != content[at] && found[at] != 0)
                return false;
        }

        return true;
    }
}
