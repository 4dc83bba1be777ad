// Who keeps a mount busy: open files, working directories, mapped files, loop devices. Everything is read from /proc and /sys, so
// neither the mount nor its server is asked.
using System.Globalization;
using QcowFs.Loop;

namespace QcowFs.Server;

/// <summary>What holds a mount.</summary>
/// <param name="Name">In words: "bash (process 4711)", "/dev/loop0".</param>
/// <param name="IsLeaving">Whether it lets go by itself: a loop device that is detached already, and that a program which looks at it
/// (udev, blkid), or the end of an unmount, keeps for a moment.</param>
internal sealed record Holder(string Name, bool IsLeaving = false);

/// <summary>Finds the processes and devices that hold a mount.</summary>
internal static class Holders
{
    /// <summary>Each holder. What may not be looked at is left out.</summary>
    public static List<Holder> Find(MountEntry mount)
    {
        List<Holder> holders = [];
        List<MountEntry> mounts = MountTable.Read();
        HashSet<int> callers = Callers();
        foreach (string directory in Directory.EnumerateDirectories("/proc"))
        {
            string process = Path.GetFileName(directory);
            if (!int.TryParse(process, NumberStyles.None, CultureInfo.InvariantCulture, out int id) || callers.Contains(id)) continue;
            try
            {
                if (Holds(directory, process, mount)) holders.Add(new($"{File.ReadAllText(directory + "/comm").TrimEnd()} (process {process})"));
            }
            catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
            {
                continue; // it has ended, or belongs to another user
            }
        }
        foreach (LoopDevice device in LoopDevice.All())
            if (IsBelow(device.File, mount.MountPoint))
                holders.Add(new(device.Path, device.IsDetached && !mounts.Exists(m => m.Source == device.Path)));
        foreach (MountEntry other in mounts)
            if (other.Id != mount.Id && IsBelow(other.MountPoint, mount.MountPoint) && other.MountPoint != mount.MountPoint)
                holders.Add(new("the mount at " + other.MountPoint));
        return holders;
    }

    /// <summary>This process, and umount(8) where it called us: that has the mount point open while it waits for us.</summary>
    private static HashSet<int> Callers()
    {
        HashSet<int> callers = [Environment.ProcessId];
        int process = Environment.ProcessId;
        try
        {
            while (process > 1)
            {
                // pid (comm) state parent; the name may hold anything, so the fields are counted behind its end.
                string stat = File.ReadAllText($"/proc/{process}/stat");
                string name = stat[(stat.IndexOf('(', StringComparison.Ordinal) + 1)..stat.LastIndexOf(')')];
                if (name == "umount") callers.Add(process);
                process = int.Parse(stat[(stat.LastIndexOf(')') + 2)..].Split(' ')[1], CultureInfo.InvariantCulture);
            }
        }
        catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
        {
            return callers; // it has ended, or may not be looked at
        }
        return callers;
    }

    private static bool Holds(string directory, string process, MountEntry mount)
    {
        // Mount ids differ between namespaces; the device number is the same in all of them.
        HashSet<string> ids = [];
        foreach (MountEntry entry in MountTable.Read(process))
            if (entry.Device == mount.Device) ids.Add(entry.Id);
        if (ids.Count == 0) return false;
        if (IsBelow(LinkOf(directory + "/cwd"), mount.MountPoint) || IsBelow(LinkOf(directory + "/root"), mount.MountPoint)) return true;
        foreach (string file in Directory.EnumerateFiles(directory + "/fdinfo"))
            if (MountIdOf(file) is { } id && ids.Contains(id)) return true;
        return MapsFrom(directory + "/maps", mount.Device);
    }

    /// <summary>A process that has a file mapped, in words, or null where none is seen.</summary>
    /// <param name="device">Device number of the mount.</param>
    /// <param name="inode">The file's inode.</param>
    public static string? FindMapper(string device, ulong inode)
    {
        foreach (string directory in Directory.EnumerateDirectories("/proc"))
        {
            string process = Path.GetFileName(directory);
            if (!int.TryParse(process, NumberStyles.None, CultureInfo.InvariantCulture, out _)) continue;
            try
            {
                if (MapsFrom(directory + "/maps", device, inode)) return $"{File.ReadAllText(directory + "/comm").TrimEnd()} (process {process})";
            }
            catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
            {
                continue; // it has ended, or belongs to another user
            }
        }
        return null;
    }

    private static string? MountIdOf(string fdinfo)
    {
        const string key = "mnt_id:";
        try
        {
            foreach (string line in File.ReadLines(fdinfo))
                if (line.StartsWith(key, StringComparison.Ordinal)) return line[key.Length..].Trim();
        }
        catch (IOException)
        {
            return null; // closed in the meantime
        }
        return null;
    }

    /// <summary>Lines of maps: range, permissions, offset, device in hexadecimal, inode, path.</summary>
    private static bool MapsFrom(string maps, string device, ulong? inode = null)
    {
        string[] parts = device.Split(':');
        string hexadecimal = string.Create(
            CultureInfo.InvariantCulture,
            $" {int.Parse(parts[0], CultureInfo.InvariantCulture):x2}:{int.Parse(parts[1], CultureInfo.InvariantCulture):x2} {inode}");
        if (inode is not null) hexadecimal += " ";
        foreach (string line in File.ReadLines(maps))
            if (line.Contains(hexadecimal, StringComparison.Ordinal)) return true;
        return false;
    }

    private static string LinkOf(string link) => new FileInfo(link).LinkTarget ?? "";

    private static bool IsBelow(string path, string mountPoint) =>
        path == mountPoint || path.StartsWith(mountPoint.TrimEnd('/') + "/", StringComparison.Ordinal);
}
