// qcowfs check: consistency of an image; changes nothing unless asked to repair.
using QcowFs.CommandLine;
using QcowFs.Images;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Checks an image, and repairs it where asked to.</summary>
internal static class CheckCommand
{
    private static readonly Option Repair = new("repair", "mend \"all\" that is wrong (the default) or only lost space (\"leaks\")", "WHAT")
    {
        ValueIsOptional = true,
    };

    public static Command Table { get; } = new(
        "check", "check an image's consistency", ["IMAGE"], [ImageOptions.Format, Repair, ImageOptions.References, ImageOptions.Json], Run)
    {
        Notes = """
            Exit codes: 0 clean, 1 could not check, 2 corruption, 3 leaks only; after a repair they say what is left.
            Nothing is changed without --repair, which wants an image that nobody uses. An image that is mounted is
            checked by its server, as it is at that moment.
            """,
    };

    private static int Run(ParsedLine line)
    {
        string path = line.Operands[0];
        string? format = ImageOptions.FormatOf(line);
        CheckReport report = Check(line, path, format);
        if (line.Has(ImageOptions.Json)) Output.WriteJson(json => CheckReports.Write(json, path, report));
        else Print(path, report);
        return report.ExitCode;
    }

    private static CheckReport Check(ParsedLine line, string path, string? format)
    {
        RepairMode? mode = !line.Has(Repair) ? null : line.Choice(Repair, "all", "leaks") == "leaks" ? RepairMode.Leaks : RepairMode.All;
        ReferencePolicy policy = ImageOptions.ReferencesOf(line);
        using ProgressLine? progress = ProgressLine.OnTerminal(mode is null ? "checking" : "repairing");
        Action<double>? told = progress is null ? null : progress.Report;
        if (mode is not null) return ImageOptions.Opener.Repair(path, mode.Value, format, policy, told);
        CheckReport? report = null;
        return ImageServers.Run(path, () => report = ImageOptions.Opener.Check(path, format, policy, told), "check", static _ => { }) is { } answer
            ? CheckReports.Read(answer.GetProperty("report"))
            : report!;
    }

    private static void Print(string path, CheckReport report)
    {
        foreach (CheckFinding finding in report.Findings)
        {
            string place = finding.Offset < 0 ? "" : $" at byte {finding.Offset}";
            Console.Out.WriteLine(Output.Safe(
                $"{CheckReports.SeverityName(finding.Severity)}: {finding.Structure}{place}: {finding.Message} (repair: {finding.Repair})"));
        }
        if (report.FindingsNotListed > 0) Console.Out.WriteLine($"... and {report.FindingsNotListed} more");
        if (report.CorruptionsFixed + report.LeaksFixed > 0)
            Console.Out.WriteLine($"repaired: {report.CorruptionsFixed} corrupt, {report.LeaksFixed} leaked");
        Console.Out.WriteLine($"{Output.Safe(path)}: {Summary(report)}");
        if (report.TotalClusters is > 0 and long total)
        {
            long allocated = report.AllocatedClusters ?? 0;
            Console.Out.WriteLine($"{allocated} of {total} clusters allocated ({100.0 * allocated / total:0.0} %)");
        }
    }

    /// <summary>The outcome in a few words: "clean", or what there is of corruption and leaks.</summary>
    public static string Summary(CheckReport report)
    {
        List<string> counts = [];
        if (report.CheckErrors > 0) counts.Add($"{report.CheckErrors} not checked");
        if (report.Corruptions > 0) counts.Add($"{report.Corruptions} corrupt");
        if (report.Leaks > 0) counts.Add($"{report.Leaks} leaked");
        return counts.Count == 0 ? "clean" : string.Join(", ", counts);
    }
}
