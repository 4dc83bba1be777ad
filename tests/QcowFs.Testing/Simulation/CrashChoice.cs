// Which of the unsynced changes a crash leaves on the medium.
namespace QcowFs.Testing;

/// <summary>
/// Decides for every sector of every unsynced change, and for every unsynced change of a length, whether it reached the medium.
/// Where several changes of one sector did, the latest counts: so a sector can come out with any version that it had since the
/// last sync, and with the synced one. Its text says which choice it was.
/// </summary>
public sealed class CrashChoice
{
    private readonly string _text;
    private readonly Func<PendingChange, long, bool> _survives;

    private CrashChoice(string text, Func<PendingChange, long, bool> survives)
    {
        _text = text;
        _survives = survives;
    }

    /// <summary>Only what was synced.</summary>
    public static CrashChoice Nothing { get; } = new("nothing unsynced survives", static (_, _) => false);

    /// <summary>All changes.</summary>
    public static CrashChoice Everything { get; } = new("everything survives", static (_, _) => true);

    /// <summary>As <see cref="Everything"/>, but all of it is still unsynced: what <see cref="SimulatedDisk.Kill"/> leaves.</summary>
    public static CrashChoice ProcessKill { get; } = new("the process was killed", static (_, _) => true);

    /// <summary>The first <paramref name="count"/> unsynced changes.</summary>
    public static CrashChoice Prefix(int count) => new($"first {count} changes survive", (change, _) => change.Index < count);

    /// <summary>These changes, by <see cref="PendingChange.Index"/>.</summary>
    public static CrashChoice Only(params int[] indices) =>
        new($"only changes {string.Join(',', indices)} survive", (change, _) => indices.Contains(change.Index));

    /// <summary>All changes but these.</summary>
    public static CrashChoice AllBut(params int[] indices) =>
        new($"all changes but {string.Join(',', indices)} survive", (change, _) => !indices.Contains(change.Index));

    /// <summary>All changes of these storages and none of others.</summary>
    public static CrashChoice OnlyStorages(params string[] names) =>
        new($"only changes of {string.Join(',', names)} survive", (change, _) => names.Contains(change.Storage));

    /// <summary>One change in part, by <paramref name="tear"/>; the others before it survive, and those after it by
    /// <paramref name="laterSurvive"/>.</summary>
    public static CrashChoice Torn(int index, Tear tear, bool laterSurvive) =>
        new(
            $"change {index} torn ({tear}), later ones {(laterSurvive ? "survive" : "lost")}",
            (change, sector) => change.Index == index ? Keeps(change, sector, tear) : change.Index < index || laterSurvive);

    /// <summary>A random part: each change as a whole, or each sector by itself, with a density that the seed decides too.</summary>
    public static CrashChoice Sampled(ulong seed, bool bySector)
    {
        ulong density = 1 + Pattern.Mix(seed) % 15; // sixteenths
        return new(
            $"sample {seed} {(bySector ? "by sector" : "by change")}, density {density}/16",
            (change, sector) =>
            {
                ulong place = unchecked((ulong)change.Sequence * 0x9E3779B97F4A7C15UL + (bySector ? (ulong)sector + 2 : 0));
                return Pattern.Mix(seed ^ Pattern.Mix(place)) % 16 < density;
            });
    }

    public override string ToString() => _text;

    /// <summary>Whether a sector of the change, or its new length (<see cref="LengthAtom"/>), reached the medium.</summary>
    internal bool Survives(in PendingChange change, long sector) => _survives(change, sector);

    /// <summary>Stands for the length where a sector number is asked for.</summary>
    internal const long LengthAtom = -1;

    private static bool Keeps(in PendingChange change, long sector, Tear tear)
    {
        if (sector == LengthAtom)
            return tear is Tear.FirstHalf or Tear.LengthOnly or Tear.EvenSectors;
        long place = sector - change.FirstSector;
        return tear switch
        {
            Tear.FirstHalf => place < change.SectorCount / 2,
            Tear.SecondHalf => place >= change.SectorCount / 2,
            Tear.EvenSectors => place % 2 == 0,
            Tear.OddSectors => place % 2 == 1,
            Tear.AllButFirst => place != 0,
            Tear.AllButLast => place != change.SectorCount - 1,
            Tear.DataOnly => true,
            _ => false,
        };
    }
}

/// <summary>What survives of a change of which not all does. The length survives with FirstHalf, EvenSectors and LengthOnly.</summary>
public enum Tear
{
    FirstHalf,
    SecondHalf,
    EvenSectors,
    OddSectors,
    AllButFirst,
    AllButLast,
    /// <summary>The sectors without the new length.</summary>
    DataOnly,
    /// <summary>The new length without the sectors.</summary>
    LengthOnly,
}
