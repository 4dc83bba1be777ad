// qcowfs mount.
using QcowFs.CommandLine;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Mounts an image.</summary>
internal static class MountCommand
{
    public static Command Table { get; } = new(
        "mount", "mount an image, or all images of a directory: disks appear as raw files", ["SOURCE", "MOUNTPOINT"], MountSettings.All, Run)
    {
        ListOption = MountSettings.List,
        Notes =
            """
            SOURCE is an image file, or a directory of them. MOUNTPOINT is an empty directory, where the disk appears as
            NAME.raw, its partitions as NAME.pN.raw and its internal snapshots as NAME@SNAPSHOT.raw, or for a single image
            a regular file, which is covered and then is the raw disk. Images of a directory appear and vanish with their
            files, are open only while they are used, and are not looked for below it; a raw one is found with -f raw.
            Without -w no byte of an image changes. The command returns when the mount answers; a background server keeps
            it until "qcowfs umount MOUNTPOINT".
            A loop device needs root, and root sees an ordinary user's mount only with --allow-other.
            """,
    };

    private static int Run(ParsedLine line)
    {
        MountSettings settings = MountSettings.From(line);
        if (settings.StaysInForeground) return MountServer.Run(settings, () => true);
        return Launcher.IsServer
            ? MountServer.Run(settings, Launcher.ReportReady)
            : Launcher.Launch(Program.GivenWords(Environment.GetCommandLineArgs()[1..]), settings.MountPoint, settings.Open.DirectIo);
    }
}
