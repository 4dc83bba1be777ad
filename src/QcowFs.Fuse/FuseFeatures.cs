// What kernel and server may agree on at INIT.
namespace QcowFs.Fuse;

/// <summary>The INIT flags of linux/fuse.h, the second word in the upper 32 bits.</summary>
[Flags]
public enum FuseFeatures : ulong
{
    /// <summary>Nothing.</summary>
    None = 0,
    /// <summary>FUSE_ASYNC_READ: several read requests of one file at a time.</summary>
    AsyncRead = 1UL << 0,
    /// <summary>FUSE_ATOMIC_O_TRUNC: never asked for. O_TRUNC comes as a SETATTR of its own, so that a file system can ignore it.</summary>
    AtomicTruncate = 1UL << 3,
    /// <summary>FUSE_BIG_WRITES: writes larger than a page.</summary>
    BigWrites = 1UL << 5,
    /// <summary>FUSE_AUTO_INVAL_DATA: cached pages are dropped when size or modification time change.</summary>
    AutoInvalidateData = 1UL << 12,
    /// <summary>FUSE_DO_READDIRPLUS.</summary>
    ReadDirectoryPlus = 1UL << 13,
    /// <summary>FUSE_READDIRPLUS_AUTO: the kernel asks for attributes where somebody looks at them.</summary>
    ReadDirectoryPlusAuto = 1UL << 14,
    /// <summary>FUSE_ASYNC_DIO: one asynchronous direct request is sent as several at a time.</summary>
    AsyncDirectIo = 1UL << 15,
    /// <summary>FUSE_WRITEBACK_CACHE: never asked for. It would make size and times the kernel's, and write data back long after
    /// the writer was told that it is written.</summary>
    WritebackCache = 1UL << 16,
    /// <summary>FUSE_PARALLEL_DIROPS: lookups and listings of one directory in parallel.</summary>
    ParallelDirectoryOperations = 1UL << 18,
    /// <summary>FUSE_ABORT_ERROR: an aborted connection is told from an unmounted one.</summary>
    AbortError = 1UL << 21,
    /// <summary>FUSE_MAX_PAGES: requests larger than 32 pages.</summary>
    MaxPages = 1UL << 22,
    /// <summary>FUSE_INIT_EXT: the second word of flags is meant.</summary>
    InitExtended = 1UL << 30,
    /// <summary>FUSE_HAS_EXPIRE_ONLY: an entry can be expired without being dropped.</summary>
    ExpireOnly = 1UL << 35,
    /// <summary>FUSE_DIRECT_IO_ALLOW_MMAP: never asked for. A shared mapping beside direct I/O would be stale both ways.</summary>
    DirectIoAllowMap = 1UL << 36,
    /// <summary>FUSE_PASSTHROUGH: the kernel can read and write a file of ours in a host file that backs it (<see cref="IBackingFiles"/>).
    /// </summary>
    Passthrough = 1UL << 37,
    /// <summary>FUSE_HAS_RESEND: the kernel can send again what a dead server had taken.</summary>
    Resend = 1UL << 39,
    /// <summary>FUSE_OVER_IO_URING: requests come over rings, one queue for each processor. Asked for where the rings are made already.</summary>
    OverIoUring = 1UL << 41,
}
