// A loop device of the kernel: attached with everything set in one step, proved to work before anybody is told of it, detached so that it
// is known to be gone.
//
// L1. No device stays behind that has size 0 or cannot be read.
// L2. Detaching never leaves it to the last close by somebody else: who still uses the device is named, and it stays.
using System.Globalization;
using System.Text;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;
using QcowFs.Server;

namespace QcowFs.Loop;

/// <summary>A loop device that is attached to a file.</summary>
/// <param name="Path">Its node, "/dev/loop3".</param>
/// <param name="File">The file as the kernel names it.</param>
internal sealed record LoopDevice(string Path, string File)
{
    private const string Control = "/dev/loop-control";
    private const string Blocks = "/sys/block";
    private const int Attempts = 64;

    private static readonly TimeSpan ReleaseLimit = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan ReleaseInterval = TimeSpan.FromMilliseconds(10);

    private string Name => System.IO.Path.GetFileName(Path);

    /// <summary>Its partitions' names: "loop3p1".</summary>
    public IReadOnlyList<string> Partitions =>
        [.. Directory.EnumerateDirectories($"{Blocks}/{Name}", Name + "p*").Select(d => System.IO.Path.GetFileName(d)!).Order(StringComparer.Ordinal)];

    /// <summary>Whether the kernel lets go of the file at the last close: detached while somebody had it open, or attached so (mount -o
    /// loop).</summary>
    public bool IsDetached => ReadFact($"{Blocks}/{Name}/loop/autoclear") != "0"; // null: gone in the meantime

    /// <summary>All loop devices that are attached.</summary>
    public static IEnumerable<LoopDevice> All()
    {
        foreach (string directory in Directory.EnumerateDirectories(Blocks, "loop*").Order(StringComparer.Ordinal))
        {
            if (ReadFact(directory + "/loop/backing_file") is { } file)
                yield return new LoopDevice("/dev/" + System.IO.Path.GetFileName(directory), file);
        }
    }

    /// <summary>Fails at once where no loop device can be had at all, before anything is mounted for one.</summary>
    public static void RequirePossible() => OpenControl().Dispose();

    /// <summary>Attaches a file, with direct I/O.</summary>
    /// <param name="file">The file, open; it stays the caller's.</param>
    /// <param name="name">Its path.</param>
    /// <param name="writable">Whether the device may be written.</param>
    /// <param name="sectorSize">Logical sector size in bytes.</param>
    public static LoopDevice Attach(SafeFileHandle file, string name, bool writable, int sectorSize)
    {
        using SafeFileHandle control = OpenControl();
        // Between being told of a free device and taking it somebody else may take it.
        for (int attempt = 0; attempt < Attempts; attempt++)
        {
            int number = Libc.IoctlWithInteger(Number(control), Libc.LOOP_CTL_GET_FREE, 0);
            if (number < 0)
                throw new CommandFailure(Control, $"no loop device is to be had: {ErrnoText.Describe(Libc.LastErrno)}", "detach one that is not needed (losetup -l)");
            string path = string.Create(CultureInfo.InvariantCulture, $"/dev/loop{number}");
            using SafeFileHandle device = OpenDevice(path);
            Errno errno = Configure(device, file, name, writable, sectorSize);
            if (errno == Errno.EBUSY) continue;
            if (errno != Errno.None)
                throw new CommandFailure(path, $"the file cannot be attached: {ErrnoText.Describe(errno)}", Advice(errno));
            LoopDevice made = new(path, name);
            made.RequireUsable(device, sectorSize); // L1
            return made;
        }
        throw new CommandFailure(Control, "others take every free loop device first", "try again");
    }

    /// <summary>Who uses the device, in words; empty where it can be detached.</summary>
    public List<string> Users()
    {
        List<string> users = [];
        foreach (string node in (string[])[Name, .. Partitions])
        {
            string directory = node == Name ? $"{Blocks}/{Name}" : $"{Blocks}/{Name}/{node}";
            string? number = ReadFact(directory + "/dev");
            foreach (MountEntry mount in MountTable.Read())
                if (mount.Device == number || mount.Source == "/dev/" + node) users.Add("the mount at " + mount.MountPoint);
            if (Directory.Exists(directory + "/holders"))
                users.AddRange(Directory.EnumerateFileSystemEntries(directory + "/holders").Select(h => "/dev/" + System.IO.Path.GetFileName(h)));
        }
        return [.. users.Distinct(StringComparer.Ordinal)];
    }

