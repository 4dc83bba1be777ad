// Operations on ranges and on durability: struct fuse_fsync_in, fuse_fallocate_in, fuse_lseek_in, fuse_lseek_out.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_fsync_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct FSyncIn
{
    public const int Size = 16;
    public const uint DataOnly = 1;

    public ulong Handle;
    public uint Flags;
    public uint Padding;
}

/// <summary>struct fuse_fallocate_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AllocateIn
{
    public const int Size = 32;

    public ulong Handle;
    public ulong Offset;
    public ulong Length;
    public int Mode;
    public uint Padding;
}

/// <summary>struct fuse_lseek_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct SeekIn
{
    public const int Size = 24;

    public ulong Handle;
    public ulong Offset;
    public uint Whence;
    public uint Padding;
}

/// <summary>struct fuse_lseek_out.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct SeekOut
{
    public const int Size = 8;

    public long Offset;
}
