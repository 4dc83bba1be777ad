// One seeded run of operations on a simulated disk, crashed and judged.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

internal sealed class CrashRun(Geometry geometry, ulong seed)
{
    private readonly PreparedImage _prepared = SimulatedImages.Prepare(geometry);

    /// <summary>How much of the disk is written and synced before the run, in large writes.</summary>
    public int PrefilledBytes { get; init; }

    /// <summary>Crashes at every tick of a run.</summary>
    public void EveryInstant(int steps, int choices, ITestOutputHelper output)
    {
        long last = Ticks(steps, out long first);
        output.WriteLine($"{geometry} seed {seed}: instants {first} to {last}");
        for (long instant = first; instant <= last; instant++)
            CrashAt(instant, steps, choices);
    }

    /// <summary>Crashes at a few ticks of a long run.</summary>
    public void RandomInstants(int steps, int instants, int choices, ITestOutputHelper output)
    {
        long last = Ticks(steps, out long first);
        Random random = new((int)seed);
        output.WriteLine($"{geometry} seed {seed}: {instants} of the instants {first} to {last}");
        for (int i = 0; i < instants; i++)
            CrashAt(random.NextInt64(first, last + 1), steps, choices);
    }

    /// <summary>The clock at the start and at the end of the run when nothing goes wrong, which it also proves.</summary>
    private long Ticks(int steps, out long first)
    {
        SimulatedDisk disk = SimulatedImages.DiskOf(_prepared);
        DiskModel model = new(_prepared.Guest);
        Prefill(disk, model);
        first = disk.Clock + 1;
        using (IDiskImage image = SimulatedImages.Open(disk, _prepared))
        {
            Operate(image, model, steps, seed);
            model.CheckLive(image);
            image.Close();
        }

        JudgeClosed(disk, model, "no crash");
        return disk.Clock;
    }

    private void Prefill(SimulatedDisk disk, DiskModel model)
    {
        if (PrefilledBytes == 0)
            return;
        byte[] bytes = new byte[PrefilledBytes];
        new Random(7).NextBytes(bytes);
        using IDiskImage image = SimulatedImages.Open(disk, _prepared, cacheSize: 1 << 20);
        model.Write(0, bytes);
        image.Write(0, bytes);
        image.Sync();
        model.Sync();
        image.Close();
    }

    private void CrashAt(long instant, int steps, int choices)
    {
        SimulatedDisk disk = SimulatedImages.DiskOf(_prepared);
        DiskModel model = new(_prepared.Guest);
        Prefill(disk, model);
        disk.CrashAt(instant);
        try
        {
            using IDiskImage image = SimulatedImages.Open(disk, _prepared);
            Operate(image, model, steps, seed);
            image.Close();
        }
        catch (SimulatedCrashException)
        {
            // The crash that was asked for.
        }

        HashSet<UInt128> seen = [];
        int number = 0;
        foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(choices, seed))
        {
            if (!seen.Add(survivor.Fingerprint()))
                continue;
            string where = $"{geometry} seed {seed} instant {instant} {choice}";
            Judge(survivor, model, where);
            if (number++ % 8 == 0)
                SecondSpell(survivor, model.Clone(), where, number % 16 == 1 ? 6 : 1);
        }

        Judge(disk.Kill(), model, $"{geometry} seed {seed} instant {instant} kill");
    }

    /// <summary>Goes on working on what survived, and crashes again or closes properly.</summary>
    private void SecondSpell(SimulatedDisk disk, DiskModel model, string where, int choices)
    {
        using (IDiskImage image = SimulatedImages.Open(disk, _prepared))
            model.Adopt(image);
        SimulatedDisk again = disk.Kill();
        if (choices > 1)
        {
            again.CrashAt(again.Clock + 12);
            try
            {
                using IDiskImage image = SimulatedImages.Open(again, _prepared);
                Operate(image, model, 8, seed + 1000);
                image.Close();
            }
            catch (SimulatedCrashException)
            {
                // The second crash.
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in again.EnumerateCrashes(choices, seed))
                Judge(survivor, model, $"{where}, then {choice}");
            return;
        }

        using (CowImage image = SimulatedImages.Open(again, _prepared))
        {
            // Leaks are collected while the image is in use, in windows so small that operations fall between and into them.
            Operate(image, model, 4, seed + 1000);
            if (image.Map.Recovery is LeakCollector collector)
                image.Recover(commit => collector.Run(commit, windowClusters: 16));
            Operate(image, model, 4, seed + 2000);
            model.CheckLive(image);
            image.Close();
        }

        JudgeClosed(again, model, $"{where}, then closed", leaksAllowed: geometry.Options.Contains("0.10"));
    }

    private void Operate(IDiskImage image, DiskModel model, int steps, ulong operations)
    {
        foreach (Operation operation in Operation.Random(operations, steps, geometry.Size))
            operation.Run(image, model);
    }

    private void Judge(SimulatedDisk disk, DiskModel model, string where) => Judge(disk, model, _prepared, where);

    /// <summary>Fails the test unless a disk holds what the model allows and its check finds nothing but leaks.</summary>
    internal static void Judge(SimulatedDisk disk, DiskModel model, PreparedImage prepared, string where)
    {
        try
        {
            using (IDiskImage image = SimulatedImages.Open(disk, prepared, writable: false))
                model.CheckAfterCrash(image);
            CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
            Assert.True(report.Corruptions + report.CheckErrors == 0, string.Join("; ", report.Findings.Select(f => f.Message)));
        }
        catch (Exception exception) when (exception is not InvalidOperationException)
        {
            throw new InvalidOperationException($"{where}: {exception.Message}", exception);
        }
    }

    private void JudgeClosed(SimulatedDisk disk, DiskModel model, string where, bool leaksAllowed = false)
    {
        model.Sync();
        Judge(disk.Crash(CrashChoice.Nothing), model, where);
        CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
        Assert.True(report.ExitCode == 0 || (leaksAllowed && report.ExitCode == 3), $"{geometry} seed {seed} {where}: {report.Leaks} leaks, {string.Join("; ", report.Findings.Select(f => f.Message))}");
    }
}
