// One seeded run of guest operations and of filling from the backing file, crashed at an instant and judged; then work goes on.
using QcowFs.Images.Engine;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

internal sealed class AddCowCrashRun(AddCowCase image, ulong seed)
{
    /// <summary>Whether what is missing is filled from the backing file between the operations.</summary>
    public bool Fills { get; init; }

    /// <summary>Whether the run must end with a complete disk, which it is then checked to do.</summary>
    public bool Completes { get; init; }

    /// <summary>Crashes at every tick of a run.</summary>
    public void EveryInstant(int steps, int choices, Action<string>? log)
    {
        SimulatedDisk disk = image.MakeDisk();
        DiskModel model = new(image.Guest);
        long first = disk.Clock + 1;
        Session(disk, model, steps, seed);
        model.Sync();
        image.Judge(disk.Crash(CrashChoice.Nothing), model, $"seed {seed} no crash");
        if (Completes)
            Assert.True(AddCowCase.IsMarkedComplete(disk.DurableContent(AddCowCase.Overlay)), $"{image} seed {seed} is not complete");
        log?.Invoke($"{image} seed {seed}: instants {first} to {disk.Clock}");
        for (long instant = first; instant <= disk.Clock; instant++)
            CrashAt(instant, steps, choices);
    }

    private void CrashAt(long instant, int steps, int choices)
    {
        SimulatedDisk disk = image.MakeDisk();
        DiskModel model = new(image.Guest);
        disk.CrashAt(instant);
        Crash(() => Session(disk, model, steps, seed));
        int number = 0;
        foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(choices, seed))
        {
            string where = $"seed {seed} instant {instant} {choice}";
            image.Judge(survivor, model, where);
            if (number % 4 == 0)
                WorkAndClose(survivor.Kill(), model.Clone(), where);
            if (number++ % 8 == 4)
                WorkAndCrash(survivor.Kill(), model.Clone(), where);
        }

        Killed(disk.Kill(), model.Clone(), $"seed {seed} instant {instant} kill");
    }

    /// <summary>After a kill everything is there but unsynced: what the next session was told is the disk must not vanish (I8).</summary>
    private void Killed(SimulatedDisk disk, DiskModel model, string where)
    {
        using (CowImage opened = AddCowCase.Open(disk))
            model.Adopt(opened);
        image.Judge(disk.Crash(CrashChoice.Nothing), model, where + ", then power loss");
    }

    private void WorkAndClose(SimulatedDisk disk, DiskModel model, string where)
    {
        using (CowImage opened = AddCowCase.Open(disk))
        {
            model.Adopt(opened);
            Operate(opened, model, 5, seed + 1000);
            model.CheckLive(opened);
            opened.Close();
        }

        model.Sync();
        image.Judge(disk.Crash(CrashChoice.Nothing), model, where + ", then closed");
    }

    private void WorkAndCrash(SimulatedDisk disk, DiskModel model, string where)
    {
        using (CowImage opened = AddCowCase.Open(disk))
            model.Adopt(opened);
        disk = disk.Kill();
        disk.CrashAt(disk.Clock + 9);
        Crash(() => Session(disk, model, 6, seed + 2000));
        foreach ((CrashChoice choice, SimulatedDisk last) in disk.EnumerateCrashes(6, seed))
            image.Judge(last, model, $"{where}, then {choice}");
    }

    private void Session(SimulatedDisk disk, DiskModel model, int steps, ulong operations)
    {
        using CowImage opened = AddCowCase.Open(disk);
        Operate(opened, model, steps, operations);
        model.CheckLive(opened);
        opened.Close();
    }

    // Filling changes nothing that the guest could see, so the model hears nothing of it.
    private void Operate(CowImage opened, DiskModel model, int steps, ulong operations)
    {
        long filled = 0;
        // The end of the disk in the middle of a cluster is met by few random operations.
        Operation atTheEnd = new(OperationKind.Write, image.Size - 700, Pattern.Bytes(operations, 0, 700));
        foreach (Operation operation in Operation.Random(operations, steps, image.Size).Prepend(atTheEnd))
        {
            operation.Run(opened, model);
            if (Fills)
                filled = Fill(opened, filled, Math.Max(image.Size / steps, 1));
        }

        if (Fills)
        {
            Fill(opened, 0, image.Size);
            opened.CompleteFill();
        }
    }

    private static long Fill(CowImage opened, long from, long atLeast)
    {
        int block = (int)opened.Info.BlockSize;
        for (long end = Math.Min(from + atLeast, opened.Length); from < end;)
        {
            from = opened.FindMissing(from);
            long length = Math.Min(block * 4L, opened.Length - from);
            if (length > 0)
                opened.FillRange(from, length);
            from += length;
        }

        return from;
    }

    private static void Crash(Action session)
    {
        try
        {
            session();
        }
        catch (SimulatedCrashException)
        {
            // The crash that was asked for.
        }
    }
}
