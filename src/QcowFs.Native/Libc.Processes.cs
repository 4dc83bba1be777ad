// Processes: starting one in a session of its own, waiting for it, its standard descriptors.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

public static unsafe partial class Libc
{
    /// <summary>kill: cannot be caught.</summary>
    public const int SIGKILL = 9;

    // posix_spawnattr_t and posix_spawn_file_actions_t are opaque: 336 and 80 bytes with glibc, less with musl.
    private const int SpawnStructureSize = 1024;
    private const short POSIX_SPAWN_SETSID = 0x80;
    private const nint PidFdOpenNumber = 434; // on every architecture

    /// <summary>
    /// Starts a program as leader of a new session. Its standard descriptors are /dev/null, descriptor 3 is
    /// <paramref name="inherited"/>; all others are closed, so that it holds nothing of our caller's open.
    /// </summary>
    /// <param name="path">The program's file.</param>
    /// <param name="arguments">argv, the program's name first.</param>
    /// <param name="environment">Entries of the form NAME=VALUE.</param>
    /// <param name="inherited">The descriptor that becomes 3; stays ours too.</param>
    /// <param name="pid">The process id where the result is <see cref="Errno.None"/>.</param>
    public static Errno SpawnSession(
        string path, IReadOnlyList<string> arguments, IReadOnlyList<string> environment, int inherited, out int pid)
    {
        const int firstClosed = 4;
        byte* attributes = stackalloc byte[SpawnStructureSize];
        byte* actions = stackalloc byte[SpawnStructureSize];
        byte** argv = null;
        byte** envp = null;
        pid = 0;
        if (SpawnAttributesInit(attributes) != 0 || SpawnActionsInit(actions) != 0) return Errno.ENOMEM;
        try
        {
            argv = ToVector(arguments);
            envp = ToVector(environment);
            // These return the error number and leave errno alone.
            int failure = SpawnAttributesSetFlags(attributes, POSIX_SPAWN_SETSID);
            if (failure == 0) failure = SpawnActionsAddDuplicate(actions, inherited, firstClosed - 1);
            for (int standard = 0; standard < firstClosed - 1 && failure == 0; standard++)
                failure = SpawnActionsAddOpen(actions, standard, "/dev/null", O_RDWR, 0);
            if (failure == 0) failure = SpawnActionsAddCloseFrom(actions, firstClosed);
            int child = 0;
            if (failure == 0) failure = PosixSpawn(&child, path, actions, attributes, argv, envp);
            pid = child;
            return (Errno)failure;
        }
        finally
        {
            _ = SpawnActionsDestroy(actions);
            _ = SpawnAttributesDestroy(attributes);
            FreeVector(argv);
            FreeVector(envp);
        }
    }

    /// <summary>waitpid(2) for one child; gives its raw status, or -1 where there is no such child.</summary>
    public static int WaitFor(int pid)
    {
        int status;
        int result;
        do result = WaitPid(pid, &status, 0);
        while (result < 0 && LastErrno == Errno.EINTR);
        return result < 0 ? -1 : status;
    }

    /// <summary>pidfd_open(2), Linux 5.3: a descriptor that stands for a process, which need not be a child; negative on failure.</summary>
    public static int OpenProcess(int pid) => (int)SyscallPidFdOpen(PidFdOpenNumber, pid, 0);

    /// <summary>Waits until the process of <see cref="OpenProcess"/> has ended and let go of all that it held, whether or not its parent
    /// has taken notice. False: it did not within the time.</summary>
    public static bool WaitForEnd(int process, int milliseconds)
    {
        PollDescriptor descriptor = new() { Descriptor = process, Events = POLLIN };
        int result;
        do result = Poll(&descriptor, 1, milliseconds);
        while (result < 0 && LastErrno == Errno.EINTR);
        return result != 0;
    }

    /// <summary>pipe2(2) with O_CLOEXEC.</summary>
    public static Errno Pipe(out int readEnd, out int writeEnd)
    {
        int* ends = stackalloc int[2];
        int result = PipeRaw(ends, O_CLOEXEC);
        readEnd = ends[0];
        writeEnd = ends[1];
        return result == 0 ? Errno.None : LastErrno;
    }

    /// <summary>kill(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "kill", SetLastError = true)]
    public static partial int Kill(int pid, int signal);

    [LibraryImport(LibraryName, EntryPoint = "waitpid", SetLastError = true)]
    private static partial int WaitPid(int pid, int* status, int options);

    [LibraryImport(LibraryName, EntryPoint = "syscall", SetLastError = true)]
    private static partial nint SyscallPidFdOpen(nint number, nint pid, nint flags);

    [LibraryImport(LibraryName, EntryPoint = "pipe2", SetLastError = true)]
    private static partial int PipeRaw(int* ends, int flags);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawn", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int PosixSpawn(int* pid, string path, byte* actions, byte* attributes, byte** argv, byte** envp);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawnattr_init")]
    private static partial int SpawnAttributesInit(byte* attributes);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawnattr_setflags")]
    private static partial int SpawnAttributesSetFlags(byte* attributes, short flags);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawnattr_destroy")]
    private static partial int SpawnAttributesDestroy(byte* attributes);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawn_file_actions_init")]
    private static partial int SpawnActionsInit(byte* actions);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawn_file_actions_addopen", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int SpawnActionsAddOpen(byte* actions, int fd, string path, int flags, uint mode);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawn_file_actions_adddup2")]
    private static partial int SpawnActionsAddDuplicate(byte* actions, int fd, int target);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawn_file_actions_addclosefrom_np")]
    private static partial int SpawnActionsAddCloseFrom(byte* actions, int first);

    [LibraryImport(LibraryName, EntryPoint = "posix_spawn_file_actions_destroy")]
    private static partial int SpawnActionsDestroy(byte* actions);

    private static byte** ToVector(IReadOnlyList<string> texts)
    {
        var vector = (byte**)NativeMemory.AllocZeroed((nuint)texts.Count + 1, (nuint)sizeof(byte*));
        for (int i = 0; i < texts.Count; i++)
        {
            vector[i] = HostPathMarshaller.ConvertToUnmanaged(texts[i]);
        }
        return vector;
    }

    private static void FreeVector(byte** vector)
    {
        for (byte** entry = vector; entry is not null && *entry is not null; entry++) NativeMemory.Free(*entry);
        NativeMemory.Free(vector);
    }
}
