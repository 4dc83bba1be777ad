// How far the kernel reads ahead in the files of a mount that it caches, which are those that cannot change. Its default for FUSE,
// 128 KiB, keeps one thread busy; a loop device over such a file was 1.5 to 2.5 times as fast with four times that. A file system cannot
// ask for more than the default when it is mounted (INIT's max_readahead only lowers it), so root sets it on the mount's device.
using System.Globalization;

namespace QcowFs.Server;

/// <summary>The window of a mount's readahead.</summary>
internal static class ReadAhead
{
    private const int KibiBytes = 512;

    /// <summary>Makes the window as large as it should be where it is smaller. Whoever may not do that keeps the kernel's.</summary>
    public static void Raise(MountEntry mount)
    {
        string window = $"/sys/class/bdi/{mount.Device}/read_ahead_kb";
        try
        {
            if (int.TryParse(File.ReadAllText(window), CultureInfo.InvariantCulture, out int now) && now < KibiBytes)
                File.WriteAllText(window, KibiBytes.ToString(CultureInfo.InvariantCulture));
        }
        catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
        {
            // A user's mount, or a container without sysfs: reads work all the same.
        }
    }
}
