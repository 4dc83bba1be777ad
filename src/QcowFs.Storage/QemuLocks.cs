// The byte-range locks by which QEMU's processes agree who may use an image, so that we and they lock each other out.
// The protocol (QEMU, block/file-posix.c, raw_handle_perm_lock):
//   1. Byte 100 + i carries a shared lock of everyone who uses permission i.
//   2. Byte 200 + i carries a shared lock of everyone who does not let others use permission i.
//   3. Both are taken first and checked afterwards, so of two that come at once at least one sees the other.
//   4. The check asks whether an exclusive lock would be refused: on 200 + i for every i that is used, on 100 + i for every i
//      that is not let to others.
// They are locks of the open file description: a fork or a dup shares them, the last close drops them, and two opens in one
// process conflict like those of two processes.
using System.Globalization;
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>What an image's file is used for.</summary>
public enum LockRole
{
    /// <summary>Reads, and nobody may write or resize meanwhile. Backing files too.</summary>
    Reader,
    /// <summary>Reads, writes and resizes, and nobody else may.</summary>
    Writer,
}

/// <summary>Why a lock was refused: somebody uses the file in a way that the role excludes, or excludes the role.</summary>
/// <param name="Permission">The permission in dispute, in QEMU's words.</param>
/// <param name="HolderPid">Process that holds the other lock, or null where it cannot be seen (it is another user's, or gone).</param>
/// <param name="HolderCommand">Its command name, or null.</param>
public sealed record LockConflict(string Permission, int? HolderPid, string? HolderCommand)
{
    /// <summary>The holder in words: <c>qemu-system-x86 (process 4711)</c>, or <c>another process</c>.</summary>
    public string Holder => HolderPid is { } pid ? $"{HolderCommand ?? "a process"} (process {pid})" : "another process";
}

/// <summary>QEMU's image locks on an open file. They last until the file is closed or <see cref="Release"/>.</summary>
public static class QemuLocks
{
    private const int UsedBase = 100;
    private const int NotSharedBase = 200;

    // QEMU's permissions, by the number that is added to the bases.
    private const int Read = 0;
    private const int Write = 1;
    private const int Resize = 3;

    private static readonly string[] PermissionNames = ["consistent read", "write", "write unchanged", "resize"];
    private static readonly int[] NotShared = [Write, Resize]; // by either role

    /// <summary>Takes the locks of a role. Gives null where they are held now, else who is in the way; then nothing is held.
    /// Throws where the file system cannot lock.</summary>
    public static LockConflict? TryAcquire(FileStorage file, LockRole role)
    {
        foreach (int permission in Uses(role))
            Set(file, UsedBase + permission, Libc.F_RDLCK);
        foreach (int permission in NotShared)
            Set(file, NotSharedBase + permission, Libc.F_RDLCK);
        file.HoldsLocks = true;
        int refused = FindRefused(file, role);
        if (refused < 0)
            return null;
        // Ours go first: what is then still held on that byte is the other's.
        Release(file);
        return Describe(file, refused);
    }

    /// <summary>Who would be in the way of a role, or null; takes nothing.</summary>
    public static LockConflict? Query(FileStorage file, LockRole role)
    {
        int refused = FindRefused(file, role);
        return refused < 0 ? null : Describe(file, refused);
    }

    /// <summary>Drops all locks of the open file.</summary>
    public static void Release(FileStorage file)
    {
        for (int permission = 0; permission < PermissionNames.Length; permission++)
        {
            Set(file, UsedBase + permission, Libc.F_UNLCK);
            Set(file, NotSharedBase + permission, Libc.F_UNLCK);
        }

        file.HoldsLocks = false;
    }

    private static int[] Uses(LockRole role) => role == LockRole.Writer ? [Read, Write, Resize] : [Read];

    private static int FindRefused(FileStorage file, LockRole role)
    {
        foreach (int permission in Uses(role))
        {
            if (!WouldLock(file, NotSharedBase + permission))
                return NotSharedBase + permission;
        }
        foreach (int permission in NotShared)
        {
            if (!WouldLock(file, UsedBase + permission))
                return UsedBase + permission;
        }
        return -1;
    }

    private static void Set(FileStorage file, long at, short type)
    {
        var request = new Flock { Type = type, Whence = Libc.SEEK_SET, Start = at, Length = 1 };
        Call(file, Libc.F_OFD_SETLK, ref request);
    }

    private static bool WouldLock(FileStorage file, long at)
    {
        var request = new Flock { Type = Libc.F_WRLCK, Whence = Libc.SEEK_SET, Start = at, Length = 1 };
        Call(file, Libc.F_OFD_GETLK, ref request);
        return request.Type == Libc.F_UNLCK;
    }

    private static void Call(FileStorage file, int command, ref Flock request)
    {
        while (Libc.FcntlLock((int)file.Handle.DangerousGetHandle(), command, ref request) != 0)
        {
            if (Libc.LastErrno != Errno.EINTR)
                throw new StorageException(Libc.LastErrno, "lock", file.Name);
        }
        GC.KeepAlive(file);
    }

    private static LockConflict Describe(FileStorage file, int at)
    {
        int? pid = FindHolder(file.QueryFacts(), at);
        return new LockConflict(PermissionNames[at % UsedBase], pid, pid is { } id ? CommandOf(id) : null);
    }

    // F_OFD_GETLK does not tell the process, since a lock belongs to no process. But each process's /proc/PID/fdinfo/FD lists the
    // locks of that open file, as far as we may look: "lock:  1: OFDLCK  ADVISORY  READ -1 fe:00:1234 101 101".
    private static int? FindHolder(in FileFacts facts, int at)
    {
        string inode = ":" + facts.Inode.ToString(CultureInfo.InvariantCulture);
        foreach (string process in Directory.EnumerateDirectories("/proc"))
        {
            if (!int.TryParse(Path.GetFileName(process), NumberStyles.None, CultureInfo.InvariantCulture, out int pid))
                continue;
            try
            {
                foreach (string descriptor in Directory.EnumerateFiles(process + "/fdinfo"))
                {
                    if (HoldsLock(descriptor, inode, at) && IsSameFile($"{process}/fd/{Path.GetFileName(descriptor)}", facts))
                        return pid;
                }
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // The process has ended, or is another user's: then it stays unnamed.
                continue;
            }
        }
        return null;
    }

    private static bool HoldsLock(string descriptor, string inode, int at)
    {
        foreach (string line in File.ReadLines(descriptor))
        {
            string[] fields = line.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);
            if (fields is not ["lock:", _, "OFDLCK", _, _, _, var file, var first, var last] || !file.EndsWith(inode, StringComparison.Ordinal))
                continue;
            if (long.TryParse(first, CultureInfo.InvariantCulture, out long start) && start <= at
                && (last == "EOF" || (long.TryParse(last, CultureInfo.InvariantCulture, out long end) && at <= end)))
            {
                return true;
            }
        }
        return false;
    }

    // The device in the lock's line is the superblock's, which some file systems (btrfs) hide from stat.
    private static bool IsSameFile(string link, in FileFacts facts) =>
        Libc.Statx(link, Libc.STATX_BASIC_STATS, out StatxData other) == 0
            && other.Inode == facts.Inode
            && (((ulong)other.DeviceMajor << 32) | other.DeviceMinor) == facts.Device;

    private static string? CommandOf(int pid)
    {
        try
        {
            return File.ReadAllText($"/proc/{pid}/comm").TrimEnd('\n');
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
