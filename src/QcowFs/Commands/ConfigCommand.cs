// qcowfs config: which settings are in effect, and where each was stated.
using QcowFs.CommandLine;
using QcowFs.Settings;

namespace QcowFs.Commands;

/// <summary>Prints the effective settings.</summary>
internal static class ConfigCommand
{
    public static Command Table { get; } = new(
        "config", "print the settings in effect and where each comes from", [], [ImageOptions.Json, .. SettingSources.Known], Run)
    {
        Notes =
            """
            Settings are defaults of the options of the same names. In this order, later ones win: built-in defaults,
            /etc/qcowfs/qcowfs.json, $XDG_CONFIG_HOME/qcowfs/qcowfs.json (else ~/.config), variables such as
            QCOWFS_CACHE_SIZE, the command line. A file is one JSON object: { "cache-size": "64M", "allow-other": true }.
            On the command line --allow-other=false takes back what settings say.
            """,
    };

    private static int Run(ParsedLine line)
    {
        SettingSources sources = SettingSources.OfThisProcess();
        List<StatedSetting> stated = sources.HasAny() ? SettingReader.Read(sources) : [];
        List<(string Name, string Value, string Source)> rows = [];
        foreach (Option option in SettingSources.Known) rows.Add(Effective(line, option, stated.Find(s => s.Option == option)));
        if (line.Has(ImageOptions.Json)) WriteJson(rows, sources);
        else Print(rows);
        return ExitCode.Done;
    }

    private static (string Name, string Value, string Source) Effective(ParsedLine line, Option option, StatedSetting? stated)
    {
        string value = option.Value == OptionValue.None ? line.Has(option) ? "true" : "false" : line.Value(option) ?? SettingSources.Defaults[option];
        string source = line.IsFromSettings(option) || (stated is { IsOff: true } && !line.IsStated(option)) ? stated!.Origin
            : line.IsStated(option) ? "command line" : "default";
        return (option.Name, value, source);
    }

    private static void Print(List<(string Name, string Value, string Source)> rows)
    {
        int name = rows.Max(r => r.Name.Length);
        int value = rows.Max(r => r.Value.Length);
        foreach ((string n, string v, string source) in rows)
            Console.Out.WriteLine($"{n.PadRight(name)}  {Output.Safe(v).PadRight(value)}  {Output.Safe(source)}");
    }

    private static void WriteJson(List<(string Name, string Value, string Source)> rows, SettingSources sources) => Output.WriteJson(json =>
    {
        json.WriteStartObject();
        json.WriteStartArray("settings");
        foreach ((string name, string value, string source) in rows)
        {
            json.WriteStartObject();
            json.WriteString("name", name);
            json.WriteString("value", value);
            json.WriteString("source", source);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteStartArray("files");
        foreach (string? file in (string?[])[sources.SystemFile, sources.UserFile])
        {
            if (file is null) continue;
            json.WriteStartObject();
            json.WriteString("path", file);
            json.WriteBoolean("exists", File.Exists(file));
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteEndObject();
    });
}
