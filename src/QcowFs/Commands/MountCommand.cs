// qcowfs mount.
using QcowFs.CommandLine;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Mounts an image.</summary>
internal static class MountCommand
{
    public static Command Table { get; } = new(
        "mount", "mount an image: its disk appears as a raw file", ["SOURCE", "MOUNTPOINT"], MountSettings.All, Run)
    {
        ListOption = MountSettings.List,
        Notes =
            """
            SOURCE is an image file. MOUNTPOINT is an empty directory, where the disk appears as NAME.raw, or a regular
            file, which is covered and then is the raw disk. Without -w no byte of the image changes. The command returns
            when the mount answers; a background server keeps it until "qcowfs umount MOUNTPOINT".
            A loop device needs root, and root sees an ordinary user's mount only with --allow-other.
            """,
    };

    private static int Run(ParsedLine line)
    {
        MountSettings settings = MountSettings.From(line);
        if (settings.StaysInForeground) return MountServer.Run(settings, () => true);
        return Launcher.IsServer
            ? MountServer.Run(settings, Launcher.ReportReady)
            : Launcher.Launch(Environment.GetCommandLineArgs().AsSpan(1).ToArray(), settings.MountPoint, settings.Open.DirectIo);
    }
}