    /// <summary>Detaches the device; when this returns it is free. Faults: <see cref="CommandFailure"/>, after which it is attached still,
    /// or will be until its last user closes it, who is named as far as can be seen.</summary>
    public void Detach()
    {
        if (Users() is { Count: > 0 } users) throw new CommandFailure(Path, $"in use by {string.Join(", ", users)}", "end that first");
        PartitionDevices.Remove(this);
        using (SafeFileHandle device = OpenDevice(Path))
        {
            if (Libc.IoctlWithInteger(Number(device), Libc.LOOP_CLR_FD, 0) != 0)
                throw new CommandFailure(Path, $"cannot be detached: {ErrnoText.Describe(Libc.LastErrno)}", "see \"losetup -l\"");
        }
        // The kernel lets go at the last close, which may be that of a program that looks at new devices (udev).
        long started = TimeProvider.System.GetTimestamp();
        while (ReadFact($"{Blocks}/{Name}/loop/backing_file") == File)
        {
            if (TimeProvider.System.GetElapsedTime(started) > ReleaseLimit) // L2
                throw new CommandFailure(Path, "a program has it open, and it stays attached until that closes it", "end that program, then run this again");
            Thread.Sleep(ReleaseInterval);
        }
    }

    private static Errno Configure(SafeFileHandle device, SafeFileHandle file, string name, bool writable, int sectorSize)
    {
        LoopConfiguration configuration = new()
        {
            Descriptor = (uint)Number(file),
            SectorSize = (uint)sectorSize,
            Flags = Libc.LO_FLAGS_DIRECT_IO | Libc.LO_FLAGS_PARTSCAN | (writable ? 0 : Libc.LO_FLAGS_READ_ONLY),
        };
        configuration.SetFileName(Encoding.UTF8.GetBytes(name));
        return Libc.ConfigureLoop(Number(device), configuration);
    }

    private void RequireUsable(SafeFileHandle device, int sectorSize)
    {
        string? problem = ReadFact($"{Blocks}/{Name}/size") == "0" ? "the device came out with size 0" : null;
        if (problem is null)
        {
            try
            {
                RandomAccess.Read(device, new byte[sectorSize], 0);
            }
            catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
            {
                problem = "the device cannot be read";
            }
        }
        if (problem is null) return;
        _ = Libc.IoctlWithInteger(Number(device), Libc.LOOP_CLR_FD, 0);
        throw new CommandFailure(Path, problem, "it is detached again; see dmesg");
    }

    private static SafeFileHandle OpenControl()
    {
        int fd = Libc.Open(Control, Libc.O_RDWR | Libc.O_CLOEXEC, 0);
        if (fd >= 0) return new SafeFileHandle(fd, ownsHandle: true);
        throw Libc.LastErrno is Errno.EACCES or Errno.EPERM
            ? new CommandFailure(Control, "permission denied", "run as root, who alone may attach loop devices")
            : new CommandFailure(Control, ErrnoText.Describe(Libc.LastErrno), "load the kernel's module first: modprobe loop");
    }

    private static SafeFileHandle OpenDevice(string path)
    {
        int fd = Libc.Open(path, Libc.O_RDWR | Libc.O_CLOEXEC, 0);
        if (fd >= 0) return new SafeFileHandle(fd, ownsHandle: true);
        throw Libc.LastErrno switch
        {
            Errno.EACCES or Errno.EPERM => new CommandFailure(path, "permission denied", "run as root, who alone may attach loop devices"),
            Errno.ENOENT or Errno.ENXIO => new CommandFailure(path, "every loop device that there is a node for is in use", "detach one that is not needed (losetup -l)"),
            _ => new CommandFailure(path, ErrnoText.Describe(Libc.LastErrno), "see dmesg"),
        };
    }

    private static int Number(SafeFileHandle handle) => (int)handle.DangerousGetHandle();

    private static string? ReadFact(string file)
    {
        try
        {
            return System.IO.File.ReadAllText(file).TrimEnd('\n');
        }
        catch (IOException)
        {
            return null; // gone, or not attached
        }
    }

    private static string Advice(Errno errno) => errno switch
    {
        Errno.EINVAL or Errno.ENOTTY => "use a kernel from 5.8 on, and a sector size that it knows",
        Errno.EACCES or Errno.EPERM => "run as root",
        _ => "see dmesg",
    };
}
