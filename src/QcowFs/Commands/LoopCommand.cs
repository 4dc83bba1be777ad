// qcowfs loop: a disk as a block device in one step, and its end in another.
using Microsoft.Win32.SafeHandles;
using QcowFs.CommandLine;
using QcowFs.Images;
using QcowFs.Loop;
using QcowFs.Native;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Mounts an image in the runtime directory and attaches a loop device to its disk; or takes both away.</summary>
internal static class LoopCommand
{
    private static readonly Option Detach = new("detach", "detach the device and unmount; IMAGE or DEVICE says which") { Short = 'd' };
    private static readonly Option SectorSize = new("sector-size", "logical sectors of the device: 512 or 4096; default: what the image states, or its GPT shows", "BYTES");

    public static Command Table { get; } = new(
        "loop", "attach a loop device to the disk of an image, read-only unless -w; print the device", ["IMAGE"],
        [Detach, SectorSize, .. MountSettings.All.Where(o => o != MountSettings.Foreground && o != MountSettings.NonEmpty)], Run)
    {
        ListOption = MountSettings.List,
        Notes =
            """
            The device does direct I/O. "qcowfs loop -d DEVICE" detaches it, unmounts, and says what was done. Where the
            programs that write share a small memory limit (a cgroup) with the server, --cache=none keeps the machine
            from waiting for itself. Attaching needs root.
            """,
    };

    private static int Run(ParsedLine line) => line.Has(Detach) ? DetachDevice(line.Operands[0]) : Attach(line);

    private static int Attach(ParsedLine line)
    {
        string image = line.Operands[0];
        LoopDevice.RequirePossible();
        string? stated = line.Choice(SectorSize, "512", "4096");
        ImageFileFacts facts = ImageOptions.Opener.ReadInfo(image, ImageOptions.FormatOf(line));
        string mountPoint = LoopMount.MakeMountPoint(image);
        line.Operands.Add(mountPoint);
        bool isMounted = false;
        try
        {
            MountSettings settings = MountSettings.From(line);
            int exitCode = Launcher.Launch(["mount", .. line.GivenWords(except: [Detach, SectorSize]), "--", image, mountPoint], mountPoint, settings.Open.DirectIo);
            if (exitCode != ExitCode.Done) return exitCode;
            isMounted = true;
            LoopDevice device = AttachTo(image, mountPoint, settings.IsWritable, stated is null ? StatedBy(facts) : int.Parse(stated, null));
            isMounted = false;
            Console.Out.WriteLine(device.Path);
            return ExitCode.Done;
        }
        finally
        {
            if (isMounted) TakeBack(mountPoint);
            LoopMount.Remove(mountPoint);
        }
    }

    private static LoopDevice AttachTo(string image, string mountPoint, bool writable, int? sectorSize)
    {
        int fd = Libc.Open(mountPoint, (writable ? Libc.O_RDWR : Libc.O_RDONLY) | Libc.O_CLOEXEC, 0);
        if (fd < 0) throw new CommandFailure(mountPoint, ErrnoText.Describe(Libc.LastErrno), "see the server's log");
        using SafeFileHandle disk = new(fd, ownsHandle: true);
        int sectors = sectorSize ?? PartitionDevices.SectorSizeOf(disk) ?? PartitionDevices.SmallSector;
        long length = RandomAccess.GetLength(disk);
        if (length < sectors)
            throw new CommandFailure(image, $"the disk has {length} bytes, less than a sector", "a loop device needs a disk of one sector at least");
        LoopDevice device = LoopDevice.Attach(disk, mountPoint, writable, sectors);
        PartitionDevices.Add(device, disk);
        return device;
    }

    /// <summary>Formats that know sectors state more than 512 where the disk was made so.</summary>
    private static int? StatedBy(ImageFileFacts facts)
    {
        foreach (FormatFact fact in facts.FormatSpecific)
            if (fact is { Key: "logical-sector-size", Value: long and > PartitionDevices.SmallSector }) return (int)(long)fact.Value;
        return null;
    }

    private static void TakeBack(string mountPoint)
    {
        try
        {
            Fuse.FuseMount.Unmount(mountPoint, lazy: true);
        }
        catch (Fuse.FuseMountException)
        {
            // What made us give up is what the user is told; the mount is in `qcowfs list`.
            return;
        }
    }

    private static int DetachDevice(string given)
    {
        (LoopDevice? device, MountEntry? mount) = Find(given);
        device?.Detach();
        if (mount is null)
        {
            // The server was told to end before: it has detached its mount, and closes the image now.
            Console.Out.WriteLine($"{device!.Path}: detached; its server had been told to end, and the receipt is in the log");
            return ExitCode.Done;
        }
        int exitCode = UmountCommand.Run(mount.MountPoint, lazy: false, json: false);
        LoopMount.Remove(mount.MountPoint);
        return exitCode;
    }

    private static (LoopDevice? Device, MountEntry? Mount) Find(string given)
    {
        List<LoopDevice> devices = [.. LoopDevice.All()];
        List<MountEntry> mounts = [.. LoopMount.All()];
        if (devices.Find(d => d.Path == given) is { } device)
        {
            MountEntry? mount = mounts.Find(m => m.MountPoint == device.File);
            bool isOurs = mount is not null || Path.GetFileName(Path.GetDirectoryName(device.File)) == "loop" || device.File == "/";
            return isOurs ? (device, mount) : throw new CommandFailure(given, $"is attached to {device.File}, not by qcowfs loop", "use losetup -d");
        }
        if (given.StartsWith("/dev/loop", StringComparison.Ordinal)) throw new CommandFailure(given, "is not attached", "see \"losetup -l\"");
        string source = Path.GetFullPath(given);
        mounts.RemoveAll(m => m.Source != source);
        if (mounts.Count == 0) throw new CommandFailure(given, "no loop device of qcowfs shows it", "see \"qcowfs list\" and \"losetup -l\"");
        List<string> shown = [.. devices.Where(d => mounts.Exists(m => m.MountPoint == d.File)).Select(d => d.Path)];
        if (mounts.Count > 1) throw new CommandFailure(given, $"several loop devices show it: {string.Join(", ", shown)}", "give the device");
        return (devices.Find(d => d.File == mounts[0].MountPoint), mounts[0]);
    }
}
