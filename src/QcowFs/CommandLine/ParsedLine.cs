// A command line after parsing.
namespace QcowFs.CommandLine;

/// <summary>What was given for one command.</summary>
internal sealed class ParsedLine(Command command)
{
    private readonly Dictionary<Option, string?> _given = [];
    private readonly Dictionary<Option, string> _origins = []; // of what settings stated
    private readonly HashSet<Option> _switchedOff = [];

    public Command Command { get; } = command;

    /// <summary>What is not an option, in order.</summary>
    public List<string> Operands { get; } = [];

    /// <summary>Entries of the mount list that are not options of the command.</summary>
    public List<string> MountWords { get; } = [];

    public bool Has(Option option) => _given.ContainsKey(option);

    /// <summary>The value given, or null where the option or its value is absent.</summary>
    public string? Value(Option option) => _given.GetValueOrDefault(option);

    /// <summary>Takes an option.</summary>
    public void Set(Option option, string? value) =>
        _given[option] = option.Repeats && _given.TryGetValue(option, out string? before) ? $"{before},{value}" : value;

    /// <summary>Takes a switch back that settings may have on.</summary>
    public void SwitchOff(Option option)
    {
        _given.Remove(option);
        _switchedOff.Add(option);
    }

    /// <summary>Takes an option from settings, unless the command line said something of it.</summary>
    /// <param name="option">The option.</param>
    /// <param name="value">Its value; null for a switch.</param>
    /// <param name="origin">Where it was stated, for messages.</param>
    public void SetFrom(Option option, string? value, string origin)
    {
        if (IsStated(option)) return;
        _given[option] = value;
        _origins[option] = origin;
    }

    /// <summary>Whether the command line, or settings before, said anything of an option, be it that a switch is off.</summary>
    public bool IsStated(Option option) => Has(option) || _switchedOff.Contains(option);

    /// <summary>The options of the command line itself as words, each complete in one, to be given to another command.</summary>
    public IEnumerable<string> GivenWords(params Option[] except)
    {
        foreach ((Option option, string? value) in _given)
        {
            if (_origins.ContainsKey(option) || except.Contains(option)) continue;
            yield return value is null ? option.Display : $"{option.Display}={value}";
        }
        foreach (Option option in _switchedOff) yield return option.Display + "=false";
        foreach (string word in MountWords) yield return "-o" + word;
    }

    /// <summary>Whether settings, not the command line, stated an option.</summary>
    public bool IsFromSettings(Option option) => _origins.ContainsKey(option);

    /// <summary>What is wrong with an option's value: the message names who stated it.</summary>
    public CommandFailure Wrong(Option option, string problem, string advice) =>
        _origins.TryGetValue(option, out string? origin)
            ? new CommandFailure(origin, problem, advice)
            : CommandFailure.Usage(option.Display, problem, advice);

    /// <summary>A size option's bytes, or null where it was not given.</summary>
    public long? Size(Option option)
    {
        if (Value(option) is not { } text) return null;
        return Sizes.TryParse(text, out long bytes)
            ? bytes
            : throw Wrong(option, $"\"{text}\" is not a size", "give a number of bytes, or one with k, M, G or T");
    }

    /// <summary>A number within bounds, or null where the option was not given.</summary>
    public long? Number(Option option, long least, long most)
    {
        if (Value(option) is not { } text) return null;
        return long.TryParse(text, System.Globalization.NumberStyles.None, null, out long number) && number >= least && number <= most
            ? number
            : throw Wrong(option, $"\"{text}\" is not a number from {least} to {most}", Command.HelpHint);
    }

    /// <summary>One of several words, or null where the option was not given.</summary>
    public string? Choice(Option option, params ReadOnlySpan<string> choices)
    {
        if (Value(option) is not { } text) return null;
        foreach (string choice in choices)
            if (choice == text) return choice;
        throw Wrong(option, $"\"{text}\" is not one of its values", $"use {string.Join(", ", choices.ToArray())}");
    }
}
