// A mount namespace of its own with a temporary directory: where a test's mounts live and die.
//
// S1. Every process of a test, the program's servers included, runs inside the namespace; the test's own process never touches a
//     mount, so nothing that hangs there can hang it.
// S2. The end is the same after success and failure: connections of FUSE mounts are aborted, loop devices over our files detached,
//     every process of the namespace killed, the directory removed.
// S3. The namespace begins as a copy, and a copy of a mount keeps its file system alive, and with it a loop device or a server that
//     somebody else waits to see end. So copies that are not needed go at once. Tests run beside each other: a device that was
//     another's a moment ago, or will be, is never touched.
using System.Diagnostics;
using System.Globalization;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

/// <summary>What a process left.</summary>
internal sealed record Outcome(string Command, int ExitCode, string Output, string Errors)
{
    /// <summary>Standard output without the last newline, where the exit code is as expected.</summary>
    public string Expect(int exitCode = 0)
    {
        // What was said comes first: a summary shows the first lines only, and a command can be long.
        Assert.True(ExitCode == exitCode, $"exit code {ExitCode}, expected {exitCode}: {Errors.Trim()}\n{Output.Trim()}\n{Command}");
        return Output.TrimEnd('\n');
    }

    /// <summary>The one line on standard error, with the exit code as expected.</summary>
    public string ExpectError(int exitCode = 1)
    {
        Expect(exitCode);
        Assert.True(
            Errors.EndsWith('\n') && Errors.IndexOf('\n', StringComparison.Ordinal) == Errors.Length - 1,
            $"not exactly one line: {Errors}\n{Command}");
        return Errors.TrimEnd('\n');
    }
}

/// <summary>A place for one test.</summary>
internal sealed class Sandbox : IDisposable
{
    private const string OrdinaryUser = "65534";
    private static readonly TimeSpan Limit = TimeSpan.FromMinutes(5); // only a hang takes this long

    private readonly Process _holder;

    public Sandbox()
    {
        Tools.RequireRoot();
        Tools.RequireFuse();
        Tools.Require("unshare", "nsenter", "setpriv");
        Path = Directory.CreateTempSubdirectory("qfs-conformance-").FullName;
        File.SetUnixFileMode(Path, (UnixFileMode)0x1FF); // ordinary users work here too
        const UnixFileMode owner = UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute;
        Directory.CreateDirectory(Path + "/run", owner); // XDG_RUNTIME_DIR of root and of the ordinary user
        Directory.CreateDirectory(Path + "/run-user", owner);
        // The device as udev would make it, for tests as an ordinary user; fusectl, to end a connection that hangs.
        const string setup =
            MountNamespace.DropForeignMounts + "mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse && chown 65534:65534 run-user && "
            + "{ mountpoint -q /sys/fs/fuse/connections || mount -t fusectl none /sys/fs/fuse/connections; } && echo ready && exec sleep infinity";
        _holder = Process.Start(new ProcessStartInfo("unshare", ["--mount", "--propagation", "private", "sh", "-c", setup])
        {
            WorkingDirectory = Path,
            UseShellExecute = false,
            RedirectStandardOutput = true,
        })!;
        if (_holder.StandardOutput.ReadLine() != "ready")
        {
            Dispose();
            throw new InvalidOperationException("the mount namespace could not be prepared");
        }
    }

    /// <summary>The program under test: the release build where the runner names it, else the build of the referenced project.</summary>
    public static string Program { get; } =
        Environment.GetEnvironmentVariable("QCOWFS_PROGRAM") is { Length: > 0 } given ? given : AppContext.BaseDirectory + "qcowfs";

    /// <summary>The folder packaging/ of the sources above the test.</summary>
    public static string Packaging
    {
        get
        {
            string? folder = AppContext.BaseDirectory;
            while (!File.Exists(folder + "/packaging/mount.qcowfs"))
                folder = System.IO.Path.GetDirectoryName(folder) ?? throw new InvalidOperationException("no packaging/ above the test");
            return folder + "/packaging";
        }
    }

    /// <summary>The temporary directory; commands start in it.</summary>
    public string Path { get; }

    /// <summary>Runs a program as root inside the namespace.</summary>
    public Outcome Run(string program, params string[] arguments) => Execute(asUser: false, program, arguments);

