// One seeded run of operations on a VHDX image on a simulated disk, crashed and judged.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Vhdx;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

internal sealed class VhdxCrashRun(VhdxKind kind, ulong seed)
{
    private const int Block = 1 << 20;

    private readonly PreparedVhdx _prepared = VhdxImages.Prepare(kind);
    private int _sessions = 1;

    /// <summary>Where in the ring of 1 MiB a session begins.</summary>
    public long LogStart { get; init; }

    /// <summary>Crashes at every tick of a run.</summary>
    public void EveryInstant(int steps, int choices, Action<string>? log)
    {
        long last = Ticks(steps);
        log?.Invoke($"{kind} seed {seed}: {last} instants");
        for (long instant = 1; instant <= last; instant++)
            CrashAt(instant, steps, choices);
    }

    /// <summary>Crashes at a few ticks of a long run.</summary>
    public void RandomInstants(int steps, int instants, int choices, Action<string>? log)
    {
        long last = Ticks(steps);
        Random random = new(unchecked((int)seed));
        log?.Invoke($"{kind} seed {seed}: {instants} of {last} instants");
        for (int i = 0; i < instants; i++)
            CrashAt(random.NextInt64(1, last + 1), steps, choices);
    }

    /// <summary>The clock at the end of the run when nothing goes wrong, which it also proves.</summary>
    private long Ticks(int steps)
    {
        SimulatedDisk disk = VhdxImages.DiskOf(_prepared);
        DiskModel model = new(_prepared.Guest);
        using (CowImage image = Open(disk))
        {
            Operate(image, model, steps, seed);
            model.CheckLive(image);
            image.Close();
        }

        JudgeClosed(disk, model, "no crash");
        if (_prepared.Parent is null)
            JudgeByQemu(disk, model);
        return disk.Clock;
    }

    private void CrashAt(long instant, int steps, int choices)
    {
        SimulatedDisk disk = VhdxImages.DiskOf(_prepared);
        DiskModel model = new(_prepared.Guest);
        disk.CrashAt(instant);
        try
        {
            using CowImage image = Open(disk);
            Operate(image, model, steps, seed);
            image.Close();
        }
        catch (SimulatedCrashException)
        {
            // The crash that was asked for.
        }

        int number = 0;
        foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(choices, seed))
        {
            string where = $"{kind} seed {seed} instant {instant} {choice}";
            Judge(survivor, model, where);
            switch (number++ % 9)
            {
                case 0:
                    WorkAndClose(survivor.Kill(), model.Clone(), where);
                    break;
                case 3 when instant % 4 == 0:
                    CrashInReplay(survivor, model, where);
                    break;
                case 6:
                    WorkAndCrash(survivor, model.Clone(), where);
                    break;
                default:
                    break;
            }
        }

