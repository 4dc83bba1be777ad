// The test server in a mount namespace of its own, and clients that run in the same namespace, in processes of their own.
//
// Everything lives on a tmpfs that only this namespace has: the mount point, a copy of the server that any user can read, and a
// /dev/fuse that any user can open. When the namespace's last process ends, nothing is left.
using System.Diagnostics;
using System.Text.Json.Nodes;

namespace QcowFs.Fuse.Tests.Mounts;

/// <summary>What a command of a client gave.</summary>
internal sealed record ClientResult(int ExitCode, string Output, string Error)
{
    public string Succeeded()
    {
        Assert.True(ExitCode == 0, $"exit code {ExitCode}: {Error}{Output}");
        return Output;
    }
}

internal sealed class ServedMount : IDisposable
{
    /// <summary>The mount point, in the namespace of the server.</summary>
    public const string MountPoint = Base + "/m";

    /// <summary>The user that <see cref="Start"/> with asUser serves and asks as.</summary>
    public const int OrdinaryUser = 65534;

    private const string Base = "/mnt";
    private const string AsUser = "setpriv --reuid=65534 --regid=65534 --clear-groups ";

    /// <summary>Only a hang takes this long, on the slowest machine too.</summary>
    public static readonly TimeSpan HangLimit = TimeSpan.FromMinutes(4);

    private readonly Process _process;
    private readonly bool _asUser;
    private readonly List<string> _complaints = [];

    private ServedMount(Process process, bool asUser)
    {
        _process = process;
        _asUser = asUser;
    }

    /// <summary>The line that the server said when it was ready, or how it failed.</summary>
    public string FirstLine { get; private set; } = "";

    /// <summary>What the server wrote to standard error.</summary>
    public string Complaints
    {
        get { lock (_complaints) return string.Join('\n', _complaints); }
    }

    /// <summary>Waits until the server has written this to standard error, which another thread of ours reads, and nothing else.</summary>
    public void AwaitComplaints(string expected)
    {
        SpinWait.SpinUntil(() => Complaints.Length >= expected.Length, HangLimit);
        Assert.Equal(expected, Complaints);
    }

    /// <summary>Skips the test where this machine cannot make real mounts.</summary>
    public static void Require()
    {
        Skip.IfNot(Environment.UserName == "root", "real mounts are tested as root, which makes the namespaces");
        Skip.IfNot(File.Exists("/dev/fuse"), "/dev/fuse is missing");
        foreach (string program in new[] { "unshare", "nsenter", "setpriv", "fusermount3", "fio", "python3", "strace" })
            Skip.IfNot(Which(program), program + " is missing");
    }

    /// <summary>Starts the server. <paramref name="prepare"/> runs as root in the new namespace before it.</summary>
    public static ServedMount Start(string arguments = "", bool asUser = false, string prepare = "", string mountPoint = MountPoint)
    {
        string server = AppContext.BaseDirectory;
        string script = $"""
            set -e
            mount -t tmpfs -o mode=755 tmpfs {Base}
            mkdir {Base}/m {Base}/server
            cp '{server}'QcowFs.Fuse.TestServer.* '{server}'QcowFs.Fuse.dll '{server}'QcowFs.Native.dll {Base}/server/
            chmod -R a+rX {Base}/server
            touch {Base}/file && chown {OrdinaryUser}:{OrdinaryUser} {Base}/m {Base}/file
            mknod -m 666 {Base}/fuse c 10 229
            mount --bind {Base}/fuse /dev/fuse
            mkdir -p /sys/fs/fuse/connections && mount -t fusectl fusectl /sys/fs/fuse/connections || true
            cd /
            {prepare}
            exec {(asUser ? AsUser : "")}dotnet {Base}/server/QcowFs.Fuse.TestServer.dll {mountPoint} {arguments}
            """;
        ProcessStartInfo start = Bash("unshare --mount --propagation private bash -c \"$SCRIPT\"");
        start.Environment["SCRIPT"] = script;
        start.RedirectStandardInput = true;
        var mount = new ServedMount(Process.Start(start)!, asUser);
        mount._process.ErrorDataReceived += mount.NoteComplaint;
        mount._process.BeginErrorReadLine();
        mount.FirstLine = mount.ReadLine();
        return mount;
    }

    /// <summary>Runs a shell command where the mount is, as the user that serves it (or as <paramref name="asRoot"/>).</summary>
    public ClientResult Run(string command, bool asRoot = false)
    {
        string user = _asUser && !asRoot ? AsUser : "";
        ProcessStartInfo start = Bash($"exec nsenter --mount --target {_process.Id} {user}bash -c \"$SCRIPT\"");
        start.Environment["SCRIPT"] = $"cd {Base}; D={MountPoint}/disk; " + command;
        using Process client = Process.Start(start)!;
        Task<string> output = client.StandardOutput.ReadToEndAsync(), error = client.StandardError.ReadToEndAsync();
        if (!client.WaitForExit(HangLimit))
        {
            Abort();
            client.Kill(entireProcessTree: true);
            Assert.Fail("hung: " + command);
        }
        return new ClientResult(client.ExitCode, output.Result, error.Result);
    }

