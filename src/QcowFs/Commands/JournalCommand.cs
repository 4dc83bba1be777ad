// qcowfs journal: what the journal of an image holds, and what a replay would do with it. Nothing is changed.
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.Images;

namespace QcowFs.Commands;

/// <summary>Shows an image's journal.</summary>
internal static class JournalCommand
{
    public static Command Table { get; } = new(
        "journal", "show the journal of an image that was not closed: records, ranges, what a replay would do", ["IMAGE"],
        [ImageOptions.Format, ImageOptions.Json], Run);

    private static int Run(ParsedLine line)
    {
        string path = line.Operands[0];
        JournalFacts? journal = ImageOptions.Opener.ReadJournal(path, ImageOptions.FormatOf(line));
        if (line.Has(ImageOptions.Json)) Output.WriteJson(json => Write(json, path, journal));
        else if (journal is null) Console.Out.WriteLine($"{Output.Safe(path)}: no journal; nothing waits to be replayed");
        else Print(journal);
        return ExitCode.Done;
    }

    private static void Print(JournalFacts journal)
    {
        Console.Out.WriteLine(
            $"{Output.Safe(journal.Path)}: {journal.Records.Count} records in {Sizes.Describe(journal.Ring.Length)} at byte {journal.Ring.Offset}");
        if (journal.Records.Count > 0)
            Console.Out.WriteLine($"{"Record",-12}{"Kind",-9}{"At byte",-16}{"Length",-10}{"Writes",-9}{"Revokes",-9}{"Checks",-9}Verdict");
        foreach (JournalRecordFacts record in journal.Records)
        {
            string checks = record.DataIsDurable ? "durable" : record.Checks.Count.ToString();
            Console.Out.WriteLine(
                $"{record.Sequence,-12}{record.Kind,-9}{record.Place.Offset,-16}{record.Place.Length,-10}{record.Writes.Count,-9}"
                + $"{record.Revokes.Count,-9}{checks,-9}{record.Verdict}");
        }
        Console.Out.WriteLine($"a replay: {journal.Summary}");
        Console.Out.WriteLine("mount -w and check --repair replay it; mounts without -w and check read through it");
    }

    private static void Write(Utf8JsonWriter json, string path, JournalFacts? journal)
    {
        json.WriteStartObject();
        json.WriteString("filename", path);
        json.WriteBoolean("present", journal is not null);
        if (journal is not null)
        {
            json.WriteNumber("ring-offset", journal.Ring.Offset);
            json.WriteNumber("ring-size", journal.Ring.Length);
            json.WriteNumber("confirmed", journal.Confirmed);
            json.WriteBoolean("after-kill", journal.AfterKill);
            json.WriteString("summary", journal.Summary);
            json.WriteStartArray("records");
            foreach (JournalRecordFacts record in journal.Records) Write(json, record);
            json.WriteEndArray();
        }
        json.WriteEndObject();
    }

    private static void Write(Utf8JsonWriter json, JournalRecordFacts record)
    {
        json.WriteStartObject();
        json.WriteNumber("sequence", record.Sequence);
        json.WriteString("kind", record.Kind);
        json.WriteNumber("offset", record.Place.Offset);
        json.WriteNumber("length", record.Place.Length);
        json.WriteNumber("confirms", record.Confirms);
        json.WriteBoolean("data-durable", record.DataIsDurable);
        json.WriteString("verdict", record.Verdict);
        Write(json, "writes", record.Writes);
        Write(json, "revokes", record.Revokes);
        Write(json, "checks", record.Checks);
        json.WriteEndObject();
    }

    private static void Write(Utf8JsonWriter json, string name, IReadOnlyList<FileRange> ranges)
    {
        json.WriteStartArray(name);
        foreach (FileRange range in ranges)
        {
            json.WriteStartObject();
            json.WriteNumber("offset", range.Offset);
            json.WriteNumber("length", range.Length);
            json.WriteEndObject();
        }
        json.WriteEndArray();
    }
}
