// Entry point: finds the command, runs it, and turns whatever ends it into one line and an exit code.
using QcowFs.CommandLine;
using QcowFs.Commands;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Server;
using QcowFs.Settings;

namespace QcowFs;

internal static class Program
{
    private static readonly Command[] Commands =
    [
        MountCommand.Table, UmountCommand.Table, ListCommand.Table, InfoCommand.Table, InspectCommand.Table, JournalCommand.Table, CheckCommand.Table,
        CreateCommand.Table, MapCommand.Table, ResizeCommand.Table, SnapshotCommand.Table, SyncCommand.Table, DedupCommand.Table, CommitCommand.Table,
        ConfigCommand.Table, LoopCommand.Table,
    ];

    private static int Main(string[] words)
    {
        try
        {
            return Run(GivenWords(words));
        }
        catch (Exception fault) // the one place where everything ends
        {
            string line = "qcowfs: " + ErrorLine.For(fault);
            if (Launcher.IsServer) Launcher.ReportFailure(line);
            else Console.Error.WriteLine(line);
            return fault switch
            {
                CommandFailure failure => failure.ExitCode,
                ImageOptionException => ExitCode.WrongUsage,
                _ => ExitCode.Failed,
            };
        }
    }

    /// <summary>The words with nothing lost: the runtime decodes them as UTF-8, which a file name need not be.</summary>
    internal static string[] GivenWords(string[] words)
    {
        if (!Array.Exists(words, static w => w.Contains('\uFFFD', StringComparison.Ordinal))) return words;
        string[] all = HostText.Decode(File.ReadAllBytes("/proc/self/cmdline")).Split('\0', StringSplitOptions.None)[..^1];
        return all[^words.Length..];
    }

    private static int Run(ReadOnlySpan<string> words)
    {
        const string hint = "see \"qcowfs --help\"";
        if (words.IsEmpty) throw CommandFailure.Usage("COMMAND", "missing", hint);
        if (words[0] is "--help" or "-h") return Print(Help.ForProgram(Commands));
        if (words[0] is "--version") return Print($"qcowfs {typeof(Program).Assembly.GetName().Version!.ToString(3)}\n");
        foreach (Command command in Commands)
        {
            if (command.Name != words[0]) continue;
            ParsedLine line = LineParser.Parse(command, words[1..]);
            if (line.Has(Help.HelpOption)) return Print(Help.ForCommand(command));
            LineParser.RequireOperands(line);
            SettingSources.OfThisProcess().ApplyTo(line);
            return command.Run(line);
        }
        throw CommandFailure.Usage(words[0], words[0].StartsWith('-') ? "unknown option" : "unknown command", hint);
    }

    private static int Print(string text)
    {
        Console.Out.Write(text);
        return ExitCode.Done;
    }
}
