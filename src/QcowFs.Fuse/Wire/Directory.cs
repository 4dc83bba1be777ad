// Directory listings: struct fuse_dirent and fuse_direntplus, each followed by the name and padded to 8 bytes.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_dirent without its name.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DirectoryEntry
{
    public const int Size = 24;
    /// <summary>FUSE_NAME_MAX: a longer name makes the kernel fail the whole listing.</summary>
    public const int MaxNameLength = 1024;

    public ulong Inode;
    public long NextOffset;
    public uint NameLength;
    public uint Type;

    /// <summary>Bytes that an entry takes whose fixed part is <paramref name="fixedSize"/> long (FUSE_DIRENT_ALIGN).</summary>
    public static int PaddedSize(int fixedSize, int nameLength) => (fixedSize + nameLength + 7) & ~7;
}

/// <summary>struct fuse_direntplus without its name.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DirectoryEntryPlus
{
    public const int Size = EntryOut.Size + DirectoryEntry.Size;

    public EntryOut Entry;
    public DirectoryEntry Directory;
}
