// A mount of ours that serves a loop device: a file in the runtime directory that the disk covers.
using System.Globalization;
using QcowFs.Native;
using QcowFs.Server;

namespace QcowFs.Loop;

/// <summary>Mount points of loop devices.</summary>
internal static class LoopMount
{
    private const int LongestName = 100;
    private static readonly TimeSpan AbandonedAfter = TimeSpan.FromHours(1);

    /// <summary>Makes an empty file for the disk of an image to cover, and takes away what mounts of before left.</summary>
    public static string MakeMountPoint(string image)
    {
        string directory = RuntimeDirectory.Create() + "/loop";
        Directory.CreateDirectory(directory, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        RemoveAbandoned(directory);
        string name = Path.GetFileName(image);
        if (name.Length > LongestName) name = name[..LongestName];
        for (int number = 0; ; number++)
        {
            string path = string.Create(CultureInfo.InvariantCulture, $"{directory}/{number}-{name}.raw");
            try
            {
                new FileStream(path, FileMode.CreateNew, FileAccess.Write).Dispose();
                return path;
            }
            catch (IOException) when (File.Exists(path))
            {
                continue; // another mount's
            }
        }
    }

    /// <summary>Removes a mount point that nothing covers any more.</summary>
    public static void Remove(string mountPoint)
    {
        if (MountTable.FindTop(mountPoint) is null) File.Delete(mountPoint);
    }

    /// <summary>The mounts that <c>qcowfs loop</c> made and that this user may see.</summary>
    public static IEnumerable<MountEntry> All() =>
        MountTable.Read().Where(m => m.IsOurs && Path.GetDirectoryName(m.MountPoint) is { } directory && IsLoopDirectory(directory, m));

    private static bool IsLoopDirectory(string directory, MountEntry mount) =>
        RuntimeDirectory.CandidatesFor(mount.UserId, RuntimeDirectory.SocketName(mount.Device)).Any(c => directory == c + "/loop" || (Libc.Canonical(c + "/loop", out string real) == Errno.None && real == directory));

    // A server that was terminated, or killed, could not come back for the file below its mount.
    private static void RemoveAbandoned(string directory)
    {
        HashSet<string> covered = [.. MountTable.Read().Select(m => m.MountPoint)];
        foreach (string file in Directory.EnumerateFiles(directory))
        {
            if (Libc.Canonical(file, out string path) != Errno.None || covered.Contains(path)) continue;
            if (TimeProvider.System.GetUtcNow().UtcDateTime - File.GetLastWriteTimeUtc(file) > AbandonedAfter) File.Delete(file);
        }
    }
}
