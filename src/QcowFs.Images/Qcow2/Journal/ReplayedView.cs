// An image file as it will be when its journal is replayed, without a byte of it changed: for mounts without -w, and for checks.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>A file with patched pages over it, for reading only. Thread-safe, since nothing changes. Owns the file.</summary>
internal sealed class ReplayedView(IStorage file, PagePatches patches, long length) : IStorage
{
    public string Name => file.Name;

    public long Length => length;

    public bool IsReadOnly => true;

    public void Read(long offset, Span<byte> destination)
    {
        file.Read(offset, destination);
        patches.CopyOver(offset, destination);
    }

    public void Write(long offset, ReadOnlySpan<byte> source) => throw ReadOnly("write");

    public void WriteZeroes(long offset, long length) => throw ReadOnly("write zeroes");

    public void Discard(long offset, long length) => throw ReadOnly("discard");

    public void Reserve(long offset, long length) => throw ReadOnly("reserve");

    public void SetLength(long length) => throw ReadOnly("truncate");

    public void Sync() => file.Sync();

    public void Dispose() => file.Dispose();

    private StorageException ReadOnly(string operation) => new(Errno.EROFS, operation, file.Name);
}
