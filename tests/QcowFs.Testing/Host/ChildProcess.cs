// Programs that a test runs: their output is kept, a hang fails the test, and nothing of them outlives it.
using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text;
using Xunit;

namespace QcowFs.Testing;

/// <summary>What a program that has ended said.</summary>
public readonly record struct ToolResult(string Command, int ExitCode, string Output, string Errors)
{
    /// <summary>Fails the test unless the program succeeded; gives its output.</summary>
    public string MustSucceed()
    {
        Assert.True(ExitCode == 0, $"{Command} ended with {ExitCode}: {Errors.Trim()} {Output.Trim()}");
        return Output;
    }
}

/// <summary>
/// A running program at the head of a session and process group of its own. Disposing kills the whole group, so also what the
/// program started, unless that left the group on purpose.
/// </summary>
public sealed partial class ChildProcess : IDisposable
{
    public const int SIGTERM = 15;
    public const int SIGKILL = 9;
    public const int SIGSTOP = 19;
    public const int SIGCONT = 18;

    private static readonly Dictionary<string, string> NoVariables = [];

    private readonly Process _process;
    private readonly string _command;
    private readonly object _lock = new(); // guards the three below; waited on
    private readonly StringBuilder _output = new();
    private readonly StringBuilder _errors = new();
    private int _openEnds = 2; // of stdout and stderr

    private ChildProcess(Process process, string command)
    {
        _process = process;
        _command = command;
        process.OutputDataReceived += (_, line) => Append(_output, line.Data);
        process.ErrorDataReceived += (_, line) => Append(_errors, line.Data);
        process.Start();
        process.BeginOutputReadLine();
        process.BeginErrorReadLine();
    }

    /// <summary>Process id, and that of the group and session.</summary>
    public int Id => _process.Id;

    public bool HasExited => _process.HasExited;

    /// <summary>Whole lines of stdout so far.</summary>
    public string Output => Read(_output);

    /// <summary>Whole lines of stderr so far.</summary>
    public string Errors => Read(_errors);

    /// <summary>Starts a program found in PATH. Its stdin is empty.</summary>
    public static ChildProcess Start(string program, params string[] arguments) => Start(NoVariables, program, arguments);

    /// <summary>Starts a program with environment variables besides the inherited ones.</summary>
    public static ChildProcess Start(IReadOnlyDictionary<string, string> environment, string program, params string[] arguments)
    {
        // setsid(1) becomes the program by exec, since a child of ours does not lead a group yet: the process id stays.
        var start = new ProcessStartInfo("setsid", [Tools.Find(program) ?? program, .. arguments])
        {
            UseShellExecute = false,
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        foreach ((string name, string value) in environment)
            start.Environment[name] = value;
        var child = new ChildProcess(new Process { StartInfo = start }, $"{program} {string.Join(' ', arguments)}");
        child._process.StandardInput.Close();
        return child;
    }

    /// <summary>Runs a program to its end.</summary>
    public static ToolResult Run(string program, params string[] arguments)
    {
        using ChildProcess child = Start(program, arguments);
        return child.WaitForExit();
    }

    /// <summary>Waits for the end; a hang fails the test.</summary>
    public ToolResult WaitForExit(TimeSpan? limit = null)
    {
        if (!_process.WaitForExit(limit ?? Wait.HangLimit))
        {
            Kill();
            Assert.Fail($"{_command} hung. {Errors} {Output}");
        }
        AwaitEnds();
        return new ToolResult(_command, _process.ExitCode, Output, Errors);
    }

    /// <summary>Waits until stdout or stderr holds a text.</summary>
    public void WaitForText(string text)
    {
        Wait.Until(
            () => Output.Contains(text, StringComparison.Ordinal) || Errors.Contains(text, StringComparison.Ordinal) || HasExited,
            $"{_command} says '{text}'");
        if (HasExited)
            AwaitEnds();
        Assert.True(
            Output.Contains(text, StringComparison.Ordinal) || Errors.Contains(text, StringComparison.Ordinal),
            $"{_command} did not say '{text}'. {Errors} {Output}");
    }

    /// <summary>Sends a signal to the program alone.</summary>
    public void Signal(int signal) => _ = SendSignal(Id, signal);

    /// <summary>Kills the whole group and waits for the program's end.</summary>
    public void Kill()
    {
        // The group lives on after its leader, so it is signalled also when that has ended. A failure means that nobody is left, or
        // that setsid has not come to its work yet.
        _ = SendSignal(-Id, SIGKILL);
        _process.Kill();
        _process.WaitForExit(Wait.HangLimit);
    }

    public void Dispose()
    {
        Kill();
        _process.Dispose();
    }

    // The program has ended; its last words may still be on their way. A daemon that inherited the pipes would keep them open.
    private void AwaitEnds()
    {
        lock (_lock)
        {
            while (_openEnds > 0)
                Assert.True(Monitor.Wait(_lock, Wait.HangLimit), $"{_command} has ended, but something holds its output open.");
        }
    }

    // A null line is the end of the stream.
    private void Append(StringBuilder text, string? line)
    {
        lock (_lock)
        {
            if (line != null)
                text.Append(line).Append('\n');
            else
                _openEnds--;
            Monitor.PulseAll(_lock);
        }
    }

    private string Read(StringBuilder text)
    {
        lock (_lock)
            return text.ToString();
    }

    [LibraryImport("libc", EntryPoint = "kill", SetLastError = true)]
    private static partial int SendSignal(int process, int signal);
}
