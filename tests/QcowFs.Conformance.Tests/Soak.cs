// How long a test that can go on does: one round in a person's run, and as long as `make soak` says.
namespace QcowFs.Conformance.Tests;

internal static class Soak
{
    /// <summary>Numbers of rounds: the first one always, further ones while time is left.</summary>
    public static IEnumerable<int> Rounds()
    {
        _ = int.TryParse(Environment.GetEnvironmentVariable("QCOWFS_SOAK_MINUTES"), out int minutes);
        DateTime end = DateTime.UtcNow.AddMinutes(minutes);
        int round = 0;
        do yield return round++;
        while (DateTime.UtcNow < end);
    }
}
