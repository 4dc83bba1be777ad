// The words of the command line. Parsing, help and `-o` all read the same tables.
namespace QcowFs.CommandLine;

/// <summary>Whether an option takes a value.</summary>
internal enum OptionValue
{
    None,
    Required,

    /// <summary>Only after "=": `--chain=3`, never `--chain 3`.</summary>
    Optional,
}

/// <summary>An option of a command. Commands keep their options in static fields and ask the parsed line by them.</summary>
/// <param name="Name">Long name without the dashes.</param>
/// <param name="Help">What it does, in a few words.</param>
/// <param name="ValueName">What help calls the value; null: takes none.</param>
internal sealed record Option(string Name, string Help, string? ValueName = null)
{
    /// <summary>One-letter form, or none.</summary>
    public char Short { get; init; }

    /// <summary>Given again, its values are joined by commas; else the last one counts.</summary>
    public bool Repeats { get; init; }

    /// <summary>The value may be left out.</summary>
    public bool ValueIsOptional { get; init; }

    public OptionValue Value =>
        ValueName is null ? OptionValue.None : ValueIsOptional ? OptionValue.Optional : OptionValue.Required;

    /// <summary>How messages name it.</summary>
    public string Display => Name.Length == 0 ? $"-{Short}" : $"--{Name}";
}

/// <summary>A command: its words, and what carries it out.</summary>
/// <param name="Name">First word on the command line.</param>
/// <param name="Summary">One line for the list of commands.</param>
/// <param name="Operands">Names of what follows the options; optional ones in brackets, last; "...]" at its end: any number.</param>
/// <param name="Options">Its options, in the order of help.</param>
/// <param name="Run">Carries it out and returns the exit code.</param>
internal sealed record Command(
    string Name, string Summary, string[] Operands, Option[] Options, Func<ParsedLine, int> Run)
{
    /// <summary>Further lines for its help.</summary>
    public string? Notes { get; init; }

    /// <summary>The option whose value is a mount(8) list, each entry naming one of the other options; null: none.</summary>
    public Option? ListOption { get; init; }

    public int RequiredOperands
    {
        get
        {
            int optional = Array.FindIndex(Operands, o => o is ['[', .., ']']);
            return optional < 0 ? Operands.Length : optional;
        }
    }

    public string HelpHint => $"see \"qcowfs {Name} --help\"";
}
