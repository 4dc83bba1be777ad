// The values that pass between a file system and the library, free of the wire's layout.
namespace QcowFs.Fuse;

/// <summary>Attributes of a node, as stat(2) reports them.</summary>
public struct FuseAttributes
{
    /// <summary>Inode number shown to users.</summary>
    public ulong Inode { get; set; }
    /// <summary>Type and permission bits (S_IFREG | 0400).</summary>
    public uint Mode { get; set; }
    /// <summary>Link count.</summary>
    public uint Links { get; set; }
    /// <summary>Owner.</summary>
    public uint Uid { get; set; }
    /// <summary>Group.</summary>
    public uint Gid { get; set; }
    /// <summary>Size in bytes.</summary>
    public long Size { get; set; }
    /// <summary>Allocated space in units of 512 bytes.</summary>
    public long Blocks { get; set; }
    /// <summary>Preferred I/O size in bytes.</summary>
    public uint BlockSize { get; set; }
    /// <summary>Last access. A time left at its default is shown as 1970.</summary>
    public DateTimeOffset AccessTime { get; set; }
    /// <summary>Last change of content.</summary>
    public DateTimeOffset ModifyTime { get; set; }
    /// <summary>Last change of the inode.</summary>
    public DateTimeOffset ChangeTime { get; set; }
    /// <summary>How long the kernel may believe all this. It asks anew before each read of a file that it caches where the time is over.</summary>
    public TimeSpan Valid { get; set; }
}

/// <summary>The result of a lookup: the node and how long the kernel may believe it.</summary>
public struct FuseEntry
{
    /// <summary>Node id. 0 as the result of a lookup means: there is no such name, and the kernel may remember that for
    /// <see cref="EntryValid"/>; in a listing it means: attributes are not known, and no reference is counted.</summary>
    public ulong Node { get; set; }
    /// <summary>Distinguishes reuses of a node id.</summary>
    public ulong Generation { get; set; }
    /// <summary>How long the name stays valid.</summary>
    public TimeSpan EntryValid { get; set; }
    /// <summary>The node's attributes.</summary>
    public FuseAttributes Attributes { get; set; }
}

/// <summary>What SETATTR asks to change. A member is meant only where its flag is set.</summary>
public struct FuseSetAttributes
{
    /// <summary>Handle, or 0 where the change came without one (truncate(2), and what O_TRUNC sends).</summary>
    public ulong Handle { get; set; }
    /// <summary>New size, or null.</summary>
    public long? Size { get; set; }
    /// <summary>New permission bits, or null.</summary>
    public uint? Mode { get; set; }
    /// <summary>New owner, or null.</summary>
    public uint? Uid { get; set; }
    /// <summary>New group, or null.</summary>
    public uint? Gid { get; set; }
    /// <summary>Whether a time is to change.</summary>
    public bool Times { get; set; }
}

/// <summary>How the kernel is to treat an open file. All opens of one node must give the same flags.</summary>
[Flags]
public enum FuseOpenFlags
{
    /// <summary>Cached by the kernel and dropped at the next open.</summary>
    None = 0,
    /// <summary>FOPEN_DIRECT_IO: every read and write comes to the file system.</summary>
    DirectIo = 1,
    /// <summary>FOPEN_KEEP_CACHE: the page cache outlives the open.</summary>
    KeepCache = 2,
    /// <summary>FOPEN_NONSEEKABLE.</summary>
    NonSeekable = 4,
    /// <summary>FOPEN_CACHE_DIR: directory contents may be cached.</summary>
    CacheDirectory = 8,
    /// <summary>FOPEN_NOFLUSH: no FLUSH at close.</summary>
    NoFlush = 32,
    /// <summary>FOPEN_PARALLEL_DIRECT_WRITES: the kernel need not serialise direct writes.</summary>
    ParallelDirectWrites = 64,
    /// <summary>FOPEN_PASSTHROUGH: the kernel reads, writes and maps the host file that <see cref="FuseOpenResult.BackingId"/> names,
    /// and no READ or WRITE comes to the file system. Goes with neither <see cref="KeepCache"/> nor opens of the node without it.</summary>
    Passthrough = 128,
}

/// <summary>The result of an open.</summary>
public struct FuseOpenResult
{
    /// <summary>The handle that later requests carry.</summary>
    public ulong Handle { get; set; }
    /// <summary>How the kernel is to treat the file.</summary>
    public FuseOpenFlags Flags { get; set; }
    /// <summary>With <see cref="FuseOpenFlags.Passthrough"/>: what <see cref="IBackingFiles.TryOpen"/> gave, the same for all opens of one
    /// node.</summary>
    public int BackingId { get; set; }
}

/// <summary>The result of statfs(2).</summary>
public struct FuseStatFs
{
    /// <summary>Block size in bytes (f_bsize); a loop device takes it as its discard granularity.</summary>
    public uint BlockSize { get; set; }
    /// <summary>Fragment size in bytes: the unit of the counts below.</summary>
    public uint FragmentSize { get; set; }
    /// <summary>Total blocks.</summary>
    public ulong Blocks { get; set; }
    /// <summary>Free blocks.</summary>
    public ulong BlocksFree { get; set; }
    /// <summary>Blocks available to ordinary users.</summary>
    public ulong BlocksAvailable { get; set; }
    /// <summary>Total inodes.</summary>
    public ulong Files { get; set; }
    /// <summary>Free inodes.</summary>
    public ulong FilesFree { get; set; }
    /// <summary>Longest name in bytes.</summary>
    public uint NameLength { get; set; }
}
