// FUSE_INIT: struct fuse_init_in, struct fuse_init_out and their flags.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>The first four fields of struct fuse_init_in, which every kernel sends; since 7.36 flags2 and spare fields follow.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct InitIn
{
    public const int Size = 16;
    public const int ExtendedSize = 64;

    public uint Major;
    public uint Minor;
    public uint MaxReadahead;
    public uint Flags;
}

/// <summary>struct fuse_init_out, 64 bytes since 7.23.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct InitOut
{
    public const int Size = 64;

    public uint Major;
    public uint Minor;
    public uint MaxReadahead;
    public uint Flags;
    public ushort MaxBackground;
    public ushort CongestionThreshold;
    public uint MaxWrite;
    public uint TimeGranularity;
    public ushort MaxPages;
    public ushort MapAlignment;
    public uint Flags2;
    public uint MaxStackDepth;
    public ushort RequestTimeout;
    public ushort Unused0;
    public uint Unused1;
    public uint Unused2;
    public uint Unused3;
    public uint Unused4;
    public uint Unused5;
}
