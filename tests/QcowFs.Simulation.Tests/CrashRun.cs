// One seeded run of operations on a simulated disk, crashed and judged.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

internal sealed class CrashRun(Geometry geometry, ulong seed)
{
    private readonly PreparedImage _prepared = SimulatedImages.Prepare(geometry);
    private (SimulatedDisk Disk, DiskModel Model)? _start;
    private ulong _ids;
    private long _acknowledged;

    /// <summary>How much of the disk is written and synced before the run, in large writes.</summary>
    public int PrefilledBytes { get; init; }

    /// <summary>The first byte that operations may touch.</summary>
    public int OperateFrom { get; init; }

    /// <summary>Whether the run must move the refcount table, which it is then checked to do.</summary>
    public bool Relocates { get; init; }

    /// <summary>Bytes of the journal's ring, or 0: no journal.</summary>
    public int RingBytes { get; init; }

    /// <summary>Crashes at every tick of a run.</summary>
    public void EveryInstant(int steps, int choices, Action<string>? log)
    {
        long last = Ticks(steps, out long first);
        log?.Invoke($"{geometry} seed {seed}: instants {first} to {last}");
        for (long instant = first; instant <= last; instant++)
            CrashAt(instant, steps, choices);
    }

    /// <summary>Crashes at a few ticks of a long run.</summary>
    public void RandomInstants(int steps, int instants, int choices, Action<string>? log)
    {
        long last = Ticks(steps, out long first);
        Random random = new(unchecked((int)seed));
        log?.Invoke($"{geometry} seed {seed}: {instants} of the instants {first} to {last}");
        for (int i = 0; i < instants; i++)
            CrashAt(random.NextInt64(first, last + 1), steps, choices);
    }

    /// <summary>The clock at the start and at the end of the run when nothing goes wrong, which it also proves.</summary>
    private long Ticks(int steps, out long first)
    {
        (SimulatedDisk disk, DiskModel model) = Start();
        first = disk.Clock + 1;
        using (IDiskImage image = Open(disk))
        {
            Operate(image, model, steps, seed);
            model.CheckLive(image);
            image.Close();
        }

        JudgeClosed(disk, model, "no crash");
        if (Relocates)
            Assert.NotEqual(TableOffset(_prepared.File), TableOffset(disk.Content("image")));
        return disk.Clock;
    }

    private static long TableOffset(byte[] image) =>
        BinaryPrimitives.ReadInt64BigEndian(image.AsSpan(Qcow2HeaderLayout.RefcountTableOffsetAt));

    /// <summary>The disk and its model as the run finds them: made once, then copied.</summary>
    private (SimulatedDisk Disk, DiskModel Model) Start()
    {
        if (_start is null)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(_prepared);
            DiskModel model = new(_prepared.Guest);
            if (PrefilledBytes > 0)
            {
                byte[] bytes = new byte[PrefilledBytes];
                new Random(7).NextBytes(bytes);
                using CowImage image = SimulatedImages.Open(disk, _prepared, cacheSize: 1 << 20);
                model.Write(0, bytes);
                image.Write(0, bytes);
                image.Close();
                model.Sync();
            }

            _start = (disk, model);
        }

        return (_start.Value.Disk.Crash(CrashChoice.Everything), _start.Value.Model.Clone());
    }

    private void CrashAt(long instant, int steps, int choices)
    {
        (SimulatedDisk disk, DiskModel model) = Start();
        disk.CrashAt(instant);
        _acknowledged = model.Mark;
        try
        {
            using IDiskImage image = Open(disk);
            Operate(image, model, steps, seed);
            image.Close();
        }
        catch (SimulatedCrashException)
        {
            // The crash that was asked for.
        }

        long acknowledged = _acknowledged;
        HashSet<UInt128> seen = [];
        int number = 0;
        foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(choices, seed))
        {
            if (!seen.Add(survivor.Fingerprint()))
                continue;
            string where = $"{geometry} seed {seed} instant {instant} {choice}";
            Judge(survivor, model, where);
            if (number % 3 == 0)
                WorkAndClose(survivor, model.Clone(), where);
            if (number++ % 8 == 4)
                WorkAndCrash(survivor, model.Clone(), where);
        }

        Killed(disk.Kill(), model.Clone(), acknowledged, $"{geometry} seed {seed} instant {instant} kill");
    }

    /// <summary>After a kill everything is there but unsynced: what the next session was told is the disk must not vanish (I8).</summary>
    private void Killed(SimulatedDisk disk, DiskModel model, long acknowledged, string where)
    {
        // With a journal everything acknowledged survives, synced or not (J11).
        if (RingBytes > 0)
            model.Sync(acknowledged);
        Judge(disk, model, where);
        using (CowImage image = Open(disk))
            model.Adopt(image);
        Judge(disk.Crash(CrashChoice.Nothing), model, where + ", then power loss");
    }

    /// <summary>Goes on working on what survived, and crashes again.</summary>
    private void WorkAndCrash(SimulatedDisk survivor, DiskModel model, string where)
    {
        using (CowImage image = Open(survivor))
            model.Adopt(image);
        SimulatedDisk disk = survivor.Kill();
        disk.CrashAt(disk.Clock + 12);
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

        foreach ((CrashChoice choice, SimulatedDisk last) in disk.EnumerateCrashes(6, seed))
            Judge(last, model, $"{where}, then {choice}");
    }

    /// <summary>Goes on working on what survived, and closes properly: nothing may be leaked.</summary>
    private void WorkAndClose(SimulatedDisk survivor, DiskModel model, string where)
    {
        SimulatedDisk disk = survivor.Kill();
        using (CowImage image = Open(disk))
        {
            model.Adopt(image);

            // Leaks are collected while the image is in use, in windows so small that operations fall between and into them.
            Operate(image, model, 4, seed + 1000);
            if (image.Map.Recovery is LeakCollector collector)
                image.Recover(commit => collector.Run(commit, windowClusters: 16));
            Operate(image, model, 4, seed + 2000);
            model.CheckLive(image);
            image.Close();
        }

        JudgeClosed(disk, model, $"{where}, then closed", leaksAllowed: geometry.Options.Contains("0.10"));
    }

    private CowImage Open(SimulatedDisk disk) =>
        SimulatedImages.Open(disk, _prepared, journal: RingBytes == 0 ? null : new JournalOptions { RingBytes = RingBytes, NewId = NextId });

    private UInt128 NextId() => new(seed, ++_ids);

    private void Operate(IDiskImage image, DiskModel model, int steps, ulong operations)
    {
        foreach (Operation operation in Operation.Random(operations, steps, geometry, OperateFrom))
        {
            operation.Run(image, model);
            _acknowledged = model.Mark;
        }
    }

    private void Judge(SimulatedDisk disk, DiskModel model, string where) => Judge(disk, model, _prepared, where);

    /// <summary>Fails the test unless a disk holds what the model allows and its check finds nothing but leaks.</summary>
    internal static void Judge(SimulatedDisk disk, DiskModel model, PreparedImage prepared, string where, bool harmlessAllowed = false)
    {
        try
        {
            using (IDiskImage image = SimulatedImages.Open(disk, prepared, writable: false))
                model.CheckAfterCrash(image);
            CheckReport report = Qcow2Checker.Check(disk.Open("image", readOnly: true));
            long allowed = harmlessAllowed ? report.HarmlessCorruptions : 0;
            Assert.True(report.Corruptions + report.CheckErrors == allowed, string.Join("; ", report.Findings.Select(f => f.Message)));
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
