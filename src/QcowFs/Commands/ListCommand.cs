// qcowfs list.
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.Native;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Lists our mounts and what they hold.</summary>
internal static class ListCommand
{
    public static Command Table { get; } = new("list", "list the mounts and what they hold", [], [ImageOptions.Json], Run);

    private static int Run(ParsedLine line)
    {
        uint uid = Libc.GetUserId();
        List<(MountEntry Mount, JsonDocument? Status)> found = [];
        foreach (MountEntry mount in MountTable.Read())
        {
            if (!mount.IsOurs || (uid != 0 && mount.UserId != uid)) continue;
            found.Add((mount, ControlClient.Ask(mount, json =>
            {
                json.WriteStartObject();
                json.WriteString("command", "status");
                json.WriteEndObject();
            })));
        }
        if (line.Has(ImageOptions.Json)) Output.WriteJson(json => WriteAll(json, found));
        else foreach ((MountEntry mount, JsonDocument? status) in found) Print(mount, status);
        foreach ((_, JsonDocument? status) in found) status?.Dispose();
        return ExitCode.Done;
    }

    private static void WriteAll(Utf8JsonWriter json, List<(MountEntry Mount, JsonDocument? Status)> found)
    {
        json.WriteStartArray();
        foreach ((MountEntry mount, JsonDocument? status) in found)
        {
            json.WriteStartObject();
            json.WriteString("mountpoint", HostText.Show(mount.MountPoint));
            json.WriteString("source", HostText.Show(mount.Source));
            json.WriteString("state", status is null ? "dead" : "mounted");
            if (status is not null)
            {
                foreach (JsonProperty fact in status.RootElement.EnumerateObject()) fact.WriteTo(json);
            }
            json.WriteEndObject();
        }
        json.WriteEndArray();
    }

    private static void Print(MountEntry mount, JsonDocument? status)
    {
        if (status is null || status.RootElement.TryGetProperty("failure", out _))
        {
            Console.Out.WriteLine(Output.Safe($"{mount.MountPoint}  {mount.Source}  its server does not answer"));
            return;
        }
        JsonElement facts = status.RootElement;
        string access = facts.GetProperty("writable").GetBoolean() ? "writable" : "read-only";
        string server = $"pid {facts.GetProperty("pid").GetInt32()}{(facts.GetProperty("frozen").GetBoolean() ? "  FROZEN" : "")}";
        JsonElement images = facts.GetProperty("images");
        if (facts.GetProperty("directory").GetBoolean())
        {
            Console.Out.WriteLine(Output.Safe($"{mount.MountPoint}  {mount.Source}  {images.GetArrayLength()} images  {access}  {server}"));
            foreach (JsonElement image in images.EnumerateArray())
                if (Describe(image) is { } line) Console.Out.WriteLine(Output.Safe($"  {image.GetProperty("name").GetString()}  {line}"));
            return;
        }
        foreach (JsonElement image in images.EnumerateArray())
        {
            string failure = image.GetProperty("failure").GetString() is { } text ? $"  FAILED: {text}" : "";
            Console.Out.WriteLine(Output.Safe(
                $"{mount.MountPoint}  {mount.Source}  {image.GetProperty("format").GetString()}  "
                + $"{Sizes.Describe(image.GetProperty("virtual-size").GetInt64())}  {access}  "
                + $"{image.GetProperty("opens").GetInt32()} open  {server}{failure}"));
        }
    }

    /// <summary>An image of a directory in a few words; null where nobody uses it and nothing is wrong with it.</summary>
    private static string? Describe(JsonElement image)
    {
        string? wrong = image.GetProperty("failure").GetString() ?? image.GetProperty("error").GetString();
        if (!image.GetProperty("open").GetBoolean() && wrong is null) return null;
        string held = image.GetProperty("open").GetBoolean()
            ? $"{image.GetProperty("format").GetString()}  {Sizes.Describe(image.GetProperty("virtual-size").GetInt64())}  {image.GetProperty("opens").GetInt32()} open"
            : "not open";
        return held + (wrong is null ? "" : $"  FAILED: {wrong}");
    }
}
