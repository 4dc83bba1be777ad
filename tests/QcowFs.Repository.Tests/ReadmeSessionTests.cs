// The sessions that the README shows are run as they stand there, and must say what they say there; numbers may differ.
using System.Diagnostics;
using System.Text.RegularExpressions;
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed partial class ReadmeSessionTests
{
    [GeneratedRegex("[0-9]+")]
    private static partial Regex Number { get; }

    [SkippableFact]
    public void The_session_runs_as_shown()
    {
        Skip.If(Repository.Program is null, "the program is not built: run make build");
        Skip.If(!File.Exists("/dev/fuse"), "there is no /dev/fuse");
        string[] shown = Session(File.ReadAllLines(Repository.Absolute("README.md")));
        Assert.NotEmpty(shown);
        Assert.Equal(shown.Select(WithoutNumbers), Run(shown).Select(WithoutNumbers));
    }

    [Fact]
    public void The_session_is_all_blocks_that_begin_with_a_prompt() => Assert.Equal(
        ["$ a", "b", "$ c", "$ d"],
        Session(["text", "    make x", "", "    $ a", "    b", "    $ c", "", "    e", "", "    $ d"]));

    private static string[] Session(string[] readme)
    {
        List<string> session = [];
        bool isShown = false;
        foreach (string line in readme)
        {
            isShown = line.StartsWith("    ", StringComparison.Ordinal) && (isShown || line.StartsWith("    $ ", StringComparison.Ordinal));
            if (isShown) session.Add(line[4..]);
        }
        return [.. session];
    }

    // Each command is echoed as shown, then run. As root it happens in a mount namespace that ends with it.
    private static string[] Run(string[] shown)
    {
        string directory = Directory.CreateTempSubdirectory("readme").FullName;
        try
        {
            IEnumerable<string> commands = shown.Where(line => line.StartsWith("$ ", StringComparison.Ordinal));
            string script = string.Join('\n', commands.Select(line => $"cat <<'SHOWN'\n{line}\nSHOWN\n{line[2..]}"));
            string program = Path.GetDirectoryName(Repository.Program)!;
            var start = new ProcessStartInfo(Environment.IsPrivilegedProcess ? "unshare" : "env", Environment.IsPrivilegedProcess ? ["--mount", "bash", "-e"] : ["bash", "-e"])
            {
                WorkingDirectory = directory,
                UseShellExecute = false,
                RedirectStandardInput = true,
                RedirectStandardOutput = true,
            };
            start.Environment["PATH"] = $"{program}:{Environment.GetEnvironmentVariable("PATH")}:/usr/sbin:/sbin";
            using Process process = Process.Start(start)!;
            process.StandardInput.Write($"trap 'qcowfs umount d >/dev/null 2>&1 || true' EXIT\n{script}\n");
            process.StandardInput.Close();
            string output = process.StandardOutput.ReadToEnd();
            process.WaitForExit();
            return [.. output.Split('\n', StringSplitOptions.RemoveEmptyEntries)];
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    private static string WithoutNumbers(string line) => line.StartsWith("$ ", StringComparison.Ordinal) ? line : Number.Replace(line, "N");
}
