// The order in which crash states are tried: the telling ones first, then samples.
namespace QcowFs.Testing;

/// <summary>Choices for a list of unsynced changes. Finite and deterministic; may hold choices with equal results.</summary>
internal static class CrashEnumeration
{
    /// <summary>Up to this many changes every subset is tried.</summary>
    private const int AllSubsetsUpTo = 6;

    public static IEnumerable<CrashChoice> Choices(IReadOnlyList<PendingChange> pending, int limit, ulong seed)
    {
        yield return CrashChoice.Nothing;
        List<CrashChoice> telling = [.. Prefixes(pending), .. Subsets(pending), .. Storages(pending), .. Tears(pending)];
        // A quarter of the limit stays for the samples, which find what nobody thought of.
        int quota = Math.Max(limit - limit / 4, 1);
        if (telling.Count > quota)
            Shuffle(telling, seed);
        foreach (CrashChoice choice in telling.Take(quota))
            yield return choice;
        for (ulong i = 0; i < (ulong)limit; i++)
            yield return CrashChoice.Sampled(unchecked(seed * 1_000_003 + i), bySector: i % 3 != 0);
    }

    private static IEnumerable<CrashChoice> Prefixes(IReadOnlyList<PendingChange> pending) =>
        Enumerable.Range(1, pending.Count - 1).Select(CrashChoice.Prefix);

    private static IEnumerable<CrashChoice> Subsets(IReadOnlyList<PendingChange> pending)
    {
        int[] all = [.. Enumerable.Range(0, pending.Count)];
        if (pending.Count <= AllSubsetsUpTo)
            return Enumerable.Range(1, (1 << pending.Count) - 1).Select(bits => CrashChoice.Only([.. all.Where(i => (bits >> i & 1) != 0)]));
        return [.. all.Select(i => CrashChoice.AllBut(i)), .. all.Select(i => CrashChoice.Only(i))];
    }

    private static IEnumerable<CrashChoice> Storages(IReadOnlyList<PendingChange> pending)
    {
        string[] names = [.. pending.Select(change => change.Storage).Distinct()];
        if (names.Length < 2)
            return [];
        return names.Select(name => CrashChoice.OnlyStorages(name))
            .Concat(names.Select(name => CrashChoice.OnlyStorages([.. names.Where(other => other != name)])));
    }

    private static IEnumerable<CrashChoice> Tears(IReadOnlyList<PendingChange> pending)
    {
        foreach (PendingChange change in pending)
        {
            bool hasLength = change.NewLength != null;
            foreach (Tear tear in Enum.GetValues<Tear>())
            {
                bool applies = tear is Tear.DataOnly or Tear.LengthOnly ? hasLength && change.SectorCount > 0 : change.SectorCount > 1;
                if (!applies)
                    continue;
                yield return CrashChoice.Torn(change.Index, tear, laterSurvive: false);
                if (change.Index < pending.Count - 1)
                    yield return CrashChoice.Torn(change.Index, tear, laterSurvive: true);
            }
        }
    }

    private static void Shuffle(List<CrashChoice> choices, ulong seed)
    {
        for (int i = choices.Count - 1; i > 0; i--)
        {
            int other = (int)(Pattern.Mix(unchecked(seed + (ulong)i)) % (ulong)(i + 1));
            (choices[i], choices[other]) = (choices[other], choices[i]);
        }
    }
}
