// A directory of a few files, held in memory or in one plain file. Small enough to be obviously right, so that what a test finds is
// the library's doing.
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Fuse.TestServer;

/// <summary>Serves "disk", "fault", "rendezvous" and any number of empty files "f0000"..; or, as a root, the disk alone.</summary>
internal sealed unsafe class MemoryFileSystem : IFuseFileSystem, IDisposable
{
    /// <summary>The disk's bytes.</summary>
    public const ulong Disk = 2;
    /// <summary>Reading throws, fsync answers ENOSYS, writing claims more than it was given.</summary>
    public const ulong Fault = 3;
    /// <summary>A read, write, fsync or fallocate waits until as many as <see cref="Options.Rendezvous"/> are in hand.</summary>
    public const ulong Rendezvous = 4;
    private const ulong FirstEmpty = 100;

    private const uint RegularFile = 0x8000, Directory = 0x4000;
    private const int DataSync = 0x1000, PunchHole = 2, ZeroRange = 0x10, KeepSize = 1;

    private readonly Options _options;
    private readonly byte* _memory;
    private readonly int _file = -1;
    private readonly Barrier? _barrier;
    private readonly ManualResetEventSlim _never = new(false);
    private readonly SafeFileHandle? _backing;
    private IBackingFiles? _kernel;
    private int _backingId;
    private long _nextHandle = 1;

    public MemoryFileSystem(Options options)
    {
        _options = options;
        if (options.Backing is { } path)
        {
            _backing = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
            _file = (int)_backing.DangerousGetHandle();
        }
        else
            _memory = (byte*)NativeMemory.AllocZeroed((nuint)options.Size);
        if (options.Rendezvous > 0) _barrier = new Barrier(options.Rendezvous);
    }

    /// <summary>What was seen.</summary>
    public ServerStatistics Statistics { get; } = new();

    /// <summary>How the served tree looks.</summary>
    public sealed record Options(long Size, int EmptyFiles, string? Backing, bool FileAsRoot, bool Cached, int Rendezvous, uint Uid)
    {
        /// <summary>Whether the kernel serves the disk out of <see cref="Backing"/> by itself; 2: every second open forgets to say so.</summary>
        public int Passthrough { get; init; }

        /// <summary>How long each read of the disk waits.</summary>
        public int DelayMs { get; init; }
    }

    /// <summary>How asking for passthrough went.</summary>
    public string Passthrough { get; private set; } = "not asked for";

    public void Connected(IBackingFiles? backing)
    {
        _kernel = backing;
        if (_options.Passthrough == 0) return;
        Passthrough = backing is null ? "not offered" : backing.TryOpen(_backing!, out _backingId).ToString();
    }

    public Errno Lookup(ulong parent, ReadOnlySpan<byte> name, out FuseEntry entry)
    {
        ulong node = NodeOf(name);
        entry = EntryOf(node);
        if (node == 0) return Errno.ENOENT;
        Interlocked.Increment(ref Statistics.Lookups);
        Interlocked.Increment(ref Statistics.References);
        return Errno.None;
    }

    public void Forget(ulong node, ulong count)
    {
        Interlocked.Add(ref Statistics.Forgotten, (long)count);
        Interlocked.Add(ref Statistics.References, -(long)count);
    }

    public Errno GetAttributes(ulong node, ulong handle, out FuseAttributes attributes)
    {
        attributes = AttributesOf(node);
        return Errno.None;
    }

    public Errno SetAttributes(ulong node, in FuseSetAttributes change, out FuseAttributes attributes)
    {
        attributes = AttributesOf(node);
        if (change.Size is not null && change.Handle == 0) Interlocked.Increment(ref Statistics.TruncationsWithoutHandle);
        return change.Size is { } size && size != _options.Size && change.Handle != 0 ? Errno.EPERM : Errno.None;
    }

    public Errno Open(ulong node, int flags, out FuseOpenResult result)
    {
        long count = Interlocked.Increment(ref Statistics.Opens);
        if (IsDisk(node) && _backingId > 0 && (_options.Passthrough == 1 || count % 2 != 0))
        {
            result = new FuseOpenResult { Handle = (ulong)Interlocked.Increment(ref _nextHandle), Flags = FuseOpenFlags.Passthrough, BackingId = _backingId };
            return Errno.None;
        }
        result = new FuseOpenResult
        {
            Handle = (ulong)Interlocked.Increment(ref _nextHandle),
            Flags = _options.Cached ? FuseOpenFlags.KeepCache : FuseOpenFlags.DirectIo | FuseOpenFlags.ParallelDirectWrites,
        };
        return Errno.None;
    }

