// qcowfs dedup: what deduplication would save, deduplicating an image in place, what is shared, and the end of it.
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.Images;

namespace QcowFs.Commands;

/// <summary>Deduplication of images that are not mounted.</summary>
internal static class DedupCommand
{
    public static Command Table { get; } = new(
        "dedup", "estimate, scan, show, rebuild or end deduplication", ["ACTION", "IMAGE", "[IMAGE...]"],
        [ImageOptions.Format, ImageOptions.References, .. DedupOptions.All, ImageOptions.Json], Run)
    {
        Notes =
            """
            ACTION is one of:
              estimate  say what sharing equal clusters would save, for each cluster size, over all IMAGEs together;
                        nothing is changed
              scan      find equal clusters of IMAGE and store them once; interrupted, it goes on where it was
              status    say what is shared in IMAGE, and what its index holds
              rebuild   make the index IMAGE.dedup anew from what IMAGE holds; nothing is shared
              off       remove the index; what is shared stays shared
            "qcowfs mount -w --dedup" shares equal clusters as they are written. The image stays a plain qcow2.
            """,
    };

    private static ImageDeduplicator Deduplicator => new(HostFileSystem.Instance);

    private static int Run(ParsedLine line)
    {
        string action = line.Operands[0];
        if (action != "estimate" && line.Operands.Count > 2)
            throw CommandFailure.Usage(line.Operands[2], "one argument too many", line.Command.HelpHint);
        return action switch
        {
            "estimate" => Estimate(line),
            "scan" => Scan(line, share: true),
            "status" => Status(line),
            "rebuild" => Scan(line, share: false),
            "off" => TurnOff(line),
            _ => throw CommandFailure.Usage("ACTION", $"\"{action}\" is not one of its values", "use estimate, scan, status, rebuild or off"),
        };
    }

    private static int Estimate(ParsedLine line)
    {
        SavingsEstimate estimate = new();
        foreach (string path in line.Operands.Skip(1))
        {
            using IDiskImage image = ImageOptions.Opener.Open(path, OptionsOf(line));
            using ProgressLine? progress = ProgressLine.OnTerminal(Output.Safe(path));
            estimate.Add(image, done => progress?.Report(done, image.Length));
        }
        if (line.Has(ImageOptions.Json)) Output.WriteJson(json => WriteEstimate(json, estimate));
        else PrintEstimate(estimate);
        return ExitCode.Done;
    }

    private static void PrintEstimate(SavingsEstimate estimate)
    {
        Console.Out.WriteLine($"{"Clusters of",-13}{"Stored now",12}{"Shared",12}{"Zeros",12}{"Saved",12}");
        foreach (SavingsRow row in estimate.Rows)
        {
            long zeros = row.ZeroClusters * row.ClusterSize;
            string percent = row.BytesNow == 0 ? "" : string.Create(CultureInfo.InvariantCulture, $"{100.0 * row.BytesSaved / row.BytesNow,7:0.0} %");
            Console.Out.WriteLine(
                $"{Sizes.Describe(row.ClusterSize),-13}{Sizes.Describe(row.BytesNow),12}{Sizes.Describe(row.BytesSaved - zeros),12}"
                + $"{Sizes.Describe(zeros),12}{Sizes.Describe(row.BytesSaved),12}{percent}{(row.IsExact ? "" : "  (estimated)")}");
        }
    }

    private static void WriteEstimate(Utf8JsonWriter json, SavingsEstimate estimate)
    {
        json.WriteStartArray();
        foreach (SavingsRow row in estimate.Rows)
        {
            json.WriteStartObject();
            json.WriteNumber("cluster-size", row.ClusterSize);
            json.WriteNumber("clusters", row.Clusters);
            json.WriteNumber("zero-clusters", row.ZeroClusters);
            json.WriteNumber("distinct-clusters", row.DistinctClusters);
            json.WriteBoolean("exact", row.IsExact);
            json.WriteNumber("bytes-now", row.BytesNow);
            json.WriteNumber("bytes-then", row.BytesThen);
            json.WriteNumber("bytes-saved", row.BytesSaved);
            json.WriteEndObject();
        }
        json.WriteEndArray();
    }

