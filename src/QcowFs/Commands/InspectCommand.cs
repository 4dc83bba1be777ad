// qcowfs inspect: what an image would make us open, before anything of it is opened.
using QcowFs.CommandLine;
using QcowFs.Images;

namespace QcowFs.Commands;

/// <summary>Lists the files and URLs that an image names.</summary>
internal static class InspectCommand
{
    public static Command Table { get; } = new(
        "inspect", "list every file or URL that the image would make us open, and whether policy allows it", ["IMAGE"],
        [ImageOptions.Format, ImageOptions.References, ImageOptions.Json], Run);

    private static int Run(ParsedLine line)
    {
        string path = line.Operands[0];
        IReadOnlyList<ImageReference> references = ImageOptions.Opener.Inspect(
            path, ImageOptions.FormatOf(line), ImageOptions.ReferencesOf(line));
        if (line.Has(ImageOptions.Json)) PrintJson(references);
        else if (references.Count == 0) Console.Out.WriteLine($"{Output.Safe(path)}: names no other file");
        else foreach (ImageReference reference in references) Print(reference);
        return ExitCode.Done;
    }

    private static void Print(ImageReference reference)
    {
        string verdict = reference.Refusal is { } refusal ? $"refused: {refusal}"
            : reference.Problem is { } problem ? $"allowed, but {problem}"
            : "allowed";
        string leads = reference.Path is { } path ? $" ({path})" : "";
        Console.Out.WriteLine(Output.Safe(
            $"{reference.Image}: {KindName(reference.Kind)} \"{reference.Name}\"{leads}, format {reference.Format ?? "not stated"}: {verdict}"));
    }

    private static void PrintJson(IReadOnlyList<ImageReference> references) => Output.WriteJson(json =>
    {
        json.WriteStartArray();
        foreach (ImageReference reference in references)
        {
            json.WriteStartObject();
            json.WriteString("image", reference.Image);
            json.WriteString("kind", KindName(reference.Kind));
            json.WriteString("name", reference.Name);
            json.WriteString("format", reference.Format);
            json.WriteString("path", reference.Path);
            json.WriteBoolean("allowed", reference.IsAllowed);
            json.WriteString("reason", reference.Refusal);
            json.WriteString("problem", reference.Problem);
            json.WriteEndObject();
        }
        json.WriteEndArray();
    });

    private static string KindName(ReferenceKind kind) => kind == ReferenceKind.Backing ? "backing" : "data-file";
}
