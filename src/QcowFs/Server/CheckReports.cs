// Check reports as JSON: what `qcowfs check --json` prints, and what a server answers.
using System.Text.Json;
using QcowFs.Images;

namespace QcowFs.Server;

/// <summary>Writes and reads check reports under the keys of PRODUCT section 2.</summary>
internal static class CheckReports
{
    /// <summary>Writes one object.</summary>
    public static void Write(Utf8JsonWriter json, string path, CheckReport report)
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

    /// <summary>Reads what <see cref="Write"/> wrote.</summary>
    public static CheckReport Read(JsonElement json)
    {
        List<CheckFinding> findings = [];
        foreach (JsonElement finding in json.GetProperty("findings").EnumerateArray())
        {
            findings.Add(new CheckFinding(
                Text(finding, "kind"), SeverityOf(Text(finding, "severity")), Text(finding, "structure"), Number(finding, "offset"),
                Text(finding, "message"), Text(finding, "repair")));
        }
        return new CheckReport
        {
            Format = Text(json, "format"),
            CheckErrors = Number(json, "check-errors"),
            Corruptions = Number(json, "corruptions"),
            Leaks = Number(json, "leaks"),
            CorruptionsFixed = Number(json, "corruptions-fixed"),
            LeaksFixed = Number(json, "leaks-fixed"),
            ImageEndOffset = NumberOrNull(json, "image-end-offset"),
            TotalClusters = NumberOrNull(json, "total-clusters"),
            AllocatedClusters = NumberOrNull(json, "allocated-clusters"),
            CompressedClusters = NumberOrNull(json, "compressed-clusters"),
            Findings = findings,
            FindingsNotListed = Number(json, "findings-not-listed"),
        };
    }

    private static string Text(JsonElement json, string key) => json.GetProperty(key).GetString()!;

    private static long Number(JsonElement json, string key) => json.GetProperty(key).GetInt64();

    private static long? NumberOrNull(JsonElement json, string key) =>
        json.GetProperty(key) is { ValueKind: JsonValueKind.Number } number ? number.GetInt64() : null;

    private static CheckSeverity SeverityOf(string name)
    {
        foreach (CheckSeverity severity in Enum.GetValues<CheckSeverity>())
            if (SeverityName(severity) == name) return severity;
        return CheckSeverity.Unchecked;
    }

    private static void WriteNumber(Utf8JsonWriter json, string key, long? value)
    {
        if (value is { } number) json.WriteNumber(key, number);
        else json.WriteNull(key);
    }

    /// <summary>A severity in one word.</summary>
    public static string SeverityName(CheckSeverity severity) => severity switch
    {
        CheckSeverity.Leak => "leak",
        CheckSeverity.Harmless => "harmless",
        CheckSeverity.Corruption => "corruption",
        _ => "unchecked",
    };
}