    /// <summary>Starts a command that goes on while others run; the caller ends it.</summary>
    public Process Begin(string command)
    {
        ProcessStartInfo start = Bash($"exec nsenter --mount --target {_process.Id} bash -c \"$SCRIPT\"");
        start.Environment["SCRIPT"] = $"cd {Base}; D={MountPoint}/disk; " + command;
        start.RedirectStandardInput = true;
        return Process.Start(start)!;
    }

    /// <summary>Sends a line to the server and gives its answer.</summary>
    public string Ask(string line)
    {
        Tell(line);
        return ReadLine();
    }

    /// <summary>Sends a line to the server.</summary>
    public void Tell(string line)
    {
        _process.StandardInput.WriteLine(line);
        _process.StandardInput.Flush();
    }

    /// <summary>The server's counters.</summary>
    public JsonObject Statistics() => JsonNode.Parse(Ask("stats"))!.AsObject();

    /// <summary>One counter.</summary>
    public long Statistic(string name) => Statistics()[name]!.GetValue<long>();

    /// <summary>The last line, when the session has ended: why, and the counters.</summary>
    public string AwaitEnd()
    {
        string line = ReadLine();
        Assert.True(_process.WaitForExit(HangLimit), "the server did not end");
        return line;
    }

    /// <summary>The read(2) and write(2) calls of the server while <paramref name="work"/> is done.</summary>
    public long TransfersOf(Action work)
    {
        long before = Transfers();
        work();
        return Transfers() - before;

        long Transfers() => File.ReadLines($"/proc/{_process.Id}/io")
            .Where(line => line.StartsWith("sysc", StringComparison.Ordinal))
            .Sum(line => long.Parse(line.Split(' ')[1]));
    }

    /// <summary>The io_uring_enter(2) calls of the server while <paramref name="work"/> is done.</summary>
    public long EntersOf(Action work)
    {
        string file = Path.GetTempFileName();
        try
        {
            using Process trace = Process.Start(Bash($"exec strace -f -e trace=io_uring_enter -o {file} -p {_process.Id}"))!;
            Assert.NotNull(trace.StandardError.ReadLine()); // "attached": from here on nothing is missed
            work();
            using Process interrupt = Process.Start(Bash($"kill -INT {trace.Id}"))!;
            Assert.True(trace.WaitForExit(HangLimit), "strace does not end");
            return File.ReadLines(file).Count(line => line.Contains("io_uring_enter(", StringComparison.Ordinal)); // "resumed" lines have none
        }
        finally
        {
            File.Delete(file);
        }
    }

    /// <summary>Ends the server as it stands.</summary>
    public void Kill()
    {
        _process.Kill();
        Assert.True(_process.WaitForExit(HangLimit), "a killed server does not end");
    }

    public string ReadLine()
    {
        Task<string?> line = _process.StandardOutput.ReadLineAsync();
        Assert.True(line.Wait(HangLimit), "the server said nothing; " + Complaints);
        return line.Result ?? throw new InvalidOperationException("the server ended; " + Complaints);
    }

    /// <summary>Ends the FUSE connections that were made in the namespace, whatever hangs in them.</summary>
    public void Abort()
    {
        foreach (string[] fields in File.ReadAllLines($"/proc/{_process.Id}/mountinfo").Select(line => line.Split(' ')))
        {
            // A namespace begins with a copy of its parent's mounts; those are not ours.
            if (!fields[4].StartsWith(Base + "/", StringComparison.Ordinal) || !fields.Contains("fuse.qcowfs")) continue;
            string number = fields[2].Split(':')[1];
            ProcessStartInfo start = Bash($"nsenter --mount --target {_process.Id} bash -c 'echo 1 >/sys/fs/fuse/connections/{number}/abort'");
            using Process abort = Process.Start(start)!;
            abort.WaitForExit(HangLimit);
        }
    }

    public void Dispose()
    {
        if (!_process.HasExited)
        {
            try
            {
                // The end of input makes the server unmount.
                _process.StandardInput.Close();
                if (!_process.WaitForExit(TimeSpan.FromSeconds(10)))
                {
                    Abort();
                    if (!_process.WaitForExit(TimeSpan.FromSeconds(10))) _process.Kill(entireProcessTree: true);
                    _process.WaitForExit(HangLimit);
                }
            }
            catch (IOException) when (_process.HasExited)
            {
                Debug.WriteLine("The server ended while it was being asked to.");
            }
        }
        _process.Dispose();
    }

    private void NoteComplaint(object sender, DataReceivedEventArgs line)
    {
        lock (_complaints)
        {
            if (line.Data is not null) _complaints.Add(line.Data);
        }
    }

    private static ProcessStartInfo Bash(string command)
    {
        var start = new ProcessStartInfo("bash")
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            UseShellExecute = false,
        };
        start.ArgumentList.Add("-c");
        start.ArgumentList.Add(command);
        // An ordinary user has no home here, and a runtime that is killed shall leave no diagnostic sockets behind.
        start.Environment["HOME"] = "/";
        start.Environment["DOTNET_EnableDiagnostics"] = "0";
        start.Environment["LC_ALL"] = "C";
        return start;
    }

    private static bool Which(string program)
    {
        ProcessStartInfo start = Bash("command -v " + program);
        using Process process = Process.Start(start)!;
        process.WaitForExit();
        return process.ExitCode == 0;
    }
}
