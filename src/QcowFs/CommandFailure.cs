// The end of a command that did not do its work: one line for the person, one number for the script.
namespace QcowFs;

/// <summary>Exit codes of PRODUCT section 2.</summary>
internal static class ExitCode
{
    public const int Done = 0;
    public const int Failed = 1;
    public const int CheckCorruption = 2;
    public const int CheckLeaks = 3;
    public const int WrongUsage = 64;
}

/// <summary>Ends a command. The message is `SUBJECT: what is wrong; what to do`.</summary>
internal sealed class CommandFailure(string subject, string problem, string advice, int exitCode = ExitCode.Failed)
    : Exception($"{subject}: {problem}; {advice}")
{
    public int ExitCode { get; } = exitCode;

    /// <summary>Wrong usage: the subject is the option or argument, not a file.</summary>
    public static CommandFailure Usage(string subject, string problem, string advice) =>
        new(subject, problem, advice, QcowFs.ExitCode.WrongUsage);
}

/// <summary>What a server answered in place of doing what it was asked: its own line.</summary>
internal sealed class ServerFailure(string line) : Exception(line);
