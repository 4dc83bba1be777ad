// qcowfs sync: everything acknowledged so far becomes durable; for a snapshot of the image's file by the host, writes are held.
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Commits, freezes, thaws.</summary>
internal static class SyncCommand
{
    private static readonly Option Freeze = new("freeze", "complete the image files and hold writes until --thaw");
    private static readonly Option Thaw = new("thaw", "let writes go on");

    public static Command Table { get; } = new(
        "sync", "make everything written so far durable; hold writes while the image files are copied", ["MOUNTPOINT"], [Freeze, Thaw], Run)
    {
        Notes =
            """
            Frozen, an image file is as after an unmount, and stays so: writers and fsync of new data wait, readers go on.
            Copy or snapshot the file on the host, then give --thaw. SIGTERM and "qcowfs umount --lazy" thaw too.
            """,
    };

    private static int Run(ParsedLine line)
    {
        if (line.Has(Freeze) && line.Has(Thaw)) throw CommandFailure.Usage(Thaw.Display, "contradicts --freeze", "give one of them");
        string given = line.Operands[0];
        MountEntry mount = OurMounts.At(given);
        using JsonDocument? answer = ControlClient.Ask(mount, json =>
        {
            json.WriteStartObject();
            json.WriteString("command", "sync");
            json.WriteString("path", given);
            json.WriteString("state", line.Has(Freeze) ? "freeze" : line.Has(Thaw) ? "thaw" : "");
            json.WriteEndObject();
        });
        if (answer is null) throw new CommandFailure(given, "its server does not answer", $"run \"qcowfs umount {given}\"");
        if (answer.RootElement.TryGetProperty("failure", out JsonElement failure)) throw new ServerFailure(failure.GetString()!);
        return ExitCode.Done;
    }
}
