// Edits of whole images whose n-th call fails, for every n: with a full host or an error the image is as before or as after, nothing
// worse than leaks and missing COPIED flags is left, and the edit can be done again.
using QcowFs.Images.Qcow2;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class EditFaultTests
{
    private static readonly DateTimeOffset Time = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);

    public static TheoryData<string, Geometry> Edits => new()
    {
        { "create", new Geometry("cluster_size=512", 40_448, InitialContent.Full) },
        { "apply", new Geometry("cluster_size=512", 40_448, InitialContent.Snapshot) },
        { "delete", new Geometry("cluster_size=512", 40_448, InitialContent.Snapshot) },
        { "grow", new Geometry("cluster_size=512", 40_448, InitialContent.Backing) },
        { "grow", new Geometry("cluster_size=512", 70_144, InitialContent.Bitmaps) },
        { "grow", new Geometry("cluster_size=512", 40_448, InitialContent.ExternalData) },
        { "shrink", new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot) },
        { "shrink", new Geometry("cluster_size=16384,extended_l2=on", 200_192, InitialContent.Full) },
    };

    [Theory]
    [MemberData(nameof(Edits))]
    public void A_full_host(string edit, Geometry geometry) =>
        EveryCall(edit, geometry, StorageCalls.Changes, Errno.ENOSPC, FaultEffect.None);

    [Theory]
    [MemberData(nameof(Edits))]
    public void An_error(string edit, Geometry geometry) =>
        EveryCall(edit, geometry, StorageCalls.Any, Errno.EIO, FaultEffect.Half);

    private static void EveryCall(string edit, Geometry geometry, StorageCalls kind, Errno error, FaultEffect effect)
    {
        PreparedImage image = SimulatedImages.Prepare(geometry);
        SimulatedDisk start = SimulatedImages.DiskOf(image);
        ImageContent content = EditRun.Read(start, image);
        content = EditRun.Write(start, image, content, 700, new byte[9000]);
        SimulatedDisk done = start.Crash(CrashChoice.Everything);
        Run(done, image, geometry, edit);
        ImageContent after = EditRun.Read(done, image);
        long calls = done.Count(kind);
        Assert.True(calls > 5, $"{calls} calls");

        // What the kernel may drop after an error is as after a crash; a full host drops nothing.
        long step = kind == StorageCalls.Any ? Math.Max(1, calls / 60) : 1;
        for (long n = 1; n <= calls; n += step)
        {
            string where = $"{edit} {geometry} {error} at call {n}";
            SimulatedDisk disk = start.Crash(CrashChoice.Everything);
            disk.Fail(kind, error, n, effect: effect);
            Exception? failure = Record.Exception(() => Run(disk, image, geometry, edit));
            Assert.True(failure is StorageException or null, $"{where}: {failure}");
            disk.ClearFaults();
            foreach ((CrashChoice choice, SimulatedDisk survivor) in error == Errno.EIO ? disk.EnumerateCrashes(2, (ulong)n) : [(CrashChoice.Everything, disk)])
            {
                ImageContent found = EditRun.Judge(survivor, image, [content, after], $"{where}, {choice}");
                SimulatedDisk again = survivor.Kill();
                if (found.Matches(content) && !found.Matches(after))
                    Run(again, image, geometry, edit);
                EditRun.Judge(again, image, [after], $"{where}, {choice}, done again");
            }
        }
    }

    private static void Run(SimulatedDisk disk, PreparedImage image, Geometry geometry, string edit)
    {
        if (edit == "grow")
            ResizeTests.Resize(disk, image, 600_064);
        else if (edit == "shrink")
            ResizeTests.Resize(disk, image, geometry.Size / 2 & -512);
        else
            RunSnapshotEdit(disk, edit);
    }

    private static void RunSnapshotEdit(SimulatedDisk disk, string edit)
    {
        using SimulatedStorage file = disk.Open("image");
        Qcow2SnapshotEdit editor = new(Qcow2HeaderReader.Read(file), file);
        if (edit == "create")
            editor.Create("new", Time);
        else if (edit == "apply")
            editor.Apply("before");
        else
            editor.Delete("before");
    }
}
