// A disk in memory with a map of extents that tests state, and a record of what was asked of it.
using Microsoft.Win32.SafeHandles;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.FileSystem.Tests;

internal sealed class MemoryDisk : IDiskImage
{
    private byte[] _bytes;
    private readonly bool _readOnly;

    public MemoryDisk(int size, bool readOnly = false, long blockSize = 65536)
    {
        _bytes = new byte[size];
        _readOnly = readOnly;
        Info = new ImageInfo { Path = "dir/disk.qcow2", Format = "qcow2", VirtualSize = size, SizeUnit = 512, BlockSize = blockSize };
    }

    public byte[] Bytes => _bytes;

    /// <summary>The calls that matter for durability and space, in order.</summary>
    public List<string> Calls { get; } = [];

    /// <summary>The stated map; empty: all data.</summary>
    public List<(ExtentKind Kind, long Length, long Host, int Depth)> Map { get; } = [];

    /// <summary>The host file that the disk claims to be.</summary>
    public SafeFileHandle? IdentityFile { get; set; }

    /// <summary>Whether it can grow while it is open.</summary>
    public bool ResizesInPlace { get; set; }

    public StorageException? FailSync { get; set; }

    public StorageException? FailClose { get; set; }

    public ImageInfo Info { get; set; }

    public ImageStatistics Statistics { get; } = new();

    public string? Failure { get; set; }

    public string Name => Info.Path;

    public long Length => _bytes.Length;

    /// <summary>Whether the last open was for reading.</summary>
    public bool OpenedReadOnly { get; set; }

    public bool IsReadOnly => _readOnly || OpenedReadOnly;

    /// <summary>Runs before each read.</summary>
    public Action BeforeRead { get; set; } = static () => { };

    public void Read(long offset, Span<byte> destination)
    {
        BeforeRead();
        _bytes.AsSpan((int)offset, destination.Length).CopyTo(destination);
    }

    public void Write(long offset, ReadOnlySpan<byte> source) =>
        source.CopyTo(_bytes.AsSpan((int)offset, source.Length));

    public void WriteZeroes(long offset, long length)
    {
        Calls.Add($"zero {offset}+{length}");
        _bytes.AsSpan((int)offset, (int)length).Clear();
    }

    public void Discard(long offset, long length)
    {
        Calls.Add($"discard {offset}+{length}");
        _bytes.AsSpan((int)offset, (int)length).Clear();
    }

    public void Reserve(long offset, long length) => Calls.Add($"reserve {offset}+{length}");

    public bool TryGrow(long size)
    {
        if (!ResizesInPlace || size < Length) return false;
        Calls.Add($"size {size}");
        ChangeSize(size);
        return true;
    }

    public void ChangeSize(long size) => Array.Resize(ref _bytes, (int)size);

    public void SetLength(long length) => throw new StorageException(Errno.EPERM, "truncate", Name);

    public void Sync()
    {
        Calls.Add("sync");
        if (FailSync is not null) throw FailSync;
    }

    public Extent QueryExtent(long offset, long length)
    {
        if (Map.Count == 0) return new Extent(ExtentKind.Data, length, offset);
        long start = 0;
        foreach ((ExtentKind kind, long size, long host, int depth) in Map)
        {
            long into = offset - start;
            if (into < size) return new Extent(kind, Math.Min(size - into, length), host < 0 ? -1 : host + into, Depth: depth);
            start += size;
        }
        return new Extent(ExtentKind.Backing, length);
    }

    public bool TryGetIdentityFile([System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out SafeFileHandle? file)
    {
        file = IdentityFile;
        return file is not null;
    }

    public bool TryBeginOutsideWrites([System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out SafeFileHandle? file)
    {
        Calls.Add("lend");
        return TryGetIdentityFile(out file);
    }

    public void EndOutsideWrites() => Calls.Add("take back");

    public void Close()
    {
        Calls.Add("close");
        if (FailClose is not null) throw FailClose;
    }

    public void Dispose() => Calls.Add("dispose");
}
