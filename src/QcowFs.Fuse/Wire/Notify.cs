// What a server tells the kernel unasked: struct fuse_notify_inval_inode_out, fuse_notify_inval_entry_out.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>enum fuse_notify_code.</summary>
internal enum NotifyCode
{
    InvalidateInode = 2,
    InvalidateEntry = 3,
}

/// <summary>struct fuse_notify_inval_inode_out. A negative offset drops attributes only; length 0 or less means to the end.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct InvalidateInodeOut
{
    public const int Size = 24;

    public ulong Node;
    public long Offset;
    public long Length;
}

/// <summary>struct fuse_notify_inval_entry_out, followed by the name and a NUL.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct InvalidateEntryOut
{
    public const int Size = 16;

    public ulong Parent;
    public uint NameLength;
    public uint Flags;
}
