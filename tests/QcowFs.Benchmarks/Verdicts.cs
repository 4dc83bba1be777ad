// What is asked of each row, and whether it was reached.
using System.Globalization;

namespace QcowFs.Benchmarks;

/// <summary>One rule on one row.</summary>
/// <param name="Row">The row.</param>
/// <param name="Subject">Which of ours.</param>
/// <param name="Asked">The rule in words.</param>
/// <param name="Found">What was found, in words.</param>
/// <param name="IsReached">Whether it is enough.</param>
/// <param name="Limit">Where it is not: what this run says about why, or null.</param>
internal sealed record Verdict(string Row, string Subject, string Asked, string Found, bool IsReached, string? Limit);

internal static class Verdicts
{
    private const double NearRaw = 0.9;
    private const double NearNull = 0.9; // both by passthrough: the kernel does the work

    // Ours, who serves the same format with QEMU's code, and what the protocol allows. add-cow has no rival of its own; it is QEMU's qcow2.
    private static readonly (string Name, string Qemu, string Null)[] Subjects =
        [("qcowfs", "qemu", "null"), ("qcowfs-uring", "qemu", "null-uring"), ("vhdx", "qemu-vhdx", "null"), ("add-cow", "qemu", "null")];

    // Whom QcowFs over qcow2 is to beat besides.
    private static readonly string[] Peers = ["qemu-new", "qemu-new-threads", "qcowmount", "nbdfuse"];

    /// <summary>Every rule that the measured contenders allow to judge.</summary>
    public static IReadOnlyList<Verdict> Of(RowResult result) =>
    [
        .. Subjects.SelectMany(subject => OfSubject(result, subject.Name, subject.Qemu, subject.Null)),
        .. Peers.SelectMany(peer => OfPeer(result, peer)),
        .. OfCompleteAddCow(result),
        .. OfPassthrough(result),
    ];

    private static IEnumerable<Verdict> OfSubject(RowResult result, string subject, string qemu, string nullServer)
    {
        Workload row = result.Workload;
        if (row.OfNullServer is { } share && Statistics.Ratio(result.Values, subject, nullServer) is { } ofNull)
            yield return Judge(result, subject, $"{Percent(share)} of {nullServer}", Percent(ofNull), ofNull >= share);
        if (row.OfBareFile is { } bareShare && Statistics.Ratio(result.Values, subject, "bare") is { } ofBare)
            yield return Judge(result, subject, $"{Percent(bareShare)} of the bare file", Percent(ofBare), ofBare >= bareShare);
        if (row.TimesQemu is { } factor && Statistics.Ratio(result.Values, subject, qemu) is { } times)
            yield return Judge(result, subject, $"{Times(factor)} x {qemu}", Times(times), times >= factor);
        if (row.AtMost is { } limit && Statistics.Median(result.Values.GetValueOrDefault(subject) ?? []) is { } value)
            yield return Judge(result, subject, $"at most {Times(limit)}", Times(value), value <= limit * 1.02);
    }

    private static IEnumerable<Verdict> OfPeer(RowResult result, string peer)
    {
        if (result.Workload.TimesQemu is not null && Statistics.Ratio(result.Values, "qcowfs", peer) is { } times)
            yield return Judge(result, "qcowfs", $"1 x {peer}", Times(times), times >= 1);
    }

    private static IEnumerable<Verdict> OfCompleteAddCow(RowResult result)
    {
        if (result.Workload is { State: DiskState.Written, Place: Place.Tmpfs } && Statistics.Ratio(result.Values, "add-cow-full", "raw") is { } ofRaw)
            yield return Judge(result, "add-cow-full", $"{Percent(NearRaw)} of raw", Percent(ofRaw), ofRaw >= NearRaw);
    }

    private static IEnumerable<Verdict> OfPassthrough(RowResult result)
    {
        if (result.Workload is { State: DiskState.Written, Place: Place.Tmpfs } && Statistics.Ratio(result.Values, "raw-pass", "null-pass") is { } share)
            yield return Judge(result, "raw-pass", $"{Percent(NearNull)} of null-pass", Percent(share), share >= NearNull);
    }

    private static Verdict Judge(RowResult result, string subject, string asked, string found, bool isReached) =>
        new(result.Workload.Name, subject, asked, found, isReached, isReached ? null : Limit(result, subject));

    /// <summary>What the same work costs without us, where that is measured: an allocating row cannot be faster than the host file takes
    /// new pages, a disk not busier than with the null server in front of it.</summary>
    private static string? Limit(RowResult result, string subject)
    {
        if (result.Workload.OfBareFile is not null && Statistics.Ratio(result.Values, "null", "bare") is { } allowed)
            return $"null with O_DIRECT and as many threads reaches {Percent(allowed)} of it";
        if (result.Workload.State != DiskState.Empty)
            return null;
        IEnumerable<string> limits = from name in (string[])["bare", "null"]
                                     let share = Statistics.Ratio(result.Values, subject, name)
                                     let rival = Statistics.Ratio(result.Values, name, subject == "vhdx" ? "qemu-vhdx" : "qemu")
                                     where share is not null && rival is not null
                                     select $"{name} over a new, empty plain file is {Times(rival.Value)} x QEMU, and {subject} reaches {Percent(share.Value)} of it";
        string text = string.Join("; ", limits);
        return text.Length == 0 ? null : text;
    }

    private static string Percent(double value) => value.ToString("P0", CultureInfo.InvariantCulture).Replace(" ", "", StringComparison.Ordinal);

    private static string Times(double value) => value.ToString("0.##", CultureInfo.InvariantCulture);
}
