// Opening and closing of files and directories: struct fuse_open_in, fuse_open_out, fuse_release_in, fuse_flush_in.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_open_in; <see cref="Flags"/> are those of open(2).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct OpenIn
{
    public const int Size = 8;

    public int Flags;
    public uint OpenFlags;
}

/// <summary>struct fuse_open_out; <see cref="Flags"/> are FOPEN_*.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct OpenOut
{
    public const int Size = 16;

    public ulong Handle;
    public uint Flags;
    public int BackingId;
}

/// <summary>struct fuse_release_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ReleaseIn
{
    public const int Size = 24;

    public ulong Handle;
    public uint Flags;
    public uint ReleaseFlags;
    public ulong LockOwner;
}

/// <summary>struct fuse_flush_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct FlushIn
{
    public const int Size = 24;

    public ulong Handle;
    public uint Unused;
    public uint Padding;
    public ulong LockOwner;
}
