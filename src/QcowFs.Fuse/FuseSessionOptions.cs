// How a session is run.
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>Settings of a <see cref="FuseSession"/>, fixed when it starts.</summary>
public sealed record FuseSessionOptions
{
    /// <summary>Channel threads. 0: begin with two, and add one whenever all are busy and requests are held up by something other than
    /// computing, as far as <see cref="MaxThreads"/>.</summary>
    public int Threads { get; init; }

    /// <summary>Most threads that <see cref="Threads"/> = 0 grows to. It is also the depth at which a slow disk is driven.</summary>
    public int MaxThreads { get; init; } = 32;

    /// <summary>Whether buffers and stacks of the channels are touched before they serve, so that serving needs no new memory. Meant for a
    /// fixed number of <see cref="Threads"/>.</summary>
    public bool ResidentMemory { get; init; }

    /// <summary>Largest payload of a READ or a WRITE in bytes; a multiple of the page size, at most 256 pages.</summary>
    public int MaxPayload { get; init; } = 1 << 20;

    /// <summary>Background requests that the kernel may have in flight.</summary>
    public int MaxBackground { get; init; } = 128;

    /// <summary>Whether each channel opens a descriptor of its own (FUSE_DEV_IOC_CLONE) where /dev/fuse can be opened. A session on a
    /// descriptor that is not /dev/fuse shares it in any case.</summary>
    public bool CloneDevice { get; init; } = true;

    /// <summary>How requests come from the kernel.</summary>
    public FuseTransport Transport { get; init; }

    /// <summary>Told at most once, in words, why io_uring is not used where it was asked for, or where the kernel offers it and
    /// <see cref="Transport"/> is <see cref="FuseTransport.Automatic"/>. Called by <see cref="FuseSession.Start"/>, or by a thread of the session.</summary>
    public Action<string>? TransportRefused { get; init; }

    /// <summary>Bytes by which the entries of rings are too small for the kernel, so that it refuses them; for tests.</summary>
    internal int RingPayloadCut { get; init; }

    /// <summary>Tells how long requests are in hand; nothing else depends on it.</summary>
    public TimeProvider Time { get; init; } = TimeProvider.System;

    /// <summary>Gives the error number for an exception that left the file system. Called on a channel thread.</summary>
    public Func<Exception, Errno> MapException { get; init; } = static _ => Errno.EIO;

    /// <summary>Told of every request that was served, with the time that it took, on the thread that served it and before the answer
    /// is sent; null: nobody counts. It must be quick.</summary>
    public Action<FuseOpcode, TimeSpan>? Served { get; init; }

    /// <summary>Told of every fault once, on the thread that met it. It must not call back into the mount.</summary>
    public Action<FuseFault>? Report { get; init; }
}

/// <summary>How requests come from the kernel and replies go back.</summary>
public enum FuseTransport
{
    /// <summary>io_uring where the kernel offers it, except with <see cref="FuseSessionOptions.ResidentMemory"/>.</summary>
    Automatic,
    /// <summary>Descriptors of /dev/fuse.</summary>
    Device,
    /// <summary>io_uring (Linux 6.14, where the fuse module's enable_uring is on); the device where that is not possible.</summary>
    IoUring,
}

/// <summary>Something that went wrong while a request was served, of which the kernel only gets an error number.</summary>
/// <param name="Opcode">What was asked for; <see cref="FuseOpcode.None"/> where the request could not be read.</param>
/// <param name="Node">The node it was asked of.</param>
/// <param name="Message">One sentence.</param>
/// <param name="Exception">What the file system threw, or null where it broke its contract in another way.</param>
public readonly record struct FuseFault(FuseOpcode Opcode, ulong Node, string Message, Exception? Exception);