    /// <summary>Runs a program as an ordinary user inside the namespace.</summary>
    public Outcome RunAsUser(string program, params string[] arguments) => Execute(asUser: true, program, arguments);

    /// <summary>Runs a shell script, which stops at its first failure.</summary>
    public Outcome Shell(string script) => Run("bash", "-euc", "set -o pipefail; " + script);

    /// <summary>The same as an ordinary user.</summary>
    public Outcome ShellAsUser(string script) => RunAsUser("bash", "-euc", "set -o pipefail; " + script);

    /// <summary>Runs the program under test as root.</summary>
    public Outcome QcowFs(params string[] arguments) => Run(Program, arguments);

    /// <summary>Runs the program under test as an ordinary user.</summary>
    public Outcome QcowFsAsUser(params string[] arguments) => RunAsUser(Program, arguments);

    /// <summary>Starts a program inside the namespace without waiting for it.</summary>
    public Process Start(string program, params string[] arguments) => Process.Start(StartInfo(asUser: false, program, arguments))!;

    /// <summary>Makes a directory in the sandbox and gives its name.</summary>
    public string MakeDirectory(string name, bool forUser = false)
    {
        Directory.CreateDirectory($"{Path}/{name}");
        if (forUser) Run("chown", $"{OrdinaryUser}:{OrdinaryUser}", name).Expect();
        return name;
    }

    /// <summary>Process ids of the servers that run in the namespace.</summary>
    public List<int> Servers()
    {
        List<int> servers = [];
        foreach (int process in Processes())
        {
            if (ReadProc(process, "cmdline") is { } line && line.Split('\0') is ["qcowfs", "mount", ..]) servers.Add(process);
        }
        return servers;
    }

    /// <summary>Bytes that a process has written so far, to whatever.</summary>
    public static long WrittenBytes(int process) => FieldOf(process, "io", "wchar:");

    /// <summary>The most memory that a process has had, in KiB.</summary>
    public static long PeakKilobytes(int process) => FieldOf(process, "status", "VmHWM:");

    /// <summary>Waits until no server runs any more.</summary>
    public void WaitForServersToEnd()
    {
        foreach (int server in Servers()) WaitForEnd(server);
    }

    /// <summary>Waits until a process, which need not be our child, has ended with all its threads, whether or not its parent has taken
    /// notice. Its entry in /proc says less: that of a killed process can be a zombie's while other threads still hold its files.</summary>
    public static void WaitForEnd(int process)
    {
        using SafeFileHandle handle = new(Libc.OpenProcess(process), ownsHandle: true);
        Assert.True(handle.IsInvalid || Libc.WaitForEnd((int)handle.DangerousGetHandle(), (int)Limit.TotalMilliseconds), $"process {process} does not end");
    }

    public void Dispose()
    {
        try
        {
            EndEverything();
        }
        finally
        {
            _holder.Kill();
            _holder.WaitForExit();
            _holder.Dispose();
            Directory.Delete(Path, recursive: true);
        }
    }

    /// <summary>S2.</summary>
    private void EndEverything()
    {
        (string Device, string File)[] loops = [.. LoopDevices()]; // by their paths, which go with the mounts
        AbortConnections();
        foreach ((string loop, string file) in loops)
        {
            // A file system on a loop device goes first; nothing in the namespace is needed any more. While it is open a device
            // cannot become another's (S3). Of a file whose mount has gone only the name is left, or nothing where it was the mount.
            string backing = $"/sys/block/{System.IO.Path.GetFileName(loop)}/loop/backing_file";
            Execute(
                false, "sh",
                ["-c", $"exec 3<{loop} || exit; case $(cat {backing}) in {Path}/*|/{System.IO.Path.GetFileName(file)}|/) umount -l {loop}; losetup -d {loop};; esac"]);
        }

        // One that is dying may have started another.
        Wait.Until(KillProcesses, "the processes of the namespace end");
    }

    /// <summary>Kills what is left in the namespace; true when there was nothing.</summary>
    private bool KillProcesses()
    {
        int[] left = [.. Processes().Where(p => p != _holder.Id)];
        foreach (int process in left)
        {
            try
            {
                using Process found = Process.GetProcessById(process);
                found.Kill();
            }
            catch (Exception gone) when (gone is ArgumentException or InvalidOperationException)
            {
                continue;
            }
        }

        foreach (int process in left) WaitForEnd(process);
        return left.Length == 0;
    }

