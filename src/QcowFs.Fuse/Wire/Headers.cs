// The header of every request and every reply, and how a structure is read from and laid into a message.
// The protocol is in the byte order of the host, and every structure is padded to 8 bytes, so a structure of ours is the kernel's
// bytes: it is looked at in place, never copied field by field. Sizes are checked by a test against linux/fuse.h.
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_in_header.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct InHeader
{
    public const int Size = 40;

    public uint Length;
    public FuseOpcode Opcode;
    public ulong Unique;
    public ulong Node;
    public uint Uid;
    public uint Gid;
    public uint Pid;
    public ushort ExtensionLength;
    public ushort Padding;
}

/// <summary>struct fuse_out_header. <see cref="Error"/> is 0 or a negated error number; in a notification, whose
/// <see cref="Unique"/> is 0, it is the code of the notification.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct OutHeader
{
    public const int Size = 16;

    public uint Length;
    public int Error;
    public ulong Unique;
}

internal static class Message
{
    /// <summary>Looks at the structure at the start of <paramref name="bytes"/>; false where the message is too short for it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryRead<T>(ReadOnlySpan<byte> bytes, out T value)
        where T : unmanaged
        => MemoryMarshal.TryRead(bytes, out value);

    /// <summary>Lays <paramref name="value"/> at the start of <paramref name="bytes"/> and gives its length.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Write<T>(Span<byte> bytes, in T value)
        where T : unmanaged
    {
        MemoryMarshal.Write(bytes, in value);
        return Unsafe.SizeOf<T>();
    }

    /// <summary>Takes the NUL-terminated name at the start of <paramref name="bytes"/>; false where it is empty or has no end.</summary>
    public static bool TryReadName(ReadOnlySpan<byte> bytes, [UnscopedRef] out ReadOnlySpan<byte> name)
    {
        int end = bytes.IndexOf((byte)0);
        name = end > 0 ? bytes[..end] : default;
        return end > 0;
    }
}
