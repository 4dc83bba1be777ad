// What a FUSE server needs of libc: its device, mounting, and receiving a descriptor from the mount program.
using System.Runtime.InteropServices;
using System.Runtime.InteropServices.Marshalling;

namespace QcowFs.Native;

public static unsafe partial class Libc
{
    /// <summary>mount: read-only.</summary>
    public const nuint MS_RDONLY = 1;
    /// <summary>mount: set-user-id bits mean nothing.</summary>
    public const nuint MS_NOSUID = 2;
    /// <summary>mount: device nodes cannot be opened.</summary>
    public const nuint MS_NODEV = 4;
    /// <summary>mount: nothing can be executed.</summary>
    public const nuint MS_NOEXEC = 8;
    /// <summary>mount: access times are not kept.</summary>
    public const nuint MS_NOATIME = 1024;

    /// <summary>umount2: out of the tree at once, the rest at the last close.</summary>
    public const int MNT_DETACH = 2;
    /// <summary>umount2: the last component is not followed where it is a symbolic link.</summary>
    public const int UMOUNT_NOFOLLOW = 8;

    /// <summary>poll: can be read.</summary>
    public const short POLLIN = 1;
    /// <summary>poll: can be written.</summary>
    public const short POLLOUT = 4;

    /// <summary>socketpair: local sockets.</summary>
    public const int AF_UNIX = 1;
    /// <summary>socketpair: a stream of bytes.</summary>
    public const int SOCK_STREAM = 1;
    /// <summary>socketpair: whole messages in order, as the FUSE device has them.</summary>
    public const int SOCK_SEQPACKET = 5;
    /// <summary>socketpair: the descriptors do not outlive execve.</summary>
    public const int SOCK_CLOEXEC = 0x80000;
    /// <summary>recvmsg: received descriptors do not outlive execve.</summary>
    public const int MSG_CMSG_CLOEXEC = 0x40000000;
    /// <summary>Level of ancillary data about sockets.</summary>
    public const int SOL_SOCKET = 1;
    /// <summary>Ancillary data that carries descriptors.</summary>
    public const int SCM_RIGHTS = 1;
    /// <summary>fcntl: set the descriptor's flags, of which FD_CLOEXEC (1) is the only one.</summary>
    public const int F_SETFD = 2;

    /// <summary>read(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "read", SetLastError = true)]
    public static partial nint Read(int fd, byte* buffer, nuint count);

    /// <summary>write(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "write", SetLastError = true)]
    public static partial nint Write(int fd, byte* buffer, nuint count);

    /// <summary>poll(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "poll", SetLastError = true)]
    public static partial int Poll(PollDescriptor* descriptors, nuint count, int timeoutMs);

    /// <summary>mount(2). <paramref name="data"/> is the file system's own option string.</summary>
    [LibraryImport(LibraryName, EntryPoint = "mount", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial int Mount(
        [MarshalUsing(typeof(HostPathMarshaller))] string source, [MarshalUsing(typeof(HostPathMarshaller))] string target,
        string type, nuint flags, string data);

    /// <summary>umount2(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "umount2", SetLastError = true)]
    public static partial int Unmount([MarshalUsing(typeof(HostPathMarshaller))] string target, int flags);

    /// <summary>socketpair(2); <paramref name="descriptors"/> receives two.</summary>
    [LibraryImport(LibraryName, EntryPoint = "socketpair", SetLastError = true)]
    public static partial int SocketPair(int domain, int type, int protocol, int* descriptors);

    /// <summary>recvmsg(2).</summary>
    [LibraryImport(LibraryName, EntryPoint = "recvmsg", SetLastError = true)]
    public static partial nint ReceiveMessage(int fd, MessageHeader* message, int flags);

    /// <summary>fcntl(2) with an integer argument.</summary>
    [LibraryImport(LibraryName, EntryPoint = "fcntl", SetLastError = true)]
    public static partial int Fcntl(int fd, int command, int argument);

    /// <summary>getuid(2), which does not fail.</summary>
    [LibraryImport(LibraryName, EntryPoint = "getuid", SetLastError = true)]
    public static partial uint GetUserId();

    /// <summary>getgid(2), which does not fail.</summary>
    [LibraryImport(LibraryName, EntryPoint = "getgid", SetLastError = true)]
    public static partial uint GetGroupId();
}

/// <summary>struct pollfd.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct PollDescriptor
{
    /// <summary>The descriptor.</summary>
    public int Descriptor;
    /// <summary>Events asked for.</summary>
    public short Events;
    /// <summary>Events that occurred.</summary>
    public short Returned;
}

/// <summary>struct msghdr of 64-bit Linux.</summary>
[StructLayout(LayoutKind.Sequential)]
public unsafe struct MessageHeader
{
    /// <summary>Peer's address.</summary>
    public void* Name;
    /// <summary>Length of the address.</summary>
    public nuint NameLength;
    /// <summary>The pieces of memory.</summary>
    public Iovec* Vectors;
    /// <summary>Number of pieces.</summary>
    public nuint VectorCount;
    /// <summary>Ancillary data.</summary>
    public void* Control;
    /// <summary>Length of the ancillary data.</summary>
    public nuint ControlLength;
    /// <summary>Flags of the received message.</summary>
    public int Flags;
}
