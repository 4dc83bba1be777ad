// The seeds that random tests run with: always the same, so that a run can be repeated, unless a soak asks for others.
using System.Globalization;

namespace QcowFs.Testing;

/// <summary>Seeds for random tests.</summary>
public static class Seeds
{
    private static readonly ulong Offset = ulong.Parse(Environment.GetEnvironmentVariable("QCOWFS_SEED_OFFSET") ?? "0", CultureInfo.InvariantCulture);

    /// <summary>The seeds from <paramref name="first"/> to <paramref name="last"/>, all moved by QCOWFS_SEED_OFFSET where it is set. Offsets
    /// are multiples of 1000, so that no two rounds of a soak meet. Print each seed: it is what repeats a failure.</summary>
    public static IEnumerable<ulong> Between(ulong first, ulong last)
    {
        for (ulong seed = first; seed <= last; seed++)
        {
            yield return seed + Offset;
        }
    }
}