    private static int Scan(ParsedLine line, bool share)
    {
        string path = line.Operands[1];
        using ProgressLine? progress = ProgressLine.OnTerminal(Output.Safe(path));
        bool stopped = false;
        void Stop(PosixSignalContext context)
        {
            context.Cancel = true; // ends after the block at hand, durably
            Volatile.Write(ref stopped, true);
        }
        using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop);
        using PosixSignalRegistration terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop);
        OpenOptions options = OptionsOf(line) with
        {
            Writable = true,
            Dedup = DedupOptions.From(line) with { BeginsAnew = !share },
            Log = text => Console.Error.WriteLine($"qcowfs: {text}"),
        };
        DedupScanResult result = Deduplicator.Scan(path, options, share, (done, all) =>
        {
            progress?.Report(done, all);
            return !Volatile.Read(ref stopped);
        });
        progress?.Dispose();
        if (line.Has(ImageOptions.Json)) Output.WriteJson(json => WriteScan(json, path, result));
        else PrintScan(path, result, share);
        return result.StoppedAt < 0 ? ExitCode.Done : ExitCode.Failed;
    }

    private static void PrintScan(string path, DedupScanResult result, bool share)
    {
        string done = share
            ? $"{Sizes.Describe(result.Looked)} read, {Sizes.Describe(result.Shared)} shared, {Sizes.Describe(result.Zeroed)} of zeros given up"
            : $"{Sizes.Describe(result.Looked)} indexed";
        string end = result.StoppedAt < 0 ? "" : $"; interrupted at {Sizes.Describe(result.StoppedAt)}, run it again to go on";
        Console.Out.WriteLine($"{Output.Safe(path)}: {done}{end}");
    }

    private static void WriteScan(Utf8JsonWriter json, string path, DedupScanResult result)
    {
        json.WriteStartObject();
        json.WriteString("filename", path);
        json.WriteNumber("bytes-read", result.Looked);
        json.WriteNumber("bytes-shared", result.Shared);
        json.WriteNumber("bytes-zeroed", result.Zeroed);
        json.WriteBoolean("complete", result.StoppedAt < 0);
        json.WriteString("paused", result.Paused);
        json.WriteEndObject();
    }

    private static int Status(ParsedLine line)
    {
        string path = line.Operands[1];
        DedupStatus status = Deduplicator.ReadStatus(path, ImageOptions.FormatOf(line));
        if (line.Has(ImageOptions.Json)) Output.WriteJson(json => WriteStatus(json, path, status));
        else PrintStatus(path, status);
        return ExitCode.Done;
    }

    private static void PrintStatus(string path, DedupStatus status)
    {
        Console.Out.WriteLine($"{Output.Safe(path)}: {status.SharedBlocks} shared clusters of {Sizes.Describe(status.BlockSize)}, {Sizes.Describe(status.BytesSaved)} saved");
        if (status.IndexSize is not { } size)
        {
            Console.Out.WriteLine("index:      none");
            return;
        }
        string hits = status.Hashed == 0 ? "" : string.Create(CultureInfo.InvariantCulture, $" ({100.0 * status.Hits / status.Hashed:0.0} %)");
        Console.Out.WriteLine($"index:      {status.Entries} entries, {DedupOptions.NameOf(status.Hash ?? DedupHash.Xxh3)}, {Sizes.Describe(status.IndexActualSize)} on the host (file of {Sizes.Describe(size)})");
        Console.Out.WriteLine($"hit rate:   {status.Hits} of {status.Hashed} clusters hashed{hits}");
        Console.Out.WriteLine($"belongs to: {(status.IsBound ? "the image as it is" : "an earlier state of the image, or it is in use now")}");
        if (status.ScanOffset > 0) Console.Out.WriteLine($"scan:       interrupted at {Sizes.Describe(status.ScanOffset)}");
    }

    private static void WriteStatus(Utf8JsonWriter json, string path, DedupStatus status)
    {
        json.WriteStartObject();
        json.WriteString("filename", path);
        json.WriteNumber("cluster-size", status.BlockSize);
        json.WriteNumber("shared-clusters", status.SharedBlocks);
        json.WriteNumber("bytes-saved", status.BytesSaved);
        if (status.IndexSize is { } size)
        {
            json.WriteStartObject("index");
            json.WriteNumber("size", size);
            json.WriteNumber("actual-size", status.IndexActualSize);
            json.WriteString("hash", DedupOptions.NameOf(status.Hash ?? DedupHash.Xxh3));
            json.WriteNumber("entries", status.Entries);
            json.WriteNumber("hashed", status.Hashed);
            json.WriteNumber("hits", status.Hits);
            json.WriteBoolean("bound", status.IsBound);
            json.WriteNumber("scan-offset", status.ScanOffset);
            json.WriteEndObject();
        }
        else
        {
            json.WriteNull("index");
        }
        json.WriteEndObject();
    }

    private static int TurnOff(ParsedLine line)
    {
        string path = line.Operands[1];
        bool existed = Deduplicator.TurnOff(path, OptionsOf(line));
        Console.Out.WriteLine($"{Output.Safe(path)}: {(existed ? "the index is removed" : "there was no index")}; what is shared stays shared");
        return ExitCode.Done;
    }

    private static OpenOptions OptionsOf(ParsedLine line) => new()
    {
        Format = ImageOptions.FormatOf(line),
        References = ImageOptions.ReferencesOf(line),
    };
}
