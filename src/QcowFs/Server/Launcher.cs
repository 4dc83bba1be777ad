// Starting the background server and learning whether the mount answers.
//
// The server is this program again with the same command line, so that `ps` shows what is mounted where; an environment variable
// tells it what it is. Descriptor 3 of the server is a pipe: one byte says that the mount answers. If the pipe ends without it,
// the server has said why on the standard error that it still shares with us, and its exit code is ours.
using System.Collections;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>The starting side and the started side of the background server.</summary>
internal static class Launcher
{
    private const string Mark = "_QCOWFS_SERVER";
    private const int ReadyDescriptor = 3;

    /// <summary>Whether this process was started as the server. The mark is taken away, so that children do not inherit it.</summary>
    public static bool IsServer()
    {
        bool marked = Environment.GetEnvironmentVariable(Mark) is not null;
        if (marked) Environment.SetEnvironmentVariable(Mark, null);
        return marked;
    }

    /// <summary>Starts the server and waits until the mount answers or the server has ended; gives the exit code.</summary>
    public static int Launch(IReadOnlyList<string> words, string mountPoint)
    {
        Errno errno = Libc.Pipe(out int readEnd, out int writeEnd);
        if (errno != Errno.None) throw new CommandFailure(mountPoint, "no pipe: " + ErrnoText.Describe(errno), "close other programs");
        using SafeFileHandle answer = new(readEnd, ownsHandle: true);
        int pid;
        using (new SafeFileHandle(writeEnd, ownsHandle: true))
        {
            string program = Environment.ProcessPath!;
            List<string> arguments = [.. ProgramWords(program), .. words];
            errno = Libc.SpawnSession(program, arguments, MarkedEnvironment(), writeEnd, out pid);
        }
        if (errno != Errno.None)
            throw new CommandFailure(mountPoint, "the server does not start: " + ErrnoText.Describe(errno), "reinstall qcowfs");
        using FileStream pipe = new(answer, FileAccess.Read, bufferSize: 0);
        if (pipe.ReadByte() >= 0) return ExitCode.Done;
        int status = Libc.WaitFor(pid);
        int signal = status & 0x7F;
        return signal == 0
            ? (status >> 8) & 0xFF
            : throw new CommandFailure(mountPoint, $"the server was ended by signal {signal}", "see dmesg");
    }

    /// <summary>Server side: lets go of the terminal and of everything else that the caller gave us, then reports that the mount answers.
    /// False: the caller has gone in the meantime and nobody knows of this mount.</summary>
    public static bool ReportReady()
    {
        using SafeFileHandle answer = new(ReadyDescriptor, ownsHandle: true);
        int nowhere = Libc.Open("/dev/null", Libc.O_RDWR | Libc.O_CLOEXEC, 0);
        // Before the answer: once it is out, whoever reads the command's output must see its end.
        for (int standard = 0; standard < 3; standard++) _ = Libc.Duplicate(nowhere, standard);
        _ = Libc.Close(nowhere);
        try
        {
            using FileStream pipe = new(answer, FileAccess.Write, bufferSize: 0);
            pipe.WriteByte((byte)'1');
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }

    /// <summary>argv as far as it names the program: itself, or the runtime's host and our assembly.</summary>
    private static string[] ProgramWords(string program)
    {
        string assembly = Environment.GetCommandLineArgs()[0];
        return Path.GetFileNameWithoutExtension(program) == "dotnet" ? ["dotnet", Path.GetFullPath(assembly)] : ["qcowfs"];
    }

    private static List<string> MarkedEnvironment()
    {
        List<string> environment = [Mark + "=1"];
        foreach (DictionaryEntry entry in Environment.GetEnvironmentVariables()) environment.Add($"{entry.Key}={entry.Value}");
        return environment;
    }
}
