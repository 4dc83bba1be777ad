// Reads settings by Microsoft.Extensions.Configuration and judges them: unknown keys, wrong types and wrong values end the command,
// in a line that names the file and the key.
using System.Text.Json;
using Microsoft.Extensions.Configuration;
using QcowFs.CommandLine;
using QcowFs.Commands;
using QcowFs.Server;

namespace QcowFs.Settings;

/// <summary>Reads the sources.</summary>
internal static class SettingReader
{
    /// <summary>What the sources state, one entry for an option, that of the last source that states it. Every source is judged as a
    /// whole. Faults: <see cref="CommandFailure"/>.</summary>
    public static List<StatedSetting> Read(SettingSources sources)
    {
        ConfigurationBuilder builder = new();
        List<string?> origins = []; // of the providers, in their order; null: variables
        foreach (string? file in (string?[])[sources.SystemFile, sources.UserFile])
        {
            if (file is null || !File.Exists(file)) continue;
            RequireReadable(file);
            builder.Add(new JsonText(file));
            origins.Add(file);
        }
        builder.AddEnvironmentVariables(SettingSources.VariablePrefix);
        origins.Add(null);
        IConfigurationRoot root = Build(builder);
        List<IConfigurationProvider> providers = [.. root.Providers];
        List<StatedSetting> all = [];
        for (int i = 0; i < providers.Count; i++)
        {
            if (origins[i] is { } file) RequireKnownKeys(providers[i], file);
            List<StatedSetting> own = [.. SettingSources.Known.Select(o => Find(providers[i], o, origins[i])).OfType<StatedSetting>()];
            Judge(own);
            all.RemoveAll(setting => own.Exists(o => o.Option == setting.Option));
            all.AddRange(own);
        }
        return all;
    }

    private static IConfigurationRoot Build(ConfigurationBuilder builder)
    {
        try
        {
            return builder.Build();
        }
        catch (Exception fault) when (fault.Data["file"] is string file)
        {
            throw new CommandFailure(file, $"the settings cannot be read: {fault.Message.TrimEnd('.')}", "correct the file");
        }
    }

    private static void RequireReadable(string file)
    {
        try
        {
            File.OpenRead(file).Dispose();
        }
        catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
        {
            throw new CommandFailure(file, "the settings cannot be read: permission denied", "let the file be read, or remove it");
        }
    }

    private static void RequireKnownKeys(IConfigurationProvider provider, string file)
    {
        foreach (string key in provider.GetChildKeys([], null).Distinct(StringComparer.OrdinalIgnoreCase))
        {
            Option? option = Array.Find(SettingSources.Known, o => NameOf(key) == o.Name);
            if (option is not null)
            {
                if (provider.GetChildKeys([], key).Any())
                    throw new CommandFailure($"{file}: {key}", "is an object or a list, expected one value", "see \"qcowfs config --help\"");
                continue;
            }
            bool isOption = Array.Exists(MountSettings.All, o => o.Name == NameOf(key) && o.Name.Length > 0);
            throw isOption
                ? new CommandFailure($"{file}: {key}", "only the command line may state this", "remove it from the file")
                : new CommandFailure($"{file}: {key}", "there is no such setting", "see \"qcowfs config --help\"");
        }
    }

    private static StatedSetting? Find(IConfigurationProvider provider, Option option, string? file)
    {
        string underscored = option.Name.Replace('-', '_');
        if (!provider.TryGet(option.Name, out string? value) && !provider.TryGet(underscored, out value)) return null;
        string origin = file ?? SettingSources.VariableOf(option);
        string subject = file is null ? origin : $"{file}: {option.Name}";
        if (string.IsNullOrEmpty(value)) throw new CommandFailure(subject, "has no value", "state one, or leave it out");
        if (option.Value == OptionValue.None)
            return new StatedSetting(option, null, !ReadSwitch(value, subject), origin, subject);
        if (option == MountSettings.Log && !Path.IsPathRooted(value))
            throw new CommandFailure(subject, $"\"{value}\" is not an absolute path", "write it from the root on");
        return new StatedSetting(option, value, IsOff: false, origin, subject);
    }

    private static bool ReadSwitch(string value, string subject)
    {
        IConfigurationRoot one = new ConfigurationBuilder().AddInMemoryCollection([new("value", value)]).Build();
        try
        {
            return one.GetValue<bool>("value");
        }
        catch (InvalidOperationException)
        {
            throw new CommandFailure(subject, $"\"{value}\" is not true or false", "write one of them");
        }
    }

    /// <summary>Lets `mount` judge the values as if they were its options, since they are.</summary>
    private static void Judge(List<StatedSetting> settings)
    {
        ParsedLine line = new(MountCommand.Table) { Operands = { "", "" } };
        foreach (StatedSetting setting in settings)
            if (!setting.IsOff) line.SetFrom(setting.Option, setting.Value, setting.Subject);
        _ = MountSettings.From(line);
    }

    // Keys are written with dashes, as options are; underscores do as well, as in -o.
    private static string NameOf(string key) => key.ToLowerInvariant().Replace('_', '-');

    /// <summary>A JSON file, whose faults say where in the file they are.</summary>
    private sealed class JsonText(string file) : IConfigurationSource
    {
        public IConfigurationProvider Build(IConfigurationBuilder builder) => new Provider(file);

        private sealed class Provider(string file) : ConfigurationProvider
        {
            public override void Load()
            {
                try
                {
                    using FileStream stream = File.OpenRead(file);
                    ConfigurationBuilder inner = new();
                    inner.AddJsonStream(stream);
                    foreach ((string key, string? value) in inner.Build().AsEnumerable()) Data[key] = value;
                }
                catch (Exception fault) when (fault is FormatException or JsonException or IOException)
                {
                    string where = (fault as JsonException ?? fault.InnerException as JsonException)?.LineNumber is { } line ? $"line {line + 1} is not JSON" : fault.Message;
                    throw new FormatException(where, fault) { Data = { ["file"] = file } };
                }
            }
        }
    }
}
