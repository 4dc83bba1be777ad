// struct fuse_statfs_out.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_statfs_out, which is struct fuse_kstatfs.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct StatFsOut
{
    public const int Size = 80;

    public ulong Blocks;
    public ulong BlocksFree;
    public ulong BlocksAvailable;
    public ulong Files;
    public ulong FilesFree;
    public uint BlockSize;
    public uint NameLength;
    public uint FragmentSize;
    public uint Padding;
    public ulong Spare0;
    public ulong Spare1;
    public ulong Spare2;

    public static StatFsOut From(in FuseStatFs source) => new()
    {
        Blocks = source.Blocks,
        BlocksFree = source.BlocksFree,
        BlocksAvailable = source.BlocksAvailable,
        Files = source.Files,
        FilesFree = source.FilesFree,
        BlockSize = source.BlockSize,
        NameLength = source.NameLength,
        FragmentSize = source.FragmentSize,
    };
}