        Killed(disk.Kill(), model.Clone(), $"{kind} seed {seed} instant {instant} kill");
    }

    /// <summary>After a kill everything is there but unsynced: what the next session was told is the disk must not vanish (I8).</summary>
    private void Killed(SimulatedDisk disk, DiskModel model, string where)
    {
        using (CowImage image = Open(disk))
            model.Adopt(image);
        Judge(disk.Crash(CrashChoice.Nothing), model, where + ", then power loss");
    }

    /// <summary>Crashes at every tick of the open that replays, and replays again.</summary>
    private void CrashInReplay(SimulatedDisk survivor, DiskModel model, string where)
    {
        for (long tick = 1; ; tick++)
        {
            SimulatedDisk disk = survivor.Kill();
            disk.CrashAt(disk.Clock + tick);
            bool ended = false;
            try
            {
                using CowImage image = Open(disk);
                ended = true;
            }
            catch (SimulatedCrashException)
            {
                // The second crash.
            }

            foreach ((CrashChoice choice, SimulatedDisk last) in disk.EnumerateCrashes(5, seed))
                Judge(last, model, $"{where}, then tick {tick} of the replay, {choice}");
            if (ended)
                return;
        }
    }

    /// <summary>Goes on working on what survived, and crashes again.</summary>
    private void WorkAndCrash(SimulatedDisk survivor, DiskModel model, string where)
    {
        using (CowImage image = VhdxImages.Open(survivor.Kill(), _prepared, writable: false))
            model.Adopt(image);
        SimulatedDisk disk = survivor.Kill();
        disk.CrashAt(disk.Clock + 22);
        try
        {
            using CowImage image = Open(disk);
            Operate(image, model, 8, seed + 1000);
            image.Close();
        }
        catch (SimulatedCrashException)
        {
            // The second crash.
        }

        foreach ((CrashChoice choice, SimulatedDisk last) in disk.EnumerateCrashes(5, seed))
            Judge(last, model, $"{where}, then {choice}");
    }

    /// <summary>Goes on working on what survived, and closes properly.</summary>
    private void WorkAndClose(SimulatedDisk disk, DiskModel model, string where)
    {
        using (CowImage image = VhdxImages.Open(disk, _prepared, writable: false))
            model.Adopt(image);
        using (CowImage image = Open(disk))
        {
            // Reading through a replay in memory and after one in the file is the same.
            model.CheckLive(image);
            Operate(image, model, 6, seed + 1000);
            model.CheckLive(image);
            image.Close();
        }

        JudgeClosed(disk, model, $"{where}, then closed");
    }

    private CowImage Open(SimulatedDisk disk) => VhdxImages.Open(disk, _prepared, session: ++_sessions, logStart: LogStart);

    private static void Operate(IDiskImage image, DiskModel model, int steps, ulong operations)
    {
        foreach (Operation operation in Random(operations, steps))
            operation.Run(image, model);
    }

    /// <summary>Mostly small operations, some on whole blocks.</summary>
    internal static IEnumerable<Operation> Random(ulong seed, int count)
    {
        Random random = new(unchecked((int)seed));
        const int size = VhdxImages.DiskSize;
        for (int i = 0; i < count; i++)
        {
            int length = random.Next(5) == 0 ? random.Next(1, 100_000) : random.Next(1, 3000);
            int offset = random.Next(0, size - length);
            // Around the ends of blocks much is different.
            if (random.Next(4) == 0)
                offset = Math.Min((random.Next(1, 4) * Block) - random.Next(0, length + 1), size - length);
            if (random.Next(3) != 0)
                (offset, length) = (offset & ~511, Math.Max(512, length & ~511));
            int kind = random.Next(12);
            if (kind is 5 or 6)
            {
                int first = random.Next(0, 4);
                (offset, length) = (first * Block, Math.Min(random.Next(1, 3) * Block, size - first * Block));
            }

            byte[] bytes = new byte[length];
            if (kind < 5)
                random.NextBytes(bytes);
            yield return kind switch
            {
                < 5 => new Operation(OperationKind.Write, offset, bytes),
                5 or 7 => new Operation(OperationKind.Discard, offset, bytes),
                6 or 8 => new Operation(OperationKind.WriteZeroes, offset, bytes),
                _ => new Operation(OperationKind.Sync, 0, []),
            };
        }
    }

    /// <summary>Fails the test unless a disk holds what the model allows, by our word and by an independent reader's, and its check
    /// finds nothing.</summary>
    private void Judge(SimulatedDisk disk, DiskModel model, string where) => Judge(disk, model, _prepared, where);

    internal static void Judge(SimulatedDisk disk, DiskModel model, PreparedVhdx prepared, string where)
    {
        try
        {
            using (IDiskImage image = VhdxImages.Open(disk, prepared, writable: false))
                model.CheckAfterCrash(image);
            CheckReport report = VhdxChecker.Check(disk.Open("image", readOnly: true));
            // A header that a crash tore is the one that was not current.
            Assert.True(
                report.CheckErrors == 0 && report.Findings.All(finding => finding.Kind == "header"),
                string.Join("; ", report.Findings.Select(f => f.Message)));
        }
        catch (Exception exception) when (exception is not InvalidOperationException)
        {
            throw new InvalidOperationException($"{where}: {exception.Message}", exception);
        }
    }

    private void JudgeClosed(SimulatedDisk disk, DiskModel model, string where) => JudgeClosed(disk, model, _prepared, where);

    internal static void JudgeClosed(SimulatedDisk disk, DiskModel model, PreparedVhdx prepared, string where)
    {
        model.Sync();
        SimulatedDisk durable = disk.Crash(CrashChoice.Nothing);
        Judge(durable, model, prepared, where);
        Assert.True(VhdxImages.ReadIndependently(durable, prepared).AsSpan().SequenceEqual(model.Current), $"{where}: the independent reader reads other bytes");
        using SimulatedStorage file = durable.Open("image", readOnly: true);
        CheckReport report = VhdxChecker.Check(file);
        Assert.True(report.ExitCode == 0, $"{where}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
        VhdxLayout layout = VhdxLayout.Read(file);
        Assert.True(layout.Headers.Current.LogGuid == Guid.Empty && layout.Headers.OtherIsValid, $"{where}: the log is not closed");
        Assert.True(file.Length == report.ImageEndOffset, $"{where}: the file has {file.Length} bytes, used are {report.ImageEndOffset}");
    }

    private void JudgeByQemu(SimulatedDisk disk, DiskModel model)
    {
        using TempDirectory temp = new();
        File.WriteAllBytes(temp["image"], disk.Content("image"));
        File.WriteAllBytes(temp["model"], model.Current);
        _ = Qemu.Img("check", "-q", "-f", "vhdx", temp["image"]);
        _ = Qemu.Img("compare", "-q", "-f", "vhdx", "-F", "raw", temp["image"], temp["model"]);
    }
}
