// qcowfs map: where a disk's bytes are.
using QcowFs.CommandLine;
using QcowFs.FileSystem;
using QcowFs.Images;

namespace QcowFs.Commands;

/// <summary>Prints the extents of a disk.</summary>
internal static class MapCommand
{
    public static Command Table { get; } = new(
        "map", "list the extents of a disk: what holds data, and where", ["IMAGE"],
        [ImageOptions.Format, ImageOptions.References, ImageOptions.Json], Run);

    private static int Run(ParsedLine line)
    {
        using IDiskImage disk = ImageOptions.Opener.Open(line.Operands[0], new OpenOptions
        {
            Format = ImageOptions.FormatOf(line),
            References = ImageOptions.ReferencesOf(line),
        });
        if (line.Has(ImageOptions.Json))
        {
            Output.WriteJson(json =>
            {
                json.WriteStartArray();
                foreach (MapEntry entry in DiskMap.Entries(disk)) DiskMap.Write(json, entry);
                json.WriteEndArray();
            });
            return ExitCode.Done;
        }
        Console.Out.WriteLine($"{"Offset",-18}{"Length",-18}{"Kind",-12}{"Host offset",-18}{"Depth",-7}File");
        foreach (MapEntry entry in DiskMap.Entries(disk))
        {
            string host = entry.HostOffset < 0 ? "" : entry.HostOffset.ToString();
            Console.Out.WriteLine(
                $"{entry.Offset,-18}{entry.Length,-18}{entry.Kind,-12}{host,-18}{entry.Depth,-7}{Output.Safe(entry.File ?? "")}".TrimEnd());
        }
        return ExitCode.Done;
    }
}