    public void Release(ulong node, ulong handle) => Interlocked.Increment(ref Statistics.Releases);

    public Errno Read(ulong node, ulong handle, long offset, Span<byte> destination, out int count)
    {
        count = 0;
        if (node == Fault) throw new InvalidDataException("this file cannot be read");
        if (node == Rendezvous) return MeetOthers();
        if (_options.DelayMs > 0) Delay();
        if (!IsDisk(node) || offset >= _options.Size) return Errno.None;
        count = (int)Math.Min(destination.Length, _options.Size - offset);
        Interlocked.Increment(ref Statistics.Reads);
        ServerStatistics.Raise(ref Statistics.LargestRead, count);
        fixed (byte* target = destination)
        {
            CountMisaligned(target);
            if (_file < 0) NativeMemory.Copy(_memory + offset, target, (nuint)count);
            else if (Libc.Pread(_file, target, (nuint)count, offset) != count) return Errno.EIO;
        }
        return Errno.None;
    }

    public Errno Write(ulong node, ulong handle, long offset, ReadOnlySpan<byte> source, int openFlags, out int count)
    {
        count = source.Length;
        if (node == Fault)
        {
            count++;
            return Errno.None;
        }
        if (node == Rendezvous) return MeetOthers();
        if (!IsDisk(node) || offset >= _options.Size) return Errno.ENOSPC;
        count = (int)Math.Min(source.Length, _options.Size - offset);
        if ((openFlags & DataSync) != 0) Interlocked.Increment(ref Statistics.DurableWrites);
        Interlocked.Increment(ref Statistics.Writes);
        ServerStatistics.Raise(ref Statistics.LargestWrite, count);
        fixed (byte* from = source)
        {
            CountMisaligned(from);
            if (_file < 0) NativeMemory.Copy(from, _memory + offset, (nuint)count);
            else if (Libc.Pwrite(_file, from, (nuint)count, offset) != count) return Errno.EIO;
        }
        return Errno.None;
    }

    public Errno Flush(ulong node, ulong handle)
    {
        Interlocked.Increment(ref Statistics.Flushes);
        return Errno.None;
    }

    public Errno Sync(ulong node, ulong handle, bool dataOnly)
    {
        if (node == Fault) return Errno.ENOSYS;
        if (node == Rendezvous && _barrier is not null) return MeetOthers();
        Interlocked.Increment(ref dataOnly ? ref Statistics.DataSyncs : ref Statistics.Syncs);
        return Errno.None;
    }

    public Errno Allocate(ulong node, ulong handle, long offset, long length, int mode)
    {
        if (node == Rendezvous && _barrier is not null) return MeetOthers();
        if (!IsDisk(node) || mode is not (PunchHole | KeepSize or ZeroRange or (ZeroRange | KeepSize))) return Errno.EOPNOTSUPP;
        if (offset + length > _options.Size) return Errno.ENOSPC;
        if (_file < 0) NativeMemory.Clear(_memory + offset, (nuint)length);
        return Errno.None;
    }

    public Errno Seek(ulong node, ulong handle, long offset, int whence, out long result)
    {
        const int seekData = 3;
        result = whence == seekData ? offset : _options.Size;
        return offset >= _options.Size ? Errno.ENXIO : Errno.None;
    }

    public Errno OpenDirectory(ulong node, out FuseOpenResult result)
    {
        result = new FuseOpenResult { Handle = (ulong)Interlocked.Increment(ref _nextHandle) };
        return Errno.None;
    }

    public Errno ReadDirectory(ulong node, ulong handle, long offset, ref FuseDirectoryWriter writer)
    {
        if (writer.WithAttributes) Interlocked.Increment(ref Statistics.DirectoryReadsPlus);
        Span<byte> name = stackalloc byte[16];
        for (long at = offset; at < 5 + _options.EmptyFiles; at++)
        {
            (ulong child, int length) = Child(at, name);
            FuseEntry entry = EntryOf(child);
            if (!writer.TryAdd(name[..length], in entry, at + 1)) break;
            if (writer.WithAttributes && at >= 2) Interlocked.Increment(ref Statistics.References);
        }
        return Errno.None;
    }

