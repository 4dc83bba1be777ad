// One seeded run of repeating writes on a simulated disk with an index, crashed at any instant and judged.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

internal sealed class SharingRun(Geometry geometry, ulong seed, bool weakHash = false)
{
    private readonly PreparedImage _prepared = SimulatedImages.Prepare(geometry);
    private ulong _ids;
    private long _acknowledged;

    /// <summary>Bytes of the journal's ring, or 0: no journal.</summary>
    public int RingBytes { get; init; }

    private int Block => SimulatedImages.ClusterSize(_prepared);

    /// <summary>How many blocks the runs shared in the end; a run that shares nothing proves nothing.</summary>
    public long Shared { get; private set; }

    /// <summary>Crashes at every tick of a run that follows an earlier session.</summary>
    public void EveryInstant(int steps, int choices)
    {
        (SimulatedDisk start, DiskModel model) = FirstSession(steps);
        SimulatedDisk whole = start.Crash(CrashChoice.Everything);
        long first = whole.Clock + 1;
        Session(whole, model.Clone(), steps, seed + 500, crashes: false);
        for (long instant = first; instant <= whole.Clock; instant++)
            CrashAt(start, model, instant, steps, choices);
    }

    private (SimulatedDisk Disk, DiskModel Model) FirstSession(int steps)
    {
        SimulatedDisk disk = SimulatedImages.DiskOf(_prepared);
        DiskModel model = new(_prepared.Guest);
        Session(disk, model, steps, seed, crashes: false);
        return (disk, model);
    }

    private void Session(SimulatedDisk disk, DiskModel model, int steps, ulong operations, bool crashes)
    {
        using (CowImage image = Open(disk))
        {
            foreach (SharingOperation operation in SharingOperation.Random(operations, steps, geometry.Size, Block))
            {
                operation.Run(image, model);
                _acknowledged = model.Mark;
            }

            if (!crashes)
                model.CheckLive(image);
            image.Close();
            Shared += image.Statistics.Dedup!.Shared;
        }

        model.Sync();
        if (!crashes)
            JudgeClosed(disk, model, $"{this}, no crash");
    }

    private void CrashAt(SimulatedDisk start, DiskModel before, long instant, int steps, int choices)
    {
        SimulatedDisk disk = start.Crash(CrashChoice.Everything);
        DiskModel model = before.Clone();
        _acknowledged = model.Mark;
        disk.CrashAt(instant);
        try
        {
            Session(disk, model, steps, seed + 500, crashes: true);
        }
        catch (SimulatedCrashException)
        {
            // The crash that was asked for.
        }

        long acknowledged = _acknowledged;
        int number = 0;
        foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(choices, seed))
        {
            string where = $"{this} instant {instant} {choice}";
            Judge(survivor, model, where);
            if (number % 4 == 0)
                WorkAndClose(survivor.Kill(), model.Clone(), where);
            if (number++ % 6 == 3)
                WorkAndCrash(survivor.Kill(), model.Clone(), where);
        }

        if (RingBytes == 0)
            return;
        DiskModel kept = model.Clone();
        kept.Sync(acknowledged); // J11
        Judge(disk.Kill(), kept, $"{this} instant {instant} kill");
        WorkAndClose(disk.Kill(), kept, $"{this} instant {instant} kill");
    }

    /// <summary>Goes on after a crash, the same writes first, and closes: nothing is leaked and no flag is missing.</summary>
    private void WorkAndClose(SimulatedDisk disk, DiskModel model, string where)
    {
        using (CowImage image = Open(disk))
        {
            model.Adopt(image);
            foreach (SharingOperation operation in SharingOperation.Random(seed + 500, 6, geometry.Size, Block))
                operation.Run(image, model);
            if (image.Map.Recovery is LeakCollector collector)
                image.Recover(commit => collector.Run(commit, windowClusters: 16));
            foreach (SharingOperation operation in SharingOperation.Random(seed + 900, 6, geometry.Size, Block))
                operation.Run(image, model);
            model.CheckLive(image);
            image.Close();
        }

        model.Sync();
        JudgeClosed(disk, model, $"{where}, then closed");
    }

    private void WorkAndCrash(SimulatedDisk disk, DiskModel model, string where)
    {
        disk.CrashAt(disk.Clock + 14);
        try
        {
            using CowImage image = Open(disk);
            model.Adopt(image);
            foreach (SharingOperation operation in SharingOperation.Random(seed + 500, 10, geometry.Size, Block))
                operation.Run(image, model);
            image.Close();
        }
        catch (SimulatedCrashException)
        {
            // The second crash.
        }

        foreach ((CrashChoice choice, SimulatedDisk last) in disk.EnumerateCrashes(8, seed))
            Judge(last, model, $"{where}, then {choice}");
    }

    private void Judge(SimulatedDisk disk, DiskModel model, string where)
    {
        CrashRun.Judge(disk, model, _prepared, where, harmlessAllowed: true);
        string? broken = SharingImages.FindBrokenSharing(disk, _prepared);
        Assert.True(broken is null, $"{where}: {broken}");
    }

    private void JudgeClosed(SimulatedDisk disk, DiskModel model, string where)
    {
        Judge(disk.Crash(CrashChoice.Nothing), model, where);
        CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
        Assert.True(report.ExitCode == 0, $"{where}: {report.Leaks} leaks, {string.Join("; ", report.Findings.Select(f => f.Message))}");
    }

    private CowImage Open(SimulatedDisk disk) => SharingImages.Open(
        disk, _prepared, weakHash, journal: RingBytes == 0 ? null : new JournalOptions { RingBytes = RingBytes, NewId = () => new UInt128(seed, ++_ids) });

    public override string ToString() => $"{geometry} seed {seed}{(weakHash ? " weak hash" : "")}{(RingBytes > 0 ? " journal" : "")}";
}
