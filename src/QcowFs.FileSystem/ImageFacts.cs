// The contents of the fact files below .qcowfs/IMAGE. Keys are kebab-case and part of the contract.
using System.Buffers;
using System.Text.Json;
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>Makes the contents of fact files.</summary>
internal static class ImageFacts
{
    private static readonly JsonWriterOptions Indented = new() { Indented = true };

    // A map of a badly fragmented terabyte would fill memory; what lies beyond this is told in one coarse entry.
    internal const int MapLimit = 16 << 20;

    public static byte[] Info(ImageFileFacts facts) => Make(json => InfoJson.Write(json, facts));

    public static byte[] Map(IDiskImage disk, int limit = MapLimit) => Make(json =>
    {
        json.WriteStartArray();
        long end = 0;
        foreach (MapEntry entry in DiskMap.Entries(disk))
        {
            if (json.BytesCommitted + json.BytesPending > limit) break;
            DiskMap.Write(json, entry);
            end = entry.Offset + entry.Length;
        }
        if (end < disk.Length)
        {
            json.WriteStartObject();
            DiskMap.WriteFacts(json, new MapEntry(end, disk.Length - end, "data", -1, 0, null));
            json.WriteString("note", "this entry stands for all further extents of any kind; `qcowfs map` lists them");
            json.WriteEndObject();
        }
        json.WriteEndArray();
    });

    public static byte[] Statistics(MountedImage image) => Make(json =>
    {
        ImageStatistics done = image.Disk.Statistics;
        json.WriteStartObject();
        json.WriteNumber("opens", image.Opens);
        json.WriteNumber("bytes-read", done.BytesRead);
        json.WriteNumber("bytes-written", done.BytesWritten);
        json.WriteNumber("bytes-discarded", done.BytesDiscarded);
        json.WriteNumber("bytes-copied", done.BytesCopied);
        json.WriteNumber("blocks-allocated", done.BlocksAllocated);
        json.WriteNumber("bytes-shared", done.BytesShared);
        WriteDedup(json, done.Dedup);
        json.WriteNumber("syncs", done.Syncs);
        json.WriteNumber("commits", done.Commits);
        WriteStream(json, image.Disk.Fill);
        json.WriteString("recovery", image.Disk.Info.Recovery);
        json.WriteString("failure", image.Disk.Failure);
        json.WriteEndObject();
    });

    private static void WriteStream(Utf8JsonWriter json, FillProgress? fill)
    {
        if (fill is null)
        {
            json.WriteNull("stream");
            return;
        }
        json.WriteStartObject("stream");
        json.WriteString("state", fill.State switch
        {
            FillState.Running => "running",
            FillState.Waiting => "waiting for space",
            FillState.Done => "done",
            _ => "stopped",
        });
        json.WriteNumber("percent", fill.Percent);
        json.WriteNumber("position", fill.Position);
        json.WriteNumber("copied", fill.Copied);
        json.WriteNumber("rate", fill.Rate);
        json.WriteEndObject();
    }

    private static void WriteDedup(Utf8JsonWriter json, DedupStatistics? done)
    {
        if (done is null)
        {
            json.WriteNull("dedup");
            return;
        }
        json.WriteStartObject("dedup");
        json.WriteNumber("hashed", done.Hashed);
        json.WriteNumber("shared", done.Shared);
        json.WriteNumber("unchanged", done.Unchanged);
        json.WriteNumber("stale", done.Stale);
        json.WriteNumber("busy", done.Busy);
        json.WriteNumber("full", done.Full);
        json.WriteNumber("bypassed", done.Bypassed);
        json.WriteBoolean("bypassing", done.IsBypassing);
        json.WriteNumber("index-entries", done.IndexEntries());
        json.WriteNumber("index-memory", done.IndexMemory());
        json.WriteString("paused", done.Paused());
        json.WriteEndObject();
    }

    private static byte[] Make(Action<Utf8JsonWriter> write)
    {
        ArrayBufferWriter<byte> buffer = new();
        using (Utf8JsonWriter json = new(buffer, Indented)) write(json);
        buffer.Write("\n"u8);
        return buffer.WrittenSpan.ToArray();
    }
}
