// README, manual page and completion speak of the commands and options that the program has, and of all its commands.
using System.Diagnostics;
using System.Text.RegularExpressions;
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed partial class CommandLineTests
{
    private static readonly Lazy<Dictionary<string, string>> HelpTexts = new(ReadHelp);

    [GeneratedRegex(@"^  (?<command>[a-z]+)\b", RegexOptions.Multiline | RegexOptions.ExplicitCapture)]
    private static partial Regex CommandInHelp { get; }

    [GeneratedRegex(@"^[ ]{4}(?:\$ )?(?:sudo )?qcowfs (?<command>[a-z]+)(?<rest>.*)$", RegexOptions.Multiline | RegexOptions.ExplicitCapture)]
    private static partial Regex CommandInReadme { get; }

    [GeneratedRegex("(?<![a-z-])--[a-z][a-z-]*")]
    private static partial Regex LongOption { get; }

    [GeneratedRegex("^commands='(?<commands>[^']*)'", RegexOptions.Multiline | RegexOptions.ExplicitCapture)]
    private static partial Regex CommandsInCompletion { get; }

    [SkippableFact]
    public void Readme_uses_commands_and_options_that_exist()
    {
        Dictionary<string, string> help = Help();
        MatchCollection uses = CommandInReadme.Matches(Read("README.md"));

        Assert.NotEmpty(uses);
        Findings.AreNone(uses.Where(use => !help.ContainsKey(use.Groups["command"].Value)).Select(use => use.Value));
        Findings.AreNone(
            from use in uses
            where help.ContainsKey(use.Groups["command"].Value)
            from Match option in LongOption.Matches(use.Groups["rest"].Value)
            where !LongOption.Matches(help[use.Groups["command"].Value]).Any(known => known.Value == option.Value)
            select $"{use.Value.Trim()}: {option.Value}");
    }

    [SkippableTheory]
    [InlineData("README.md")]
    [InlineData("packaging/qcowfs.1")]
    [InlineData("packaging/qcowfs.bash")]
    public void Options_spoken_of_exist(string file)
    {
        HashSet<string> known = [.. Help().Values.SelectMany(text => LongOption.Matches(text).Select(option => option.Value)), "--version"];
        var other = OtherPrograms.Matches(Read(file)).SelectMany(line => LongOption.Matches(line.Value)).Select(option => option.Value);

        Findings.AreNone(LongOption.Matches(Read(file)).Select(option => option.Value).Distinct().Except(known).Except(other));
    }

    [SkippableTheory]
    [InlineData("README.md")]
    [InlineData("packaging/qcowfs.1")]
    [InlineData("packaging/qcowfs.bash")]
    public void Every_command_is_spoken_of(string file)
    {
        string text = Read(file);
        Findings.AreNone(Help().Keys.Where(command => !Regex.IsMatch(text, $@"\b{command}\b", RegexOptions.None, TimeSpan.FromSeconds(10))));
    }

    [SkippableFact]
    public void Completion_knows_exactly_the_commands() => Assert.Equal(
        Help().Keys.Order(StringComparer.Ordinal),
        CommandsInCompletion.Match(Read("packaging/qcowfs.bash").Replace("    local ", "", StringComparison.Ordinal)).Groups["commands"].Value.Split(' ').Order(StringComparer.Ordinal));

    [GeneratedRegex(@"\bmake (?<target>[a-z-]+)\b")]
    private static partial Regex MakeTarget { get; }

    [Fact]
    public void Readme_uses_make_targets_that_exist()
    {
        string makefile = Read("Makefile");
        var targets = MakeTarget.Matches(Read("README.md")).Select(match => match.Groups["target"].Value).Distinct();
        Findings.AreNone(targets.Where(target => !makefile.Contains($"\n{target}:", StringComparison.Ordinal)));
    }

    [GeneratedRegex(@"^.*\b(?:losetup|fio|qemu-[a-z]+) .*$", RegexOptions.Multiline | RegexOptions.ExplicitCapture)]
    private static partial Regex OtherPrograms { get; }

    private static Dictionary<string, string> Help()
    {
        Skip.If(Repository.Program is null, "the program is not built: run make build");
        return HelpTexts.Value;
    }

    private static Dictionary<string, string> ReadHelp()
    {
        string[] sections = Run("--help").Split("Commands:");
        Assert.Equal(2, sections.Length);
        return CommandInHelp.Matches(sections[1]).Select(match => match.Groups["command"].Value).ToDictionary(command => command, command => Run(command, "--help"));
    }

    // In roff a hyphen that is to stay one is written with a backslash.
    private static string Read(string path) => File.ReadAllText(Repository.Absolute(path)).Replace(@"\-", "-", StringComparison.Ordinal);

    private static string Run(params string[] arguments)
    {
        using Process process = Process.Start(new ProcessStartInfo(Repository.Program!, arguments) { UseShellExecute = false, RedirectStandardOutput = true })!;
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.Equal(0, process.ExitCode);
        return output;
    }
}
