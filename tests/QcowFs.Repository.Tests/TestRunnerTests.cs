// The runner's verdict can be believed: it adds up real counts, and nothing that goes wrong passes for success. A stand-in for
// `dotnet` plays the test projects.
using System.Diagnostics;
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed class TestRunnerTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("runner").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    [Fact]
    public void Counts_of_all_projects_are_summed()
    {
        var (exitCode, lines) = Run("write 5 4 4", "Storage.Tests", "Native.Tests");

        Assert.Equal("8 passed, 0 failed, 2 skipped", lines[^1]);
        Assert.Equal(0, exitCode);
    }

    [Fact]
    public void A_failed_test_fails_the_run()
    {
        var (exitCode, lines) = Run("write 5 5 3; exit 1");

        Assert.Equal("3 passed, 2 failed, 0 skipped", lines[^1]);
        Assert.Equal(1, exitCode);
    }

    /// <summary>Whoever sees only the end of a run knows what failed and why; what passed, and what tests printed, is not in the way.</summary>
    [Fact]
    public void The_last_lines_name_what_failed_and_why()
    {
        string[] lines = Run("write 5 5 3; fail 'N.T.First(text: &quot;a &lt; b&quot;)' 'Values differ&#xD;\nExpected: 1\nActual:   2\nmore'; fail N.T.Second short").Lines;

        Assert.Equal(
            ["FAILED N.T.First(text: \"a < b\") (T.cs:7)", "    Values differ", "    Expected: 1", "    Actual:   2", "FAILED N.T.Second (T.cs:7)", "    short", "3 passed, 2 failed, 0 skipped"],
            lines[^7..]);
        Assert.DoesNotContain(lines, line => line.Contains("Passed", StringComparison.Ordinal));
    }

    [Fact]
    public void Of_many_failures_the_list_is_bounded()
    {
        string[] lines = Run("write 50 50 0; for i in $(seq 50); do fail N.T.Test$i 'one\ntwo'; done").Lines;

        Assert.Equal("0 passed, 50 failed, 0 skipped", lines[^1]);
        Assert.Equal("... and 90 lines more: see build/test-results", lines[^2]);
        Assert.Equal("FAILED N.T.Test1 (T.cs:7)", lines[^62]);
    }

    [Fact]
    public void A_crash_after_good_tests_fails_the_run()
    {
        var (exitCode, lines) = Run("""
            write 5 5 5; mkdir $(dirname $results)/x
            echo '<Test Name="a" DisplayName="N.T.Done" Source="s" Completed="True" /><Test Name="b" DisplayName="N.T.Last" Source="s" Completed="False" />' > $(dirname $results)/x/Sequence_1.xml
            exit 134
            """);

        Assert.Equal("5 passed, 1 failed, 0 skipped", lines[^1]);
        Assert.Equal("UNFINISHED N.T.Last", lines[^2]);
        Assert.Contains(lines, line => line.Contains("crashed or hung (exit code 134)", StringComparison.Ordinal));
        Assert.Equal(1, exitCode);
    }

    [Theory]
    [InlineData("exit 0")]
    [InlineData("write 0 0 0")]
    [InlineData(": > \"$results\"")]
    public void A_project_without_a_result_fails_the_run(string acts)
    {
        var (exitCode, lines) = Run(acts);

        Assert.Equal("0 passed, 1 failed, 0 skipped", lines[^1]);
        Assert.Equal(1, exitCode);
    }

    [Fact]
    public void A_failed_build_fails_the_run()
    {
        var (exitCode, lines) = Run("exit 0", build: "exit 1");

        Assert.Equal("0 passed, 1 failed, 0 skipped", lines[^1]);
        Assert.Equal(1, exitCode);
    }

    [Fact]
    public void A_skipped_test_fails_in_CI()
    {
        var (exitCode, lines) = Run("write 5 4 4", continuousIntegration: true);

        Assert.Equal("4 passed, 0 failed, 1 skipped", lines[^1]);
        Assert.Equal(1, exitCode);
    }

    [Fact]
    public void A_name_that_selects_nothing_fails_the_run() => Assert.Equal(1, Run("write 1 1 1", "NoSuchProject").ExitCode);

    [Theory]
    [InlineData("write 1 1 1; echo > $TMPDIR/left.img", "temporary file left behind: ", "/left.img")]
    [InlineData("write 1 1 1; setsid sleep 1000 <&- >&- 2>&- &", "process left behind: ", "sleep 1000")]
    public void What_is_left_behind_is_named_removed_and_fails_the_run(string acts, string start, string end)
    {
        var (exitCode, lines) = Run(acts);

        Assert.Contains(lines, line => line.StartsWith($"run-tests: {start}", StringComparison.Ordinal) && line.EndsWith(end, StringComparison.Ordinal));
        Assert.Equal("1 passed, 0 failed, 0 skipped", lines[^1]);
        Assert.Equal(1, exitCode);
        string left = lines.First(line => line.Contains(start, StringComparison.Ordinal)).Split(start)[1].Split(' ')[0];
        // A process that was killed still has to come to its end.
        Assert.True(SpinWait.SpinUntil(() => !File.Exists(left) && HasEnded(left), TimeSpan.FromMinutes(1)), left);
    }

    private static bool HasEnded(string process)
    {
        try
        {
            return File.ReadAllText($"/proc/{process}/stat").Contains(") Z ", StringComparison.Ordinal);
        }
        catch (IOException)
        {
            return true;
        }
    }

    /// <summary>Runs the runner. <paramref name="acts"/> is what each test project does, in shell; `write TOTAL EXECUTED PASSED` there makes
    /// a result file, `fail NAME MESSAGE` adds a failed test to it, and one that passed.</summary>
    private (int ExitCode, string[] Lines) Run(string acts, params string[] projects) => Run(acts, "exit 0", continuousIntegration: false, projects);

    private (int ExitCode, string[] Lines) Run(string acts, string build = "exit 0", bool continuousIntegration = false, params string[] projects)
    {
        string standIn = Path.Combine(_directory, "dotnet");
        // Copied by the process that runs it: were it written here, a program that another test starts at that moment would inherit the
        // descriptor, and what is open for writing cannot be executed.
        File.WriteAllText(standIn + ".sh", $$"""
            #!/bin/sh
            [ "$1" = test ] || { {{build}}; }
            results={{_directory}}/results/$(basename "$2" .csproj).trx
            write() { printf '<Counters total="%s" executed="%s" passed="%s" />\n' "$@" >"$results"; }
            fail() {
                printf '<UnitTestResult testName="%s" outcome="Failed"><Output><StdOut>said</StdOut><ErrorInfo>\n<Message>%b</Message>\n' "$1" "$2"
                printf '<StackTrace>   at N.Box.Expect() in /a/N.Tests/Box.cs:line 3\n   at N.T.X() in /a/N.Tests/T.cs:line 7</StackTrace>\n</ErrorInfo></Output></UnitTestResult>\n'
                printf '<UnitTestResult testName="Passed" outcome="Passed"><Output><StdOut>&lt;Message&gt;Passed</StdOut></Output></UnitTestResult>\n'
            } >>"$results"
            {{acts}}
            """);
        string[] words = [standIn, Repository.Absolute("tests/run-tests.sh"), .. projects is [] ? ["Storage.Tests"] : projects];
        var start = new ProcessStartInfo("bash", ["-c", "install -m 700 \"$0.sh\" \"$0\" && exec bash \"$@\"", .. words])
        {
            UseShellExecute = false,
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        start.Environment["DOTNET"] = standIn;
        start.Environment["QCOWFS_TEST_RESULTS"] = Path.Combine(_directory, "results");
        start.Environment["CI"] = continuousIntegration ? "true" : "";
        using Process process = Process.Start(start)!;
        process.StandardInput.Close();
        Task<string> errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        _ = errors.Result;
        return (process.ExitCode, output.Split('\n', StringSplitOptions.RemoveEmptyEntries));
    }

}
