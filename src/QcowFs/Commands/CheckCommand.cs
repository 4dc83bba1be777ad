// qcowfs check: consistency of an image; changes nothing unless asked to repair.
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.Images;

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
            Nothing is changed without --repair, which wants an image that nobody uses.
            """,
    };

    private static int Run(ParsedLine line)
    {
        string path = line.Operands[0];
        string? format = ImageOptions.FormatOf(line);
        CheckReport report = Check(line, path, format);
        if (line.Has(ImageOptions.Json)) Output.WriteJson(json => Write(json, path, report));
        else Print(path, report);
        return report.ExitCode;
    }

    private static CheckReport Check(ParsedLine line, string path, string? format)
    {
        RepairMode? mode = !line.Has(Repair) ? null : line.Choice(Repair, "all", "leaks") == "leaks" ? RepairMode.Leaks : RepairMode.All;
        ReferencePolicy policy = ImageOptions.ReferencesOf(line);
        using ProgressLine? progress = ProgressLine.OnTerminal(mode is null ? "checking" : "repairing");
        Action<double>? report = progress is null ? null : progress.Report;
        return mode is null ? ImageOptions.Opener.Check(path, format, policy, report)
            : ImageOptions.Opener.Repair(path, mode.Value, format, policy, report);
    }

    private static void Print(string path, CheckReport report)
    {
        foreach (CheckFinding finding in report.Findings)
        {
            string place = finding.Offset < 0 ? "" : $" at byte {finding.Offset}";
            Console.Out.WriteLine(Output.Safe(
                $"{SeverityName(finding.Severity)}: {finding.Structure}{place}: {finding.Message} (repair: {finding.Repair})"));
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

    private static void Write(Utf8JsonWriter json, string path, CheckReport report)
    {
        json.WriteStartObject();
        json.WriteString("filename", path);
        json.WriteString("format", report.Format);
        json.WriteNumber("check-errors", report.CheckErrors);
        json.WriteNumber("corruptions", report.Corruptions);
        json.WriteNumber("leaks", report.Leaks);
        json.WriteNumber("corruptions-fixed", report.CorruptionsFixed);
        json.WriteNumber("leaks-fixed", report.LeaksFixed);
        WriteNumber(json, "image-end-offset", report.ImageEndOffset);
        WriteNumber(json, "total-clusters", report.TotalClusters);
        WriteNumber(json, "allocated-clusters", report.AllocatedClusters);
        WriteNumber(json, "compressed-clusters", report.CompressedClusters);
        json.WriteStartArray("findings");
        foreach (CheckFinding finding in report.Findings)
        {
            json.WriteStartObject();
            json.WriteString("kind", finding.Kind);
            json.WriteString("severity", SeverityName(finding.Severity));
            json.WriteString("structure", finding.Structure);
            json.WriteNumber("offset", finding.Offset);
            json.WriteString("message", finding.Message);
            json.WriteString("repair", finding.Repair);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteNumber("findings-not-listed", report.FindingsNotListed);
        json.WriteEndObject();
    }

    private static void WriteNumber(Utf8JsonWriter json, string key, long? value)
    {
        if (value is { } number) json.WriteNumber(key, number);
        else json.WriteNull(key);
    }

    private static string SeverityName(CheckSeverity severity) => severity switch
    {
        CheckSeverity.Leak => "leak",
        CheckSeverity.Harmless => "harmless",
        CheckSeverity.Corruption => "corruption",
        _ => "unchecked",
    };
}
