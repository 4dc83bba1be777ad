// Parses a command line against the table of commands. Written out because its rules are part of the contract and no library
// keeps them all: an optional value only after "=", one line for each error, mount(8)'s lists; and because it starts in no time.
using QcowFs.Settings;

namespace QcowFs.CommandLine;

/// <summary>Parses command lines. Wrong usage is thrown as <see cref="CommandFailure"/>.</summary>
internal static class LineParser
{
    // mount(8) and fstab pass these for their own use.
    private static readonly string[] MeaninglessMountWords = ["rw", "defaults", "auto", "noauto", "user", "nofail", "_netdev"];

    /// <summary>Words of a mount list that become mount flags or are judged by the command.</summary>
    private static readonly string[] PassedMountWords = ["ro", "nosuid", "nodev", "noexec", "noatime"];

    /// <summary>Parses what follows the command's name.</summary>
    public static ParsedLine Parse(Command command, ReadOnlySpan<string> words)
    {
        ParsedLine line = new(command);
        bool optionsEnded = false;
        for (int i = 0; i < words.Length; i++)
        {
            string word = words[i];
            if (optionsEnded || word.Length < 2 || word[0] != '-' || char.IsAsciiDigit(word[1])) line.Operands.Add(word);
            else if (word == "--") optionsEnded = true;
            else if (word[1] == '-') TakeLong(line, word, words, ref i);
            else TakeShort(line, word, words, ref i);
        }
        return line;
    }

    /// <summary>Refuses a wrong number of operands.</summary>
    public static void RequireOperands(ParsedLine line)
    {
        Command command = line.Command;
        if (line.Operands.Count < command.RequiredOperands)
            throw CommandFailure.Usage(command.Operands[line.Operands.Count], "missing", command.HelpHint);
        if (line.Operands.Count > command.Operands.Length && !command.Operands[^1].EndsWith("...]", StringComparison.Ordinal))
            throw CommandFailure.Usage(line.Operands[command.Operands.Length], "one argument too many", command.HelpHint);
    }

    private static void TakeLong(ParsedLine line, string word, ReadOnlySpan<string> words, ref int i)
    {
        int equals = word.IndexOf('=', StringComparison.Ordinal);
        string name = equals < 0 ? word[2..] : word[2..equals];
        Option option = Find(line.Command, o => o.Name == name && name.Length > 0, equals < 0 ? word : word[..equals]);
        string? value = equals < 0 ? null : word[(equals + 1)..];
        if (option.Value == OptionValue.Required && value is null) value = NextWord(line, option, words, ref i);
        Take(line, option, option.Display, value);
    }

    private static void TakeShort(ParsedLine line, string word, ReadOnlySpan<string> words, ref int i)
    {
        for (int at = 1; at < word.Length; at++)
        {
            char letter = word[at];
            Option option = Find(line.Command, o => o.Short == letter, $"-{letter}");
            string rest = word[(at + 1)..];
            if (option.Value == OptionValue.Required)
            {
                Take(line, option, $"-{letter}", rest.Length > 0 ? rest : NextWord(line, option, words, ref i));
                return;
            }
            if (rest.StartsWith('='))
            {
                Take(line, option, $"-{letter}", rest[1..]);
                return;
            }
            Take(line, option, $"-{letter}", null);
        }
    }

    private static void Take(ParsedLine line, Option option, string display, string? value)
    {
        // A switch that settings can turn on can be turned off here.
        if (option.Value == OptionValue.None && value is "true" or "false" && SettingSources.Defaults.ContainsKey(option))
        {
            if (value == "true") line.Set(option, null);
            else line.SwitchOff(option);
            return;
        }
        if (value is not null && option.Value == OptionValue.None)
            throw CommandFailure.Usage(display, "takes no value", line.Command.HelpHint);
        if (option.Value == OptionValue.Required && string.IsNullOrEmpty(value))
            throw CommandFailure.Usage(display, "needs a value", line.Command.HelpHint);
        if (option == line.Command.ListOption) TakeList(line, value!);
        else line.Set(option, value);
    }

    /// <summary>A mount(8) list: the command's own options with "-" or "_", and the words that mount(8) knows.</summary>
    private static void TakeList(ParsedLine line, string list)
    {
        foreach (string entry in list.Split(',', StringSplitOptions.RemoveEmptyEntries))
        {
            int equals = entry.IndexOf('=', StringComparison.Ordinal);
            string word = equals < 0 ? entry : entry[..equals];
            if (Array.IndexOf(MeaninglessMountWords, word) >= 0 || word.StartsWith("x-", StringComparison.Ordinal)) continue;
            if (Array.IndexOf(PassedMountWords, word) >= 0)
            {
                line.MountWords.Add(word);
                continue;
            }
            string name = word.Replace('_', '-');
            string display = $"-o {word}";
            Option option = Find(
                line.Command, o => o.Name == name && name.Length > 0 && name != Help.HelpOption.Name, display);
            string? value = equals < 0 ? null : entry[(equals + 1)..];
            Take(line, option, display, value);
        }
    }

    private static string? NextWord(ParsedLine line, Option option, ReadOnlySpan<string> words, ref int i)
    {
        if (i + 1 >= words.Length) throw CommandFailure.Usage(option.Display, "needs a value", line.Command.HelpHint);
        return words[++i];
    }

    private static Option Find(Command command, Predicate<Option> match, string display)
    {
        if (match(Help.HelpOption)) return Help.HelpOption;
        return Array.Find(command.Options, match) ?? throw CommandFailure.Usage(display, "unknown option", command.HelpHint);
    }
}
