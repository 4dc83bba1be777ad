// Help texts, made from the tables that parsing uses, so that they cannot promise what is not there.
using System.Text;

namespace QcowFs.CommandLine;

/// <summary>Prints help.</summary>
internal static class Help
{
    public static readonly Option HelpOption = new("help", "show this help") { Short = 'h' };

    /// <summary>The program's help: its commands.</summary>
    public static string ForProgram(ReadOnlySpan<Command> commands)
    {
        StringBuilder text = new();
        text.Append("Mounts virtual disk images as raw files.\n\nUsage: qcowfs COMMAND [options]\n\nCommands:\n");
        foreach (Command command in commands) text.Append($"  {command.Name,-10}{command.Summary}\n");
        text.Append("\n\"qcowfs COMMAND --help\" describes a command. Sizes take k, M, G, T (powers of 1024).\n");
        return text.ToString();
    }

    /// <summary>A command's help.</summary>
    public static string ForCommand(Command command)
    {
        StringBuilder text = new();
        text.Append($"Usage: qcowfs {command.Name} [options]");
        foreach (string operand in command.Operands) text.Append(' ').Append(operand);
        text.Append($"\n\n{char.ToUpperInvariant(command.Summary[0])}{command.Summary[1..]}.\n\nOptions:\n");
        foreach (Option option in (Option[])[.. command.Options, HelpOption])
        {
            string form = Form(option);
            if (form.Length <= 30) text.Append($"  {form,-32}{option.Help}\n");
            else text.Append($"  {form}\n{"",-34}{option.Help}\n");
        }
        if (command.Notes is not null) text.Append('\n').Append(command.Notes).Append('\n');
        return text.ToString();
    }

    private static string Form(Option option)
    {
        string prefix = option.Short == 0 ? "    " : option.Name.Length == 0 ? $"-{option.Short}" : $"-{option.Short}, ";
        string name = option.Name.Length == 0 ? "" : $"--{option.Name}";
        string value = option.Value switch
        {
            OptionValue.None => "",
            OptionValue.Required => option.Name.Length == 0 ? $" {option.ValueName}" : $"={option.ValueName}",
            _ => $"[={option.ValueName}]",
        };
        return prefix + name + value;
    }
}
