// Making, deleting and applying internal snapshots: content and consistency of the active disk and of every snapshot afterwards, and
// after a crash at any instant; against a model in long random sequences, and against QEMU in both directions.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class SnapshotTests(ITestOutputHelper output)
{
    private static readonly DateTimeOffset Time = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);

    public static TheoryData<Geometry> Geometries =>
    [
        new Geometry("cluster_size=512", 40_448, InitialContent.Full),
        new Geometry("cluster_size=512,refcount_bits=64", 70_144, InitialContent.Full),
        new Geometry("cluster_size=512,refcount_bits=4", 40_448),
        new Geometry("cluster_size=512,compat=0.10", 40_448, InitialContent.Full),
        new Geometry("cluster_size=2048", 40_448, InitialContent.Backing),
        new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Backing),
        new Geometry("cluster_size=512", 40_448, InitialContent.Snapshot),
        new Geometry("cluster_size=4096", 40_448, InitialContent.Compressed),
    ];

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Every_instant(Geometry geometry)
    {
        PreparedImage image = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        ImageContent content = EditRun.Read(disk, image);
        content = EditRun.Write(disk, image, content, 700, Bytes(1, 20_000));
        void Step(string what, ImageContent after, Action<Qcow2SnapshotEdit> edit)
        {
            disk = EditRun.CrashEverywhere(disk, image, after, d => Edit(d, edit), choices: 8, $"{geometry} {what}");
            content = after;
        }

        Step("create one", With(content, "one", content.Active), e => e.Create("one", Time));
        content = EditRun.Write(disk, image, content, 9_000, Bytes(2, 9_000));
        Step("create two", With(content, "two", content.Active), e => e.Create("two", Time));
        content = EditRun.Write(disk, image, content, 100, Bytes(3, 12_000));
        Step("apply one", content with { Active = content.Snapshots["one"] }, e => e.Apply("one"));
        content = EditRun.Write(disk, image, content, 15_000, Bytes(4, 9_000));
        Step("delete one", Without(content, "one"), e => e.Delete("one"));
        Step("apply two", content with { Active = content.Snapshots["two"] }, e => e.Apply("two"));
        Step("delete two", Without(content, "two"), e => e.Delete("two"));
        SimulatedImages.JudgeByQemu(disk, image, content.Active, geometry.ToString());
    }

    [Theory]
    [MemberData(nameof(Geometries))]
    public void Random_sequences_against_a_model(Geometry geometry)
    {
        PreparedImage image = SimulatedImages.Prepare(geometry);
        for (int seed = 1; seed <= 3; seed++)
        {
            output.WriteLine($"{geometry} seed {seed}");
            Random random = new(seed);
            SimulatedDisk disk = SimulatedImages.DiskOf(image);
            ImageContent content = EditRun.Read(disk, image);
            for (int step = 0; step < 60; step++)
            {
                content = RandomStep(random, disk, image, content, geometry, $"s{step}");
                EditRun.Judge(disk, image, [content], $"{geometry} seed {seed} step {step}");
                CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
                Assert.True(report.ExitCode == 0, $"{geometry} seed {seed} step {step}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
            }

            SimulatedImages.JudgeByQemu(disk, image, content.Active, $"{geometry} seed {seed}");
        }
    }

    /// <summary>The refcount table of 64 blocks of 64 counts is full: the snapshot's tables need a larger one.</summary>
    [Fact]
    public void A_snapshot_that_moves_the_refcount_table()
    {
        Geometry geometry = new("cluster_size=512,refcount_bits=64", 2_018_304, InitialContent.Full);
        PreparedImage image = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        ImageContent content = EditRun.Read(disk, image);
        for (int i = 0; i < 40; i++)
        {
            SimulatedDisk before = disk.Crash(CrashChoice.Everything);
            string name = $"s{i}";
            Edit(disk, e => e.Create(name, Time));
            content = With(content, name, content.Active);
            if (Header(disk).RefcountTableOffset == Header(before).RefcountTableOffset)
                continue;
            EditRun.CrashEverywhere(before, image, content, d => Edit(d, e => e.Create(name, Time)), choices: 3, $"{geometry} {name}");
            return;
        }

        Assert.Fail("the refcount table did not move");
    }

    [Theory]
    [InlineData("cluster_size=512,refcount_bits=1", 1, "snapshot table: reference counts of one bit cannot count snapshots; convert the image to one with wider counts (refcount_bits)")]
    [InlineData("cluster_size=512,refcount_bits=2", 3, "references, as many as 2 bits can count; delete a snapshot, or convert the image to one with wider counts (refcount_bits)")]
    public void The_ceiling_of_counts_is_refused_before_anything_changes(string options, int attempt, string message)
    {
        PreparedImage image = SimulatedImages.Prepare(new Geometry(options, 40_448, InitialContent.Full));
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        for (int i = 1; i < attempt; i++)
            Edit(disk, e => e.Create($"s{i}", Time));
        byte[] before = disk.Content("image");
        Assert.EndsWith(message, Assert.Throws<ImageFormatException>(() => Edit(disk, e => e.Create("last", Time))).Message, StringComparison.Ordinal);
        Assert.True(disk.Content("image").AsSpan().SequenceEqual(before));
    }

    /// <summary>A snapshot of a running machine: its state lies behind the disk in the L1 table. Others' edits keep it byte for byte,
    /// applying it brings it along, deleting it gives all of it back.</summary>
    [Theory]
    [InlineData("cluster_size=512")]
    [InlineData("cluster_size=16384,extended_l2=on")]
    public void The_state_of_a_machine_is_kept(string options)
    {
        PreparedImage image = SimulatedImages.Prepare(new Geometry(options, 40_448, InitialContent.Full));
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        byte[] state = Bytes(9, 20_000);
        long stateAt = AddMachineState(disk, image, state, "running");
        ImageContent content = With(EditRun.Read(disk, image), "running", image.Guest);
        Assert.Equal(state, ReadMachineState(disk, "running", stateAt, state.Length));
        content = EditRun.Write(disk, image, content, 700, Bytes(1, 20_000));
        Edit(disk, e => e.Create("other", Time));
        content = With(content, "other", content.Active);
        Edit(disk, e => e.Apply("running"));
        content = content with { Active = content.Snapshots["running"] };
        content = EditRun.Write(disk, image, content, 9_000, Bytes(2, 9_000));
        Edit(disk, e => e.Apply("other"));
        Edit(disk, e => e.Delete("other"));
        content = Without(content with { Active = content.Snapshots["other"] }, "other");
        EditRun.Judge(disk, image, [content], options);
        Assert.Equal(state, ReadMachineState(disk, "running", stateAt, state.Length));
        Qcow2Snapshot snapshot = Assert.Single(Qcow2SnapshotTable.Read(Header(disk), disk.Open("image")).Snapshots);
        Assert.Equal((ulong)state.Length, snapshot.VmStateSize);
        using (TempDirectory folder = new())
        {
            File.WriteAllBytes(folder["image"], disk.Content("image"));
            Assert.Contains("19.5 KiB", SimulatedImages.Run("qemu-img", "snapshot", "-l", folder["image"]), StringComparison.Ordinal);
            SimulatedImages.Run("qemu-img", "check", "-q", folder["image"]);
        }

        EditRun.CrashEverywhere(disk, image, Without(content, "running"), d => Edit(d, e => e.Delete("running")), choices: 4, options);
    }

    // As QEMU lays it out: written behind the disk, then a snapshot of all of it, then gone from the active disk.
    private static long AddMachineState(SimulatedDisk disk, PreparedImage image, byte[] state, string name)
    {
        long size = Header(disk).VirtualSize;
        long stateAt = Header(disk).L2Coverage * Header(disk).L1EntriesFor(size);
        long whole = stateAt + ((state.Length + 511) & -512);
        ResizeTests.Resize(disk, image, whole);
        using (CowImage opened = SimulatedImages.Open(disk, image))
        {
            opened.Write(stateAt, state);
            opened.Close();
        }

        SetVirtualSize(disk, size);
        Edit(disk, e => e.Create(name, Time));
        Qcow2Snapshot snapshot = Qcow2SnapshotTable.Read(Header(disk), disk.Open("image")).Snapshots[0];
        byte[] extra = [.. snapshot.Extra];
        BinaryPrimitives.WriteInt64BigEndian(extra, state.Length);
        byte[] entry = new byte[snapshot.SizeOnDisk];
        (snapshot with { Extra = extra, VmStateSize = (ulong)state.Length }).WriteTo(entry);
        disk.Open("image").Write(snapshot.Offset, entry);
        SetVirtualSize(disk, whole);
        using (CowImage opened = SimulatedImages.Open(disk, image))
        {
            opened.Discard(stateAt, whole - stateAt);
            opened.Close();
        }

        SetVirtualSize(disk, size);
        return stateAt;
    }

    private static void SetVirtualSize(SimulatedDisk disk, long size)
    {
        using SimulatedStorage file = disk.Open("image");
        Qcow2HeaderSector.Change(file, sector => sector.SetVirtualSize(size));
    }

    // As QEMU reads it: behind the disk's end in the snapshot's L1 table.
    private static byte[] ReadMachineState(SimulatedDisk disk, string name, long stateAt, int length)
    {
        Qcow2Header header = Qcow2SnapshotTable.Read(Header(disk), disk.Open("image")).HeaderAt(Header(disk), disk.Open("image"), name);
        byte[] state = new byte[length];
        using IDiskImage opened = Qcow2Image.Open(new Qcow2Parts(
            header with { VirtualSize = stateAt + length }, disk.Open("image", readOnly: true), null, null, new OpenOptions()));
        opened.Read(stateAt, state);
        return state;
    }

    [Theory]
    [InlineData("one", "there is already a snapshot \"one\"; choose another name, or delete that one first")]
    [InlineData("", "a snapshot cannot have a name of 0 bytes; give one of 1 to 255 bytes")]
    public void A_name_that_cannot_be(string name, string message)
    {
        PreparedImage image = SimulatedImages.Prepare(new Geometry("cluster_size=512", 40_448));
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        Edit(disk, e => e.Create("one", Time));
        Assert.Equal($"image: snapshot table: {message}", Assert.Throws<ImageFormatException>(() => Edit(disk, e => e.Create(name, Time))).Message);
    }

    /// <summary>Both programs make, apply and delete each other's snapshots in turn.</summary>
    [Theory]
    [MemberData(nameof(Geometries))]
    public void In_turns_with_QEMU(Geometry geometry)
    {
        PreparedImage image = SimulatedImages.Prepare(geometry);
        if (image.Backing is not null)
            return; // the file names a backing file that exists for the simulation only
        SimulatedDisk disk = SimulatedImages.DiskOf(image);
        ImageContent content = EditRun.Read(disk, image);
        content = EditRun.Write(disk, image, content, 300, Bytes(1, 20_000));
        Edit(disk, e => e.Create("ours", Time));
        content = With(content, "ours", content.Active);
        content = EditRun.Write(disk, image, content, 5_000, Bytes(2, 9_000));
        disk = ByQemu(disk, content, "-c", "theirs");
        content = With(content, "theirs", content.Active);
        content = EditRun.Write(disk, image, content, 8_000, Bytes(3, 9_000));
        disk = ByQemu(disk, content, "-a", "ours");
        content = content with { Active = content.Snapshots["ours"] };
        EditRun.Judge(disk, image, [content], $"{geometry}: QEMU applied ours");
        Edit(disk, e => e.Apply("theirs"));
        content = content with { Active = content.Snapshots["theirs"] };
        disk = ByQemu(disk, content, "-d", "ours");
        content = Without(content, "ours");
        EditRun.Judge(disk, image, [content], $"{geometry}: QEMU deleted ours");
        Edit(disk, e => e.Delete("theirs"));
        content = Without(content, "theirs");
        EditRun.Judge(disk, image, [content], geometry.ToString());
        SimulatedImages.JudgeByQemu(disk, image, content.Active, geometry.ToString());
    }

    // QEMU reads every snapshot as the model has it, finds no error, and does the edit.
    private static SimulatedDisk ByQemu(SimulatedDisk disk, ImageContent content, string action, string name)
    {
        using TempDirectory folder = new();
        string path = Path.Combine(folder.Root, "image");
        File.WriteAllBytes(path, disk.Content("image"));
        SimulatedImages.Run("qemu-img", "check", "-q", path);
        foreach ((string snapshot, byte[] bytes) in content.Snapshots)
        {
            string raw = Path.Combine(folder.Root, "raw");
            SimulatedImages.Run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", $"snapshot.name={snapshot}", path, raw);
            Assert.True(File.ReadAllBytes(raw).AsSpan().SequenceEqual(bytes), $"QEMU reads another content in {snapshot}");
        }

        SimulatedImages.Run("qemu-img", "snapshot", action, name, path);
        SimulatedImages.Run("qemu-img", "check", "-q", path);
        SimulatedDisk next = new();
        next.Create("image", File.ReadAllBytes(path));
        return next;
    }

    private static ImageContent RandomStep(Random random, SimulatedDisk disk, PreparedImage image, ImageContent content, Geometry geometry, string name)
    {
        string[] names = [.. content.Snapshots.Keys.Order(StringComparer.Ordinal)];
        string? any = names.Length == 0 ? null : names[random.Next(names.Length)];
        switch (random.Next(10))
        {
            case 0 or 1 when names.Length < 5:
                Edit(disk, e => e.Create(name, Time));
                return With(content, name, content.Active);
            case 2 when any is not null:
                Edit(disk, e => e.Apply(any));
                return content with { Active = content.Snapshots[any] };
            case 3 or 4 when any is not null:
                Edit(disk, e => e.Delete(any));
                return Without(content, any);
            case 5 when !geometry.Options.Contains("0.10", StringComparison.Ordinal) || any is null:
                // Back near to the first size when there is no snapshot that forbids it, else on.
                int size = any is null ? geometry.Size + random.Next(-20, 20) * 512 : content.Active.Length + random.Next(20) * 512;
                ResizeTests.Resize(disk, image, size);
                return content with { Active = ResizeTests.Resized(content.Active, size) };
            default:
                byte[] bytes = new byte[random.Next(1, 9_000)];
                random.NextBytes(bytes);
                return EditRun.Write(disk, image, content, random.Next(content.Active.Length - bytes.Length), bytes);
        }
    }

    private static void Edit(SimulatedDisk disk, Action<Qcow2SnapshotEdit> edit)
    {
        using SimulatedStorage file = disk.Open("image", readOnly: false);
        edit(new Qcow2SnapshotEdit(Qcow2HeaderReader.Read(file), file));
    }

    private static Qcow2Header Header(SimulatedDisk disk)
    {
        using SimulatedStorage file = disk.Open("image", readOnly: true);
        return Qcow2HeaderReader.Read(file);
    }

    private static byte[] Bytes(int seed, int length)
    {
        byte[] bytes = new byte[length];
        new Random(seed).NextBytes(bytes);
        return bytes;
    }

    private static ImageContent With(ImageContent content, string name, byte[] bytes) =>
        content with { Snapshots = new Dictionary<string, byte[]>(content.Snapshots) { [name] = bytes } };

    private static ImageContent Without(ImageContent content, string name) =>
        content with { Snapshots = content.Snapshots.Where(s => s.Key != name).ToDictionary() };
}
