// Starting the background server and learning whether the mount answers.
//
// The server is this program again with the same command line, so that `ps` shows what is mounted where; an environment variable
// tells it what it is. Its standard descriptors are /dev/null from the start: the runtime duplicates them when it begins, so ours
// could not be let go of later. Descriptor 3 is a pipe to us, which carries one byte when the mount answers, or the error line.
using System.Collections;
using System.Text;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>The starting side and the started side of the background server.</summary>
internal static class Launcher
{
    private const string Mark = "_QCOWFS_SERVER";
    private const int AnswerDescriptor = 3;
    private const byte Ready = (byte)'1';
    private const byte NotReady = (byte)'0';

    private static SafeFileHandle? Answer; // the server's end, until it is used

    /// <summary>Whether this process was started as the server.</summary>
    public static bool IsServer { get; } = TakeMark();

    /// <summary>Starts the server and waits until the mount answers or the server has ended; gives the exit code.</summary>
    /// <param name="words">Its command line.</param>
    /// <param name="mountPoint">What messages name.</param>
    /// <param name="resident">Whether it is to serve without needing new memory (<see cref="ResidentMemory"/>).</param>
    public static int Launch(IReadOnlyList<string> words, string mountPoint, bool resident)
    {
        Errno errno = Libc.Pipe(out int readEnd, out int writeEnd);
        if (errno != Errno.None) throw new CommandFailure(mountPoint, "no pipe: " + ErrnoText.Describe(errno), "close other programs");
        using SafeFileHandle answer = new(readEnd, ownsHandle: true);
        int pid;
        using (new SafeFileHandle(writeEnd, ownsHandle: true))
        {
            string program = Environment.ProcessPath!;
            List<string> arguments = [.. ProgramWords(program), .. words];
            errno = Libc.SpawnSession(program, arguments, MarkedEnvironment(resident), writeEnd, out pid);
        }
        if (errno != Errno.None)
            throw new CommandFailure(mountPoint, "the server does not start: " + ErrnoText.Describe(errno), "reinstall qcowfs");
        using FileStream pipe = new(answer, FileAccess.Read, bufferSize: 0);
        if (pipe.ReadByte() == Ready) return ExitCode.Done;
        using StreamReader rest = new(pipe);
        string error = rest.ReadToEnd();
        Console.Error.Write(error);
        int status = Libc.WaitFor(pid);
        int signal = status & 0x7F;
        return signal == 0 && error.Length > 0
            ? (status >> 8) & 0xFF
            : throw new CommandFailure(mountPoint, $"the server ended without a word (status {status})", "see dmesg");
    }

    /// <summary>Server side: reports that the mount answers. False: the caller has gone in the meantime, and nobody knows of this
    /// mount.</summary>
    public static bool ReportReady() => Report([Ready]);

    /// <summary>Server side: passes on the error line, if the caller still waits for one.</summary>
    public static void ReportFailure(string line) => Report([NotReady, .. Encoding.UTF8.GetBytes(line + "\n")]);

    private static bool Report(ReadOnlySpan<byte> message)
    {
        if (Interlocked.Exchange(ref Answer, null) is not { } answer) return false;
        try
        {
            using FileStream pipe = new(answer, FileAccess.Write, bufferSize: 0);
            pipe.Write(message);
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }

    /// <summary>Takes the mark away, so that children do not inherit it.</summary>
    private static bool TakeMark()
    {
        if (Environment.GetEnvironmentVariable(Mark) is null) return false;
        Environment.SetEnvironmentVariable(Mark, null);
        Answer = new SafeFileHandle(AnswerDescriptor, ownsHandle: true);
        return true;
    }

    /// <summary>argv as far as it names the program: itself, or the runtime's host and our assembly.</summary>
    private static string[] ProgramWords(string program)
    {
        string assembly = Environment.GetCommandLineArgs()[0];
        return Path.GetFileNameWithoutExtension(program) == "dotnet" ? ["dotnet", Path.GetFullPath(assembly)] : ["qcowfs"];
    }

    private static List<string> MarkedEnvironment(bool resident)
    {
        List<string> environment = [Mark + "=1"];
        if (resident) environment.AddRange(ResidentMemory.Environment);
        foreach (DictionaryEntry entry in Environment.GetEnvironmentVariables()) environment.Add($"{entry.Key}={entry.Value}");
        return environment;
    }
}
