// Host files that back files of ours: struct fuse_backing_map and the ioctls of /dev/fuse that take it.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_backing_map; flags and padding are 0.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct BackingMap
{
    public const int Size = 16;

    /// <summary>FUSE_DEV_IOC_BACKING_OPEN = _IOW(229, 1, struct fuse_backing_map); gives the id.</summary>
    public const nuint OpenRequest = 0x4010E501;

    /// <summary>FUSE_DEV_IOC_BACKING_CLOSE = _IOW(229, 2, uint32_t).</summary>
    public const nuint CloseRequest = 0x4004E502;

    public int Descriptor;
    public uint Flags;
    public ulong Padding;
}
