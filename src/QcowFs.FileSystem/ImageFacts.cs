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

    /// <summary>Counters of all the time that the mount exists; an image may have been closed and opened in between.</summary>
    public static byte[] Statistics(MountedImage image) => Make(json =>
    {
        ImageTotals done = image.Totals(out string? recovery);
        json.WriteStartObject();
        json.WriteBoolean("open", image.IsOpen);
        json.WriteNumber("opens", image.Opens);
        json.WriteString("data-path", image.DiskPath is { } path ? PathName(path) : null);
        json.WriteStartObject("snapshot-data-paths");
        foreach ((string snapshot, DataPath used) in image.SnapshotPaths()) json.WriteString(snapshot, PathName(used));
        json.WriteEndObject();
        WriteOperations(json, image.Load, done);
        json.WriteNumber("bytes-read", done.BytesRead);
        json.WriteNumber("bytes-written", done.BytesWritten);
        json.WriteNumber("bytes-discarded", done.BytesDiscarded);
        json.WriteNumber("bytes-copied", done.BytesCopied);
        json.WriteNumber("copy-on-write-amplification", Ratio(done.BytesWritten + done.BytesCopied, done.BytesWritten, whenNone: 1));
        json.WriteNumber("blocks-allocated", done.BlocksAllocated);
        json.WriteNumber("bytes-shared", done.BytesShared);
        WriteDedup(json, image.Dedup);
        json.WriteNumber("syncs", done.Syncs);
        json.WriteNumber("commits", done.Commits);
        WriteStream(json, image.Fill);
        json.WriteString("recovery", recovery);
        json.WriteString("failure", image.Failure);
        json.WriteEndObject();
    });

    private static void WriteOperations(Utf8JsonWriter json, ImageLoad load, in ImageTotals done)
    {
        long[][] histograms = [.. ImageLoad.Kinds.Select(load.Histogram)];
        long operations = 0;
        json.WriteStartObject("operations");
        foreach (LoadKind kind in ImageLoad.Kinds)
        {
            long count = histograms[(int)kind].Sum();
            operations += count;
            json.WriteNumber(KindName(kind), count);
        }
        json.WriteEndObject();
        // Hits cost nothing and are not counted one by one: they are the requests that needed no read of metadata.
        long hits = Math.Max(operations - done.MetadataReads, 0);
        json.WriteStartObject("metadata-cache");
        json.WriteNumber("misses", done.MetadataReads);
        json.WriteNumber("hits", hits);
        json.WriteNumber("hit-ratio", Ratio(hits, operations, whenNone: 1));
        json.WriteEndObject();
        json.WriteStartObject("latency");
        foreach (LoadKind kind in ImageLoad.Kinds)
        {
            json.WriteStartArray(KindName(kind));
            for (int bucket = 0; bucket < ImageLoad.Buckets; bucket++)
            {
                if (histograms[(int)kind][bucket] == 0) continue;
                json.WriteStartObject();
                if (bucket < ImageLoad.Buckets - 1) json.WriteNumber("below-microseconds", 1L << bucket);
                else json.WriteNull("below-microseconds");
                json.WriteNumber("count", histograms[(int)kind][bucket]);
                json.WriteEndObject();
            }
            json.WriteEndArray();
        }
        json.WriteEndObject();
    }

    private static string PathName(DataPath path) => path switch
    {
        DataPath.Passthrough => "passthrough",
        DataPath.ReflinkView => "reflink-view",
        _ => "server",
    };

    private static string KindName(LoadKind kind) => kind switch
    {
        LoadKind.Read => "read",
        LoadKind.Write => "write",
        LoadKind.Discard => "discard",
        _ => "sync",
    };

    private static double Ratio(long part, long whole, double whenNone) =>
        whole == 0 ? whenNone : Math.Round((double)part / whole, 4);

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
