// The repair of a qcow2 image that nobody else uses. What is not understood stays as it is and is reported.
//
// R1. Every step is durable before the next begins, and each leaves the image no worse than it was: counts first (raises, then
//     lowers; or new refcount structures behind a switch of the header), then the entries that rely on them, last the header's bits.
// R2. A count is lowered only where all references are known; space is taken from behind the file's end only where nothing refers
//     to it; an entry is changed only in a cluster that is a table and nothing else.
// R3. What an image says about itself (dirty, corrupt) is taken back only when a check after the repair finds no corruption.
// R4. A journal is replayed and taken away first; the space that it took is a leak then.
// R5. A repair that crashed is begun anew; on a repaired image there is nothing to do.
using System.Buffers.Binary;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

internal static class Qcow2Repair
{
    private const int HeaderSector = 512;

    // An entry that loses its cluster makes a leak, which the next round gives back. More rounds than that bring nothing.
    private const int MaxRounds = 3;

    /// <summary>Repairs an image and checks it again. The report says what is left and how much is gone. Faults:
    /// <see cref="ImageFormatException"/> where a root structure cannot be understood; <see cref="StorageException"/>, after which
    /// the repair can be run again.</summary>
    /// <param name="file">The image file, writable and used by nobody else.</param>
    /// <param name="mode">What to mend.</param>
    /// <param name="windowClusters">Clusters to count at a time; tests make it small.</param>
    /// <param name="progress">Is told which part of the image a pass has looked at, 0 to 1; or null.</param>
    public static CheckReport Run(
        IStorage file, RepairMode mode, int windowClusters = ReferenceCounter.DefaultWindow, Action<double>? progress = null)
    {
        // What a process that died left unsynced could vanish after it was judged.
        file.Sync();
        ReplayJournal(file);
        Qcow2Diagnosis before = Qcow2Checker.Diagnose(file, windowClusters, progress: progress);
        Qcow2Diagnosis now = before;
        if (before.Report.ExitCode != 0)
            ClearUnknownAutoclearBits(file);
        for (int round = 0; round < MaxRounds && now.Report.ExitCode != 0; round++)
        {
            Qcow2Diagnosis after = RunRound(file, now, mode, windowClusters, progress);
            if (after == now)
                break;
            now = after;
        }

        if (now.Report is { CheckErrors: 0, Corruptions: 0 })
            ClearMarks(file);
        CutTail(file, now);
        return now.Report with
        {
            CorruptionsFixed = Math.Max(0, before.Report.Corruptions - now.Report.Corruptions),
            LeaksFixed = Math.Max(0, before.Report.Leaks - now.Report.Leaks),
        };
    }

    private static void ReplayJournal(IStorage file)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        if (!header.HasJournal)
            return;
        JournalReplay.Plan(header, file).Apply();
        JournalHeader.Remove(file);
    }

    // Gives what a check finds then, or the same diagnosis where nothing could be done.
    private static Qcow2Diagnosis RunRound(
        IStorage file, Qcow2Diagnosis found, RepairMode mode, int windowClusters, Action<double>? progress)
    {
        Qcow2Diagnosis now = found;
        if (CorrectCounts(file, now, mode, windowClusters))
            now = Qcow2Checker.Diagnose(file, windowClusters, progress: progress);
        else if (found is { NeedsRebuild: true, PointsOutside: false } && mode == RepairMode.All)
            return found with { Report = found.Report with { Findings = RepairText.Without(found.Report.Findings, RepairText.NoRebuildSize) } };

        // COPIED follows the counts, so they must be right first. It may be set with the leaks where nothing else is wrong.
        bool mayMend = mode == RepairMode.All || now.Report is { CheckErrors: 0 } && now.Report.Corruptions == now.Harmless;
        if (now is { EntriesToMend: > 0, CountsTooLow: 0, NeedsRebuild: false } && mayMend)
        {
            EntryRepair repair = new(Qcow2HeaderReader.Read(file), file);
            _ = Qcow2Checker.Diagnose(file, windowClusters, repair, progress);
            if (repair.Changed)
            {
                file.Sync();
                now = Qcow2Checker.Diagnose(file, windowClusters, progress: progress);
            }
        }

        if (mode == RepairMode.All && now is { IncompleteSnapshots: > 0, Report.CheckErrors: 0 } && now.Report.Corruptions == now.IncompleteSnapshots)
        {
            Qcow2SnapshotEdit.Complete(Qcow2HeaderReader.Read(file), file);
            now = Qcow2Checker.Diagnose(file, windowClusters, progress: progress);
        }

        return now;
    }

    // R2: what lies behind the last cluster that has a count or a reference is nothing's, where all references are known.
    private static void CutTail(IStorage file, Qcow2Diagnosis now)
    {
        if (now.Report is not { CheckErrors: 0, Corruptions: 0, Leaks: 0, ImageEndOffset: { } end } || !now.ReferencesKnown || file.Length <= end)
            return;
        file.SetLength(end);
        file.Sync();
    }

    // Whether anything was changed.
    private static bool CorrectCounts(IStorage file, Qcow2Diagnosis found, RepairMode mode, int windowClusters)
    {
        if (found.NeedsRebuild)
        {
            return mode == RepairMode.All && !found.PointsOutside
                && RefcountRebuild.TryRun(file, keepHigher: !found.ReferencesKnown, windowClusters);
        }

        bool raise = mode == RepairMode.All && found.CountsTooLow > 0;
        bool lower = found.ReferencesKnown && (found.Report.Leaks > 0 || raise);
        return (raise || lower) && RefcountCorrection.Run(file, raise, lower, windowClusters);
    }

    // I10 holds for every writer.
    private static void ClearUnknownAutoclearBits(IStorage file)
    {
        const AutoclearFeatures kept = AutoclearFeatures.Known & ~AutoclearFeatures.DedupIndex;
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        if (header.Version >= 3 && (header.AutoclearFeatures & ~kept) != AutoclearFeatures.None)
            ChangeHeader(file, Qcow2HeaderLayout.AutoclearFeaturesAt, (ulong)(header.AutoclearFeatures & kept));
    }

    private static void ClearMarks(IStorage file)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        if (header.IsDirty || header.IsCorrupt)
        {
            ChangeHeader(file, Qcow2HeaderLayout.IncompatibleFeaturesAt,
                (ulong)(header.IncompatibleFeatures & ~(IncompatibleFeatures.Dirty | IncompatibleFeatures.Corrupt)));
        }
    }

    private static void ChangeHeader(IStorage file, int at, ulong value)
    {
        byte[] sector = new byte[HeaderSector];
        file.Read(0, sector);
        BinaryPrimitives.WriteUInt64BigEndian(sector.AsSpan(at), value);
        file.Write(0, sector);
        file.Sync();
    }
}
