// The sessions that the README shows are run as they stand there, and must say what they say there; numbers may differ. What a reader
// brings along, two disks that were not closed, is made beforehand.
using System.Diagnostics;
using System.Text.RegularExpressions;
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed partial class ReadmeSessionTests
{
    // ext4.vhdx: its server is killed when the log holds changes that are nowhere else. server.vhdx: left behind by Windows.
    private const string Crashed = """
        zcat "$SAMPLES/vhdx-log-replay.vhdx.gz" >server.vhdx
        sha256sum server.vhdx >server.sum
        qcowfs create -f vhdx -o block_size=1M ext4.vhdx 64M
        mkdir c
        qcowfs mount -w --foreground ext4.vhdx c >/dev/null 2>&1 &
        server=$!
        until [ -e c/ext4.vhdx.raw ]; do sleep 0.05; done
        mkfs.ext4 -q c/ext4.vhdx.raw
        echo 'All of it is still here.' >thesis.txt
        debugfs -w -R 'write thesis.txt thesis.txt' c/ext4.vhdx.raw >/dev/null 2>&1
        dd if=/dev/zero of=c/ext4.vhdx.raw bs=512 count=1 seek=100000 conv=notrunc,fsync status=none
        kill -KILL $server
        wait $server 2>/dev/null || true
        qcowfs umount c >/dev/null 2>&1 || true
        rmdir c
        sha256sum ext4.vhdx >ext4.sum
        """;

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
            start.Environment["SAMPLES"] = Repository.Absolute("tests/QcowFs.Testing/Samples");
            using Process process = Process.Start(start)!;
            process.StandardInput.Write($"trap 'qcowfs umount d >/dev/null 2>&1 || true' EXIT\n{Crashed}\n{script}\nsha256sum --quiet -c server.sum ext4.sum\n");
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
