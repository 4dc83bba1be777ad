// Facts about an image as JSON: `qcowfs info --json` and info.json, under the keys that qemu-img has for them, plus ours.
using System.Text.Json;
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>Writes image facts. Keys of facts that an image does not have are left out, as qemu-img does; `log` and `lock`, which
/// are ours, are always there.</summary>
public static class InfoJson
{
    /// <summary>Writes one object.</summary>
    public static void Write(Utf8JsonWriter json, ImageFileFacts facts)
    {
        json.WriteStartObject();
        json.WriteString("filename", facts.Path);
        json.WriteString("format", facts.Format);
        if (facts.VirtualSize is { } size) json.WriteNumber("virtual-size", size);
        else json.WriteNull("virtual-size");
        if (facts.ActualSize is { } actual) json.WriteNumber("actual-size", actual);
        if (facts.ClusterSize is { } cluster) json.WriteNumber("cluster-size", cluster);
        if (facts.BackingName is not null) json.WriteString("backing-filename", facts.BackingName);
        if (facts.FullBackingName is not null) json.WriteString("full-backing-filename", facts.FullBackingName);
        if (facts.BackingFormat is not null) json.WriteString("backing-filename-format", facts.BackingFormat);
        if (facts.Snapshots.Count > 0)
        {
            json.WritePropertyName("snapshots");
            WriteSnapshots(json, facts.Snapshots);
        }
        if (facts.FormatSpecific.Count > 0)
        {
            json.WriteStartObject("format-specific");
            json.WriteString("type", facts.Format);
            json.WriteStartObject("data");
            WriteFacts(json, facts.FormatSpecific);
            json.WriteEndObject();
            json.WriteEndObject();
        }
        json.WriteBoolean("dirty-flag", facts.IsDirty);
        json.WriteString("log", facts.Log);
        WriteLock(json, facts.Lock);
        json.WriteEndObject();
    }

    private static void WriteLock(Utf8JsonWriter json, LockFacts? facts)
    {
        if (facts is null)
        {
            json.WriteNull("lock");
            return;
        }
        json.WriteStartObject("lock");
        json.WriteString("holder", facts.Holder);
        json.WriteBoolean("writes", facts.Writes);
        json.WriteEndObject();
    }

    /// <summary>Writes an array of snapshots under qemu-img's keys.</summary>
    public static void WriteSnapshots(Utf8JsonWriter json, IReadOnlyList<SnapshotFacts> snapshots)
    {
        const ulong nanosecondsPerSecond = 1_000_000_000;
        json.WriteStartArray();
        foreach (SnapshotFacts snapshot in snapshots)
        {
            json.WriteStartObject();
            json.WriteString("id", snapshot.Id);
            json.WriteString("name", snapshot.Name);
            json.WriteNumber("vm-state-size", snapshot.VmStateSize);
            json.WriteNumber("date-sec", snapshot.DateSeconds);
            json.WriteNumber("date-nsec", snapshot.DateNanoseconds);
            json.WriteNumber("vm-clock-sec", snapshot.VmClockNanoseconds / nanosecondsPerSecond);
            json.WriteNumber("vm-clock-nsec", snapshot.VmClockNanoseconds % nanosecondsPerSecond);
            if (snapshot.Icount is { } icount) json.WriteNumber("icount", icount);
            if (snapshot.VirtualSize is { } size) json.WriteNumber("disk-size", size);
            json.WriteEndObject();
        }
        json.WriteEndArray();
    }

    private static void WriteFacts(Utf8JsonWriter json, IEnumerable<FormatFact> facts)
    {
        foreach (FormatFact fact in facts)
        {
            json.WritePropertyName(fact.Key);
            WriteValue(json, fact.Value);
        }
    }

    private static void WriteValue(Utf8JsonWriter json, object value)
    {
        switch (value)
        {
            case string text:
                json.WriteStringValue(text);
                break;
            case bool truth:
                json.WriteBooleanValue(truth);
                break;
            case long number:
                json.WriteNumberValue(number);
                break;
            case double real:
                json.WriteNumberValue(real);
                break;
            case IEnumerable<FormatFact> facts:
                json.WriteStartObject();
                WriteFacts(json, facts);
                json.WriteEndObject();
                break;
            case System.Collections.IEnumerable list:
                json.WriteStartArray();
                foreach (object entry in list) WriteValue(json, entry);
                json.WriteEndArray();
                break;
            default:
                json.WriteStringValue(value.ToString());
                break;
        }
    }
}
