// Edits of whole images on a simulated disk: what they must leave, and what a crash at any instant in them may leave.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

/// <summary>What an image holds: the active disk, and each snapshot's by name.</summary>
internal sealed record ImageContent(byte[] Active, IReadOnlyDictionary<string, byte[]> Snapshots)
{
    public ImageContent(byte[] active)
        : this(active, new Dictionary<string, byte[]>())
    {
    }

    /// <summary>Whether the disk holds just this.</summary>
    public bool Matches(ImageContent other) => Active.AsSpan().SequenceEqual(other.Active) && Snapshots.Count == other.Snapshots.Count
        && Snapshots.All(s => other.Snapshots.TryGetValue(s.Key, out byte[]? bytes) && bytes.AsSpan().SequenceEqual(s.Value));

    public override string ToString() => $"{Active.Length} bytes, hash {Hash(Active)}, snapshots: "
        + string.Join(", ", Snapshots.OrderBy(s => s.Key, StringComparer.Ordinal).Select(s => $"{s.Key} {s.Value.Length} {Hash(s.Value)}"));

    private static string Hash(byte[] bytes) => Convert.ToHexString(System.Security.Cryptography.SHA256.HashData(bytes).AsSpan(0, 4));
}

internal static class EditRun
{
    /// <summary>Reads all that an image holds.</summary>
    public static ImageContent Read(SimulatedDisk disk, PreparedImage image)
    {
        using SimulatedStorage file = disk.Open("image", readOnly: true);
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        Qcow2SnapshotTable table = Qcow2SnapshotTable.Read(header, file);
        return new ImageContent(
            ReadAll(disk, image, header),
            table.Snapshots.ToDictionary(s => s.NameText, s => ReadAll(disk, image, table.HeaderAt(header, file, s.IdText))));
    }

    /// <summary>Runs an edit to its end and demands a clean image; then crashes it at every instant, and demands what was before or
    /// what is after, nothing worse than leaks and missing COPIED flags, and that work goes on.</summary>
    public static SimulatedDisk CrashEverywhere(
        SimulatedDisk start, PreparedImage image, ImageContent after, Action<SimulatedDisk> edit, int choices, string where)
    {
        ImageContent before = Read(start, image);
        SimulatedDisk done = start.Crash(CrashChoice.Everything);
        long first = done.Clock + 1;
        edit(done);
        SimulatedDisk durable = done.Crash(CrashChoice.Nothing);
        Judge(durable, image, [after], where);
        Assert.Equal(0, Qcow2Checker.Check(durable.Open("image", readOnly: true)).ExitCode);
        int number = 0;
        for (long instant = first; instant <= done.Clock; instant++)
        {
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            disk.CrashAt(instant);
            Assert.Throws<SimulatedCrashException>(() => edit(disk));
            HashSet<UInt128> seen = [];
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(choices, (ulong)instant))
            {
                if (!seen.Add(survivor.Fingerprint()))
                    continue;
                string at = $"{where}, instant {instant}, {choice}";
                ImageContent found = Judge(survivor, image, [before, after], at);
                if (number++ % 4 == 0)
                    WorkOn(survivor.Kill(), image, found, at);
                if (number % 7 == 0 && found.Matches(before) && !found.Matches(after))
                    EditAgain(survivor.Kill(), image, after, edit, at);
            }
        }

        return durable;
    }

    /// <summary>Writes through the engine, which also collects leaks.</summary>
    public static ImageContent Write(SimulatedDisk disk, PreparedImage image, ImageContent content, int offset, byte[] bytes)
    {
        byte[] active = [.. content.Active];
        bytes.CopyTo(active, offset);
        using CowImage opened = SimulatedImages.Open(disk, image);
        if (opened.Map.Recovery is LeakCollector collector)
            opened.Recover(commit => collector.Run(commit, windowClusters: 4096));
        opened.Write(offset, bytes);
        opened.Close();
        return content with { Active = active };
    }

    public static ImageContent Judge(SimulatedDisk disk, PreparedImage image, ImageContent[] allowed, string where)
    {
        CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
        Assert.True(report.CheckErrors == 0 && report.Corruptions == report.HarmlessCorruptions,
            $"{where}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
        ImageContent found = Read(disk, image);
        Assert.True(Array.Exists(allowed, found.Matches), $"{where}: found {found} (first difference at byte {found.Active.AsSpan().CommonPrefixLength(allowed[0].Active)}), expected {string.Join(" or ", (object[])allowed)}");
        return found;
    }

    private static void WorkOn(SimulatedDisk disk, PreparedImage image, ImageContent content, string where)
    {
        byte[] bytes = new byte[3000];
        new Random(5).NextBytes(bytes);
        for (int offset = 100; offset + bytes.Length < content.Active.Length; offset += content.Active.Length / 3)
            content = Write(disk, image, content, offset, bytes);
        Judge(disk, image, [content], where + ", then written");

        // Leaks and missing flags were put right in the background, if there was anything to write. Version 2 has no mark that says so.
        CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
        bool isMarked = Qcow2HeaderReader.Read(disk.Open("image", readOnly: true)).Version >= 3 && content.Active.Length > 100 + bytes.Length;
        Assert.True(report.ExitCode == 0 || !isMarked, $"{where}, then written: {string.Join("; ", report.Findings.Take(5).Select(f => f.Message))}");
    }

    private static void EditAgain(SimulatedDisk disk, PreparedImage image, ImageContent after, Action<SimulatedDisk> edit, string where)
    {
        edit(disk);
        Judge(disk.Crash(CrashChoice.Nothing), image, [after], where + ", then done again");
    }

    private static byte[] ReadAll(SimulatedDisk disk, PreparedImage image, Qcow2Header header)
    {
        IDiskImage? backing = image.Backing is null ? null : SimulatedImages.OpenBacking(image.Backing);
        SimulatedStorage? data = image.Data is null ? null : disk.Open("data", readOnly: true);
        using IDiskImage opened = Qcow2Image.Open(new Qcow2Parts(header, disk.Open("image", readOnly: true), data, backing, new OpenOptions()));
        byte[] bytes = new byte[opened.Length];
        opened.Read(0, bytes);
        return bytes;
    }
}
