// Partitions of a loop device: what sector size the disk was written for, and devices for its partitions where the kernel makes none by
// itself (it may be built without a parser; partx has one).
using System.Diagnostics;
using Microsoft.Win32.SafeHandles;

namespace QcowFs.Loop;

internal static class PartitionDevices
{
    public const int SmallSector = 512;
    public const int LargeSector = 4096;

    private const int SignatureAt = 510;

    /// <summary>The sector size that a GPT on the disk shows, or null: its header is in sector 1.</summary>
    public static int? SectorSizeOf(SafeFileHandle disk)
    {
        byte[] start = new byte[LargeSector + SmallSector];
        int length = RandomAccess.Read(disk, start, 0);
        foreach (int size in (int[])[SmallSector, LargeSector])
            if (length > size + 8 && start.AsSpan(size).StartsWith("EFI PART"u8)) return size;
        return null;
    }

    /// <summary>Makes devices for the partitions where there is a table and the kernel made none.</summary>
    public static void Add(LoopDevice device, SafeFileHandle disk)
    {
        byte[] start = new byte[SmallSector];
        int length = RandomAccess.Read(disk, start, 0);
        bool hasTable = length == SmallSector && start[SignatureAt] == 0x55 && start[SignatureAt + 1] == 0xAA;
        if (hasTable && device.Partitions.Count == 0) Run("-a", device.Path);
    }

    /// <summary>Takes the devices of the partitions away.</summary>
    public static void Remove(LoopDevice device)
    {
        if (device.Partitions.Count > 0) Run("-d", device.Path);
    }

    // A boot sector of a file system has the signature too, so that partx finds nothing is no fault.
    private static void Run(string action, string device)
    {
        try
        {
            using Process partx = Process.Start(new ProcessStartInfo("partx", [action, device])
            {
                RedirectStandardOutput = true,
                RedirectStandardError = true,
                UseShellExecute = false,
            })!;
            partx.StandardOutput.ReadToEnd();
            partx.WaitForExit();
        }
        catch (System.ComponentModel.Win32Exception)
        {
            // Without partx there are no partition devices, and the device itself is all the same of use.
            return;
        }
    }
}
