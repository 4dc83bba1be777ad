// A command line after parsing.
namespace QcowFs.CommandLine;

/// <summary>What was given for one command.</summary>
internal sealed class ParsedLine(Command command)
{
    private readonly Dictionary<Option, string?> _given = [];

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

    /// <summary>A size option's bytes, or null where it was not given.</summary>
    public long? Size(Option option)
    {
        if (Value(option) is not { } text) return null;
        return Sizes.TryParse(text, out long bytes)
            ? bytes
            : throw CommandFailure.Usage(option.Display, $"\"{text}\" is not a size", "give a number of bytes, or one with k, M, G or T");
    }

    /// <summary>A number within bounds, or null where the option was not given.</summary>
    public long? Number(Option option, long least, long most)
    {
        if (Value(option) is not { } text) return null;
        return long.TryParse(text, System.Globalization.NumberStyles.None, null, out long number) && number >= least && number <= most
            ? number
            : throw CommandFailure.Usage(option.Display, $"\"{text}\" is not a number from {least} to {most}", Command.HelpHint);
    }

    /// <summary>One of several words, or null where the option was not given.</summary>
    public string? Choice(Option option, params ReadOnlySpan<string> choices)
    {
        if (Value(option) is not { } text) return null;
        foreach (string choice in choices)
            if (choice == text) return choice;
        throw CommandFailure.Usage(option.Display, $"\"{text}\" is not one of its values", $"use {string.Join(", ", choices.ToArray())}");
    }
}