    private void AbortConnections()
    {
        string file = $"/proc/{_holder.Id}/mountinfo";
        if (_holder.HasExited || !File.Exists(file)) return;
        foreach (string line in File.ReadAllLines(file))
        {
            if (!line.Contains(" - fuse", StringComparison.Ordinal) || line.Contains(" - fusectl", StringComparison.Ordinal)) continue;
            string[] fields = line.Split(' ');
            // The namespace began as a copy: mounts of other programs are in it too, and their connections are the same ones.
            if (!fields[4].StartsWith(Path + "/", StringComparison.Ordinal)) continue;
            string connection = fields[2].Split(':')[1];
            Execute(false, "sh", ["-c", $"echo 1 > /sys/fs/fuse/connections/{connection}/abort; umount -l '{fields[4]}'"]);
        }
    }

    private IEnumerable<(string Device, string File)> LoopDevices()
    {
        foreach (string device in Directory.EnumerateDirectories("/sys/block", "loop*"))
        {
            if (LoopDevice.BackingFileOf(System.IO.Path.GetFileName(device)) is { } file && file.StartsWith(Path + "/", StringComparison.Ordinal))
                yield return ("/dev/" + System.IO.Path.GetFileName(device), file);
        }
    }

    /// <summary>All processes whose mount namespace is ours.</summary>
    private IEnumerable<int> Processes()
    {
        string? ours = new FileInfo($"/proc/{_holder.Id}/ns/mnt").LinkTarget;
        if (ours is null) yield break;
        foreach (string directory in Directory.EnumerateDirectories("/proc"))
        {
            if (!int.TryParse(System.IO.Path.GetFileName(directory), NumberStyles.None, CultureInfo.InvariantCulture, out int process)) continue;
            if (LinkOf(directory + "/ns/mnt") == ours) yield return process;
        }
    }

    private static string? LinkOf(string path)
    {
        try
        {
            return new FileInfo(path).LinkTarget;
        }
        catch (IOException)
        {
            return null;
        }
    }

    private static long FieldOf(int process, string file, string field)
    {
        string line = File.ReadLines($"/proc/{process}/{file}").First(l => l.StartsWith(field, StringComparison.Ordinal));
        return long.Parse(line[field.Length..].Replace("kB", "", StringComparison.Ordinal), CultureInfo.InvariantCulture);
    }

    private static string? ReadProc(int process, string file) => Wait.ReadFact($"/proc/{process}/{file}");

    private Outcome Execute(bool asUser, string program, string[] arguments)
    {
        string command = string.Join(' ', [program, .. arguments]);
        using Process process = Process.Start(StartInfo(asUser, program, arguments))!;
        process.StandardInput.Close();
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> errors = process.StandardError.ReadToEndAsync();
        // Whoever keeps the pipes open has not let go of what it was started from, so their end belongs to what is waited for.
        if (Task.WaitAll([output, errors], Limit) && process.WaitForExit(Limit))
            return new Outcome(command, process.ExitCode, output.Result, errors.Result);
        string stacks = string.Join('\n', Processes().Select(p => $"{ReadProc(p, "comm")?.Trim()}: {ReadProc(p, "stack")}"));
        AbortConnections();
        process.Kill(entireProcessTree: true);
        throw new TimeoutException($"{command}\ndid not end within {Limit}; kernel stacks:\n{stacks}");
    }

    private ProcessStartInfo StartInfo(bool asUser, string program, string[] arguments)
    {
        List<string> words = [$"--target={_holder.Id}", "--mount", $"--wdns={Path}", "--"];
        if (asUser) words.AddRange(["setpriv", $"--reuid={OrdinaryUser}", $"--regid={OrdinaryUser}", "--clear-groups", "--"]);
        return new ProcessStartInfo("nsenter", [.. words, program, .. arguments])
        {
            UseShellExecute = false,
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            Environment =
            {
                ["XDG_RUNTIME_DIR"] = $"{Path}/{(asUser ? "run-user" : "run")}",
                ["LC_ALL"] = "C",
                ["QCOWFS"] = Program,
                ["PATH"] = Environment.GetEnvironmentVariable("PATH") + ":/usr/sbin:/sbin",
            },
        };
    }
}
