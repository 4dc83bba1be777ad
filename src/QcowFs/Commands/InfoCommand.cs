// qcowfs info: facts from the image's own file; nothing that the image names is opened, unless --chain asks for it.
using QcowFs.CommandLine;
using QcowFs.FileSystem;
using QcowFs.Images;

namespace QcowFs.Commands;

/// <summary>Prints facts about an image.</summary>
internal static class InfoCommand
{
    private static readonly Option Chain = new("chain", "also the images below it, as far as --allow-references lets");

    public static Command Table { get; } = new(
        "info", "show what an image is: format, sizes, backing file, features, snapshots, who has it open", ["IMAGE"],
        [Chain, ImageOptions.Format, ImageOptions.References, ImageOptions.Json], Run);

    private static int Run(ParsedLine line)
    {
        string path = line.Operands[0];
        string? format = ImageOptions.FormatOf(line);
        ReferencePolicy policy = ImageOptions.ReferencesOf(line);
        IReadOnlyList<ImageFileFacts> images = line.Has(Chain)
            ? ImageOptions.Opener.ReadChainInfo(path, format, policy)
            : [ImageOptions.Opener.ReadInfo(path, format)];
        if (!line.Has(ImageOptions.Json))
        {
            for (int i = 0; i < images.Count; i++) Print(images[i], isFirst: i == 0);
            return ExitCode.Done;
        }
        Output.WriteJson(json =>
        {
            if (line.Has(Chain)) json.WriteStartArray();
            foreach (ImageFileFacts image in images) InfoJson.Write(json, image);
            if (line.Has(Chain)) json.WriteEndArray();
        });
        return ExitCode.Done;
    }

    private static void Print(ImageFileFacts image, bool isFirst)
    {
        if (!isFirst) Console.Out.WriteLine();
        Line("image", image.Path);
        Line("format", image.Format);
        Line("virtual size", image.VirtualSize is { } size ? $"{Sizes.Describe(size)} ({size} bytes)" : "that of the image file's disk, which --chain opens");
        if (image.ActualSize is { } actual) Line("host space", Sizes.Describe(actual));
        if (image.ClusterSize is { } cluster) Line("cluster size", Sizes.Describe(cluster));
        if (image.BackingName is not null)
        {
            string leads = image.FullBackingName is { } full && full != image.BackingName ? $" ({full})" : "";
            Line("backing file", $"{image.BackingName}{leads}, format {image.BackingFormat ?? "not stated"}");
        }
        foreach (FormatFact fact in image.FormatSpecific) Line(fact.Key.Replace('-', ' '), Describe(fact.Value));
        foreach (SnapshotFacts snapshot in image.Snapshots)
        {
            string made = DateTimeOffset.FromUnixTimeSeconds(snapshot.DateSeconds).ToString("yyyy-MM-dd HH:mm:ss", null);
            Line("snapshot", $"{snapshot.Id}: {snapshot.Name}, made {made} UTC");
        }
        if (image.IsDirty) Line("dirty", "yes: it was not closed properly");
        if (image.Log is not null) Line("log", image.Log);
        if (image.Lock is { } holder) Line("open in", $"{holder.Holder}{(holder.Writes ? ", for writing" : "")}");
    }

    private static string Describe(object value) => value switch
    {
        string text => text,
        bool truth => truth ? "yes" : "no",
        IEnumerable<FormatFact> facts => "{" + string.Join(", ", facts.Select(f => $"{f.Key}: {Describe(f.Value)}")) + "}",
        System.Collections.IEnumerable list => string.Join(", ", list.Cast<object>().Select(Describe)),
        _ => value.ToString() ?? "",
    };

    private static void Line(string name, string value) => Console.Out.WriteLine($"{name + ":",-17} {Output.Safe(value)}");
}
