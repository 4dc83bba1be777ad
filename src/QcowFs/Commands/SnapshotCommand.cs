// qcowfs snapshot: the internal snapshots of an image that is not in use by another process.
using QcowFs.CommandLine;
using QcowFs.FileSystem;
using QcowFs.Images;

namespace QcowFs.Commands;

/// <summary>Lists internal snapshots.</summary>
internal static class SnapshotCommand
{
    public static Command Table { get; } = new(
        "snapshot", "list the internal snapshots of an image", ["ACTION", "IMAGE"], [ImageOptions.Format, ImageOptions.Json], Run)
    {
        Notes =
            """
            ACTION: list, the snapshots of IMAGE.
            "qcowfs mount --snapshot=NAME IMAGE MOUNTPOINT" shows a snapshot's disk.
            """,
    };

    private static int Run(ParsedLine line) => line.Operands[0] switch
    {
        "list" => List(line),
        string other => throw CommandFailure.Usage("ACTION", $"\"{other}\" is not one of its values", "use list"),
    };

    private static int List(ParsedLine line)
    {
        IReadOnlyList<SnapshotFacts> snapshots = ImageOptions.Opener.ReadInfo(line.Operands[1], ImageOptions.FormatOf(line)).Snapshots;
        if (line.Has(ImageOptions.Json))
        {
            Output.WriteJson(json => InfoJson.WriteSnapshots(json, snapshots));
            return ExitCode.Done;
        }
        if (snapshots.Count > 0) Console.Out.WriteLine(Row("ID", "Made (UTC)", "Disk", "VM state", "Name"));
        foreach (SnapshotFacts snapshot in snapshots)
        {
            string made = DateTimeOffset.FromUnixTimeSeconds(snapshot.DateSeconds).ToString("yyyy-MM-dd HH:mm:ss", null);
            string disk = snapshot.VirtualSize is { } size ? Sizes.Describe(size) : "";
            string state = Sizes.Describe((long)Math.Min(snapshot.VmStateSize, long.MaxValue));
            Console.Out.WriteLine(Row(Output.Safe(snapshot.Id), made, disk, state, Output.Safe(snapshot.Name)));
        }
        return ExitCode.Done;
    }

    private static string Row(string id, string made, string disk, string state, string name) =>
        $"{id,-6} {made,-19}  {disk,-10} {state,-10} {name}".TrimEnd();
}
