// Thousands of broken images through everything that reads one: nothing but the typed faults comes out, in bounded memory and time,
// and the check ends in the class that qemu-img's check ends in. A failure names specimen and seed, which give the image again.
// QCOWFS_FUZZ_ROUNDS makes it longer. What was found once is kept in Corpus/ and tried for ever.
using System.IO.Compression;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Qcow2;

public sealed class Qcow2FuzzTests : IDisposable
{
    // The promise is 256 MiB for a whole process; one call here allocates less in total, freed or not.
    private const long AllocationLimit = 256 << 20;

    private readonly TempDirectory _temp = new();

    public void Dispose() => _temp.Dispose();

    [Fact]
    public void Facts_names_and_check_are_total() => ForEach(200, FactsNamesAndCheck);

    [Fact]
    public void Reading_is_total() => ForEach(80, Reading);

    [Fact]
    public void Writing_is_total() => ForEach(50, Writing);

    [Fact]
    public void Repair_is_total() => ForEach(50, Repair);

    [Fact]
    public void Editing_is_total() => ForEach(50, Editing);

    public static TheoryData<string> Corpus => [.. Directory.GetFiles(Path.Combine(AppContext.BaseDirectory, "Corpus"), "*.gz").Select(f => Path.GetFileName(f)).Order()];

    [Theory]
    [MemberData(nameof(Corpus))]
    public void What_was_found_stays_mended(string file)
    {
        using MemoryStream image = new();
        using (GZipStream packed = new(File.OpenRead(Path.Combine(AppContext.BaseDirectory, "Corpus", file)), CompressionMode.Decompress))
            packed.CopyTo(image);
        foreach (Action<byte[]> use in (Action<byte[]>[])[FactsNamesAndCheck, Reading, Writing, Repair, Editing])
            use(image.ToArray());
    }

    private static void FactsNamesAndCheck(byte[] image)
    {
        ImageOpener opener = new(new OneImage(image));
        Bounded("info", () => opener.ReadInfo("image"));
        Bounded("chain", () => opener.ReadChainInfo("image", null, ReferencePolicy.All));
        Bounded("inspect", () => opener.Inspect("image", null, ReferencePolicy.All));
        Bounded("check", () => opener.Check("image"));
    }

    private static void Reading(byte[] image)
    {
        ImageOpener opener = new(new OneImage(image));
        Bounded("open", () => ReadAll(opener.Open("image", new OpenOptions { References = ReferencePolicy.All })));
        foreach (string name in (string[])["snapshot0", "snapshot1"])
            Bounded("snapshot", () => ReadAll(opener.Open("image", new OpenOptions { References = ReferencePolicy.All, Snapshot = name })));
    }

    private static void ReadAll(IDiskImage opened)
    {
        using IDiskImage disk = opened;
        byte[] buffer = new byte[100_000];
        long at = 0;
        Bounded("map", () =>
        {
            for (int i = 0; i < 500 && at < disk.Length; i++)
            {
                Extent extent = disk.QueryExtent(at, disk.Length - at);
                Assert.InRange(extent.Length, 1, disk.Length - at);
                at += extent.Length;
            }
        });

        for (long offset = 0; offset < Math.Min(disk.Length, 400_000); offset += 33_333)
            Bounded("read", () => disk.Read(offset, buffer));
    }

