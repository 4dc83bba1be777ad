// qcowfs resize.
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.Images;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Gives a disk another size.</summary>
internal static class ResizeCommand
{
    private static readonly Option Shrink = new("shrink", "allow a smaller size: what lies past it is lost");

    public static Command Table { get; } = new(
        "resize", "give the disk of an image another size", ["IMAGE", "[+|-]SIZE"],
        [Shrink, ImageOptions.Format, ImageOptions.References], Run)
    {
        Notes =
            """
            With + or - the disk becomes larger or smaller by SIZE. New bytes read as zeros. The disk of a mounted image is
            changed by its server, while programs have it open; a loop device on it learns of it by "losetup -c".
            """,
    };

    private static int Run(ParsedLine line)
    {
        OpenOptions options = new() { Format = ImageOptions.FormatOf(line), References = ImageOptions.ReferencesOf(line) };
        string path = line.Operands[0];
        SizeChange change = Parse(line.Operands[1]);
        bool mayShrink = line.Has(Shrink);
        long size = 0;
        JsonElement? answer = ImageServers.Run(
            path,
            () => size = new ImageEditor(HostFileSystem.Instance, TimeProvider.System).Resize(path, options, change, mayShrink),
            "resize",
            json =>
            {
                json.WriteNumber("bytes", change.Bytes);
                json.WriteNumber("sign", change.Sign);
                json.WriteBoolean("shrink", mayShrink);
            });
        if (answer is { } done) size = done.GetProperty("size").GetInt64();
        Console.Out.WriteLine($"{Output.Safe(path)}: the disk has {Sizes.Describe(size)} ({size} bytes)");
        return ExitCode.Done;
    }

    private static SizeChange Parse(string text)
    {
        int sign = text.StartsWith('+') ? 1 : text.StartsWith('-') ? -1 : 0;
        return Sizes.TryParse(sign == 0 ? text : text[1..], out long bytes)
            ? new SizeChange(bytes, sign)
            : throw CommandFailure.Usage("SIZE", $"\"{text}\" is not a size", "give a number of bytes, or one with k, M, G or T");
    }
}
