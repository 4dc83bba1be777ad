// Data: struct fuse_read_in (also READDIR's), fuse_write_in, fuse_write_out.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_read_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ReadIn
{
    public const int Size = 40;

    public ulong Handle;
    public ulong Offset;
    public uint Length;
    public uint ReadFlags;
    public ulong LockOwner;
    public int Flags;
    public uint Padding;
}

/// <summary>struct fuse_write_in, followed by the data. <see cref="Flags"/> are the open(2) flags, with O_DSYNC or O_SYNC also where
/// only this one write was made with RWF_DSYNC or RWF_SYNC.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct WriteIn
{
    public const int Size = 40;

    public ulong Handle;
    public ulong Offset;
    public uint Length;
    public uint WriteFlags;
    public ulong LockOwner;
    public int Flags;
    public uint Padding;
}

/// <summary>struct fuse_write_out.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct WriteOut
{
    public const int Size = 8;

    public uint Length;
    public uint Padding;
}