    private static void Writing(byte[] image)
    {
        ImageOpener opener = new(new OneImage(image));
        Bounded("open", () =>
        {
            using IDiskImage disk = opener.Open(
                "image", new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero, References = ReferencePolicy.All });
            byte[] data = [.. Enumerable.Repeat((byte)7, 40_000)];
            for (long offset = 0; offset + data.Length <= Math.Min(disk.Length, 300_000); offset += 50_000)
            {
                Bounded("write", () => disk.Write(offset, data));
                Bounded("discard", () => disk.Discard(offset + 5000, 20_000));
                Bounded("zero", () => disk.WriteZeroes(offset + 30_000, 3_000));
                Bounded("reserve", () => disk.Reserve(offset + 34_000, 3_000));
            }

            Bounded("sync", disk.Sync);
            Bounded("close", disk.Close);
        });
    }

    // What is repaired once stays so, and nothing is worse.
    private static void Repair(byte[] image)
    {
        using IStorage file = Specimen.Storage(image);
        try
        {
            CheckReport found = Qcow2Checker.Check(file);
            CheckReport? first = null;
            Bounded("repair", () => first = Qcow2Repair.Run(file, RepairMode.All));
            CheckReport second = Qcow2Repair.Run(file, RepairMode.All);
            Assert.True(first is not null && first.ExitCode == second.ExitCode);
            Assert.True(found.CheckErrors > 0 || found.Corruptions > 0 || first.Corruptions == 0);
        }
        catch (ImageFormatException)
        {
            // A structure that everything hangs from.
        }
    }

    // An edit begins with a check, so what it edits is sound, and it leaves it so.
    private static void Editing(byte[] image)
    {
        foreach (Action<Qcow2Header, IStorage> edit in (Action<Qcow2Header, IStorage>[])
            [
                (header, file) => new Qcow2SnapshotEdit(header, file).Create("new", DateTimeOffset.UnixEpoch),
                (header, file) => new Qcow2SnapshotEdit(header, file).Apply("snapshot0"),
                (header, file) => new Qcow2SnapshotEdit(header, file).Delete("snapshot0"),
                (header, file) => Resize(header, file, header.VirtualSize + (1 << 20)),
                (header, file) => Resize(header, file, header.VirtualSize / 1024 * 512),
            ])
        {
            using MemoryStorage file = Specimen.Storage(image);
            string? refusal = null;
            Bounded("edit", () =>
            {
                try
                {
                    edit(Qcow2HeaderReader.Read(file), file);
                }
                catch (Exception fault)
                {
                    refusal = fault.Message;
                    throw;
                }
            });
            byte[] after = new byte[image.Length];
            file.Read(0, after);
            bool changed = file.Length != image.Length || !after.AsSpan().SequenceEqual(image);
            Assert.True(refusal is null || !changed, $"a refused edit changed the image: {refusal}");
            if (changed)
            {
                CheckReport report = Qcow2Checker.Check(file);
                Assert.True(report.CheckErrors == 0 && report.Corruptions == report.HarmlessCorruptions,
                    string.Join("; ", report.Findings.Select(f => f.Message)));
            }
        }
    }

    private static void Resize(Qcow2Header header, IStorage file, long size)
    {
        using MemoryStorage? data = header.HasExternalDataFile ? new MemoryStorage("data", header.VirtualSize) : null;
        Qcow2Resize.Run(header, file, data, null, size);
    }

    [Fact]
    public void The_check_ends_where_qemus_check_ends() => ForEach(9, image =>
    {
        string path = _temp["fuzzed.qcow2"];
        File.WriteAllBytes(path, image);
        File.WriteAllBytes(_temp["data"], new byte[1 << 20]);
        ToolResult check = Qemu.TryImg("check", "-f", "qcow2", path);
        int theirs = check.ExitCode;
        try
        {
            CheckReport report = new ImageOpener(new OneImage(image)).Check("image");
            bool known = theirs switch
            {
                // QEMU does not check encrypted images without the key, loads the contents of bitmaps before it checks, and gives up on
                // an L1 table far outside the file.
                // A data file that the policy keeps closed, QEMU would open.
                1 => image[35] != 0 || HasBitmaps(image) || report.Findings.Any(f => f.Kind == "snapshot-l1")
                    || (Qcow2HeaderReader.Parse(image, "image").HasExternalDataFile && check.Errors.Contains("Could not open", StringComparison.Ordinal)),
                // It lets a range begin a little past the end of the file.
                0 or 3 => report.ExitCode == 2 && report.Findings.Any(f => f.Kind == "out-of-range"),
                _ => false,
            };
            Assert.True(report.ExitCode == theirs || known,
                $"ours {report.ExitCode}, theirs {theirs}: {check.Errors.Trim().Split('\n')[^1]}; {string.Join(", ", report.Findings.Select(f => f.Kind).Distinct())}");
        }
        catch (ImageFormatException)
        {
            // A structure that everything hangs from breaks a rule. QEMU skips some of these rules when it checks.
            return;
        }
    });

    private static bool HasBitmaps(byte[] image) => Qcow2HeaderReader.Parse(image, "image").Bitmaps is not null;

    private void ForEach(int rounds, Action<byte[]> test) =>
        Fuzzing.ForEach(rounds, Specimen.MakeAll(_temp), specimen => specimen.Name, (specimen, seed) => test(specimen.Damage(seed)));

    private static void Bounded(string what, Action action) => Fuzzing.Bounded(what, AllocationLimit, action);
}
