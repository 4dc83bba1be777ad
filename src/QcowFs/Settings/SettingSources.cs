// Where settings come from, and whether there are any: the part of it that every start pays for. Nothing here touches the configuration
// library, whose loading costs more than all else that `info` does.
using QcowFs.CommandLine;
using QcowFs.Native;
using QcowFs.Server;

namespace QcowFs.Settings;

/// <summary>The sources of settings in their order: the system's file, the user's file, variables. Later ones win; the command line
/// wins over all.</summary>
/// <param name="SystemFile">The system's file.</param>
/// <param name="UserFile">The user's file, or null where there is no place for one.</param>
internal sealed record SettingSources(string SystemFile, string? UserFile)
{
    public const string VariablePrefix = "QCOWFS_";

    /// <summary>The options that settings may state, with their defaults in words. What decides over data is not among them.</summary>
    public static Dictionary<Option, string> Defaults { get; } = new()
    {
        [MountSettings.AllowOther] = "false",
        [ImageOptions.References] = "dir",
        [MountSettings.Cache] = "host",
        [MountSettings.CacheSize] = "32M",
        [DedupOptions.Hash] = "xxh3",
        [DedupOptions.IndexSize] = "1G",
        [DedupOptions.Memory] = "256M",
        [MountSettings.DirectIo] = "auto",
        [MountSettings.Gid] = "the group of the mounting user",
        [MountSettings.Log] = "qcowfs.log in the runtime directory",
        [MountSettings.Mode] = "0400, or 0600 where it is writable",
        [MountSettings.ReflinkView] = "false",
        [MountSettings.Threads] = "as many as are kept busy",
        [MountSettings.Transport] = "auto",
        [MountSettings.Uid] = "the mounting user",
    };

    /// <summary>The same options by name.</summary>
    public static Option[] Known { get; } = [.. Defaults.Keys.OrderBy(o => o.Name, StringComparer.Ordinal)];

    /// <summary>The sources that this process has by its environment.</summary>
    public static SettingSources OfThisProcess() => new("/etc/qcowfs/qcowfs.json", UserFileOf());

    /// <summary>The variable that states an option.</summary>
    public static string VariableOf(Option option) => VariablePrefix + option.Name.ToUpperInvariant().Replace('-', '_');

    /// <summary>Adds to a command line what settings state of its options and it does not. Faults: <see cref="CommandFailure"/> where a
    /// setting is wrong, be it one that the command does not use.</summary>
    public void ApplyTo(ParsedLine line)
    {
        if (!Array.Exists(line.Command.Options, Defaults.ContainsKey) || !HasAny()) return;
        foreach (StatedSetting setting in SettingReader.Read(this))
        {
            if (!line.Command.Options.Contains(setting.Option)) continue;
            if (setting.IsOff) continue;
            line.SetFrom(setting.Option, setting.Value, setting.Subject);
        }
    }

    /// <summary>Whether any source states anything.</summary>
    public bool HasAny() =>
        File.Exists(SystemFile) || (UserFile is not null && File.Exists(UserFile))
        || Array.Exists(Known, static o => Environment.GetEnvironmentVariable(VariableOf(o)) is not null);

    private static string? UserFileOf()
    {
        string? directory = Environment.GetEnvironmentVariable("XDG_CONFIG_HOME");
        if (string.IsNullOrEmpty(directory) || !Path.IsPathRooted(directory))
        {
            string? home = Environment.GetEnvironmentVariable("HOME");
            if (string.IsNullOrEmpty(home) || !Path.IsPathRooted(home)) return null;
            directory = home + "/.config";
        }
        string file = directory.TrimEnd('/') + "/qcowfs/qcowfs.json";
        // sudo may leave the variables of another user, whose wishes are not ours.
        return Libc.Status(file, 0, out StatxData facts) == Errno.None && facts.UserId != 0 && facts.UserId != Libc.GetUserId() ? null : file;
    }
}

/// <summary>What a source states of an option.</summary>
/// <param name="Option">The option.</param>
/// <param name="Value">Its value as text; null for a switch.</param>
/// <param name="IsOff">A switch that is stated to be off.</param>
/// <param name="Origin">The file or the variable.</param>
/// <param name="Subject">What messages name: the file and the key in it, or the variable.</param>
internal sealed record StatedSetting(Option Option, string? Value, bool IsOff, string Origin, string Subject);
