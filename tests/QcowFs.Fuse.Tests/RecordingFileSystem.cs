// A file system that writes down how it was called and answers what a test told it to.
using System.Collections.Concurrent;
using System.Text;
using QcowFs.Native;

namespace QcowFs.Fuse.Tests;

internal sealed class RecordingFileSystem : IFuseFileSystem
{
    /// <summary>The calls in order, as text.</summary>
    public ConcurrentQueue<string> Calls { get; } = new();

    /// <summary>Whether calls are written down. Off, nothing here allocates.</summary>
    public bool Recording { get; set; } = true;

    /// <summary>What every operation answers.</summary>
    public Errno Result { get; set; }

    /// <summary>Thrown by every operation, if set.</summary>
    public Exception? Throws { get; set; }

    /// <summary>Called by READ and WRITE before they answer, on the thread of the channel.</summary>
    public Action? BeforeTransfer { get; set; }

    /// <summary>Byte count that READ and WRITE claim; null: all of it.</summary>
    public int? Count { get; set; }

    public FuseEntry Entry { get; set; }

    public FuseAttributes Attributes { get; set; }

    public FuseOpenResult Opened { get; set; }

    public FuseStatFs Facts { get; set; }

    public long Found { get; set; }

    /// <summary>Names that a listing holds.</summary>
    public IReadOnlyList<(string Name, FuseEntry Entry)> Listing { get; set; } = [];

    public Errno Lookup(ulong parent, ReadOnlySpan<byte> name, out FuseEntry entry)
    {
        entry = Entry;
        return Answer($"lookup {parent} {Encoding.UTF8.GetString(name)}");
    }

    public void Forget(ulong node, ulong count) => Answer($"forget {node} {count}");

    public Errno GetAttributes(ulong node, ulong handle, out FuseAttributes attributes)
    {
        attributes = Attributes;
        return Answer($"getattr {node} {handle}");
    }

    public Errno SetAttributes(ulong node, in FuseSetAttributes change, out FuseAttributes attributes)
    {
        attributes = Attributes;
        return Answer($"setattr {node} handle={change.Handle} size={change.Size} mode={change.Mode} uid={change.Uid} gid={change.Gid} times={change.Times}");
    }

    public Errno Open(ulong node, int flags, out FuseOpenResult result)
    {
        result = Opened;
        return Answer($"open {node} {flags:x}");
    }

    public void Release(ulong node, ulong handle) => Answer($"release {node} {handle}");

    public Errno Read(ulong node, ulong handle, long offset, Span<byte> destination, out int count)
    {
        BeforeTransfer?.Invoke();
        for (int i = 0; i < Math.Min(destination.Length, 4096); i++) destination[i] = unchecked((byte)(offset + i));
        count = Count ?? destination.Length;
        return Recording || Throws is not null ? Answer($"read {node} {handle} {offset} {destination.Length}") : Result;
    }

    public Errno Write(ulong node, ulong handle, long offset, ReadOnlySpan<byte> source, int openFlags, out int count)
    {
        BeforeTransfer?.Invoke();
        count = Count ?? source.Length;
        return Recording || Throws is not null
            ? Answer($"write {node} {handle} {offset} {Convert.ToHexString(source[..Math.Min(source.Length, 8)])} {source.Length} {openFlags:x}")
            : Result;
    }

    public Errno Flush(ulong node, ulong handle) => Answer($"flush {node} {handle}");

    public Errno Sync(ulong node, ulong handle, bool dataOnly) => Answer($"sync {node} {handle} {dataOnly}");

    public Errno Allocate(ulong node, ulong handle, long offset, long length, int mode)
        => Answer($"allocate {node} {handle} {offset} {length} {mode}");

    public Errno Seek(ulong node, ulong handle, long offset, int whence, out long result)
    {
        result = Found;
        return Answer($"seek {node} {handle} {offset} {whence}");
    }

    public Errno OpenDirectory(ulong node, out FuseOpenResult result)
    {
        result = Opened;
        return Answer($"opendir {node}");
    }

    public Errno ReadDirectory(ulong node, ulong handle, long offset, ref FuseDirectoryWriter writer)
    {
        Calls.Enqueue($"readdir {node} {handle} {offset} {writer.WithAttributes}");
        for (int i = (int)offset; i < Listing.Count; i++)
        {
            FuseEntry entry = Listing[i].Entry;
            if (!writer.TryAdd(Encoding.UTF8.GetBytes(Listing[i].Name), in entry, i + 1)) break;
        }
        if (Throws is not null) throw Throws;
        return Result;
    }

    public void ReleaseDirectory(ulong node, ulong handle) => Answer($"releasedir {node} {handle}");

    public Errno StatFs(ulong node, out FuseStatFs result)
    {
        result = Facts;
        return Answer($"statfs {node}");
    }

    private Errno Answer(string call)
    {
        Calls.Enqueue(call);
        return Throws is null ? Result : throw Throws;
    }
}
