// qcowfs snapshot: the internal snapshots of an image, mounted or not.
using QcowFs.CommandLine;
using QcowFs.FileSystem;
using QcowFs.Images;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Lists and edits internal snapshots.</summary>
internal static class SnapshotCommand
{
    public static Command Table { get; } = new(
        "snapshot", "list, create, apply or delete internal snapshots of an image",
        ["ACTION", "IMAGE", "[NAME]"], [ImageOptions.Format, ImageOptions.Json], Run)
    {
        Notes =
            """
            ACTION is one of:
              list     print the snapshots of IMAGE
              create   keep the disk as it is as the snapshot NAME
              apply    make the disk what it was when snapshot NAME was made: what was written since is lost
              delete   delete the snapshot NAME
            A snapshot is found by its name, or else by its id. A mount shows the disk of each as a file; "qcowfs mount
            --snapshot=NAME IMAGE MOUNTPOINT" shows that of one alone. An image that is mounted writable is changed by its
            server: to apply a snapshot nobody may have the disk open, to delete one nobody its file.
            """,
    };

    private static int Run(ParsedLine line) => line.Operands[0] switch
    {
        "list" => List(line),
        "create" => Edit(line, SnapshotAction.Create),
        "apply" => Edit(line, SnapshotAction.Apply),
        "delete" => Edit(line, SnapshotAction.Delete),
        string other => throw CommandFailure.Usage("ACTION", $"\"{other}\" is not one of its values", "use list, create, apply or delete"),
    };

    private static int Edit(ParsedLine line, SnapshotAction action)
    {
        if (line.Operands.Count < 3) throw CommandFailure.Usage("NAME", "missing", line.Command.HelpHint);
        if (line.Has(ImageOptions.Json)) throw CommandFailure.Usage(ImageOptions.Json.Display, "is for list only", "leave it out");
        string path = line.Operands[1];
        string name = line.Operands[2];
        ImageServers.Run(
            path,
            () => new ImageEditor(HostFileSystem.Instance, TimeProvider.System).EditSnapshot(path, ImageOptions.FormatOf(line), action, name),
            "snapshot",
            json =>
            {
                json.WriteString("action", line.Operands[0]);
                json.WriteString("name", name);
            });
        return ExitCode.Done;
    }

    private static int List(ParsedLine line)
    {
        if (line.Operands.Count > 2) throw CommandFailure.Usage(line.Operands[2], "one argument too many", line.Command.HelpHint);
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