    public void ReleaseDirectory(ulong node, ulong handle)
    {
    }

    public Errno StatFs(ulong node, out FuseStatFs result)
    {
        result = new FuseStatFs { BlockSize = 65536, FragmentSize = 4096, Blocks = 1000, BlocksFree = 500, BlocksAvailable = 400, Files = 7, FilesFree = 0, NameLength = 255 };
        return Errno.None;
    }

    public void Dispose()
    {
        if (_backingId > 0) _kernel!.Close(_backingId);
        _backing?.Dispose();
        _barrier?.Dispose();
        _never.Dispose();
    }

    private bool IsDisk(ulong node) => node == (_options.FileAsRoot ? IFuseFileSystem.RootNode : Disk);

    private Errno MeetOthers()
    {
        long now = Interlocked.Increment(ref Statistics.ConcurrentWrites);
        ServerStatistics.Raise(ref Statistics.MostConcurrentWrites, now);
        bool met = _barrier!.SignalAndWait(TimeSpan.FromSeconds(20));
        Interlocked.Decrement(ref Statistics.ConcurrentWrites);
        return met ? Errno.None : Errno.ETIMEDOUT;
    }

    private void Delay()
    {
        long now = Interlocked.Increment(ref Statistics.ConcurrentReads);
        ServerStatistics.Raise(ref Statistics.MostConcurrentReads, now);
        _never.Wait(_options.DelayMs);
        Interlocked.Decrement(ref Statistics.ConcurrentReads);
    }

    private void CountMisaligned(byte* buffer)
    {
        if ((nuint)buffer % (nuint)Environment.SystemPageSize != 0) Interlocked.Increment(ref Statistics.MisalignedBuffers);
    }

    private ulong NodeOf(ReadOnlySpan<byte> name)
    {
        if (name.SequenceEqual("disk"u8)) return Disk;
        if (name.SequenceEqual("fault"u8)) return Fault;
        if (name.SequenceEqual("rendezvous"u8)) return Rendezvous;
        if (name.Length != 5 || name[0] != 'f') return 0;
        bool isNumber = int.TryParse(name[1..], NumberStyles.None, CultureInfo.InvariantCulture, out int number);
        return isNumber && number < _options.EmptyFiles ? FirstEmpty + (ulong)number : 0;
    }

    private static (ulong Node, int Length) Child(long position, Span<byte> name) => position switch
    {
        0 => (IFuseFileSystem.RootNode, Encoding.ASCII.GetBytes(".", name)),
        1 => (IFuseFileSystem.RootNode, Encoding.ASCII.GetBytes("..", name)),
        2 => (Disk, Encoding.ASCII.GetBytes("disk", name)),
        3 => (Fault, Encoding.ASCII.GetBytes("fault", name)),
        4 => (Rendezvous, Encoding.ASCII.GetBytes("rendezvous", name)),
        _ => (FirstEmpty + (ulong)(position - 5), Encoding.ASCII.GetBytes($"f{position - 5:D4}", name)),
    };

    private FuseEntry EntryOf(ulong node) => new()
    {
        Node = node,
        Generation = 1,
        EntryValid = TimeSpan.FromSeconds(60),
        Attributes = AttributesOf(node),
    };

    private FuseAttributes AttributesOf(ulong node)
    {
        bool isDirectory = node == IFuseFileSystem.RootNode && !_options.FileAsRoot;
        bool hasContent = IsDisk(node) || node is Fault or Rendezvous;
        return new FuseAttributes
        {
            Inode = node,
            Mode = isDirectory ? Directory | 0b111_000_000 : RegularFile | 0b110_000_000,
            Links = isDirectory ? 2u : 1u,
            Valid = TimeSpan.FromSeconds(1),
            Uid = _options.Uid,
            Gid = _options.Uid,
            Size = hasContent ? _options.Size : 0,
            Blocks = hasContent ? _options.Size / 512 : 0,
            BlockSize = 65536,
            ModifyTime = new DateTimeOffset(2020, 2, 29, 12, 34, 56, TimeSpan.Zero).AddTicks(1234567),
            AccessTime = DateTimeOffset.UnixEpoch,
            ChangeTime = DateTimeOffset.UnixEpoch.AddSeconds(-1.5),
        };
    }
}
