// The host's files as a hostile image sees them: the image itself, and little else.
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Support;

/// <summary>A host with one image in memory and, under any name that ends in "data", a file of zeros.</summary>
/// <param name="bytes">The image.</param>
/// <param name="kept">Where its changes go, or null: each open finds the image as it was.</param>
internal sealed class OneImage(byte[] bytes, MemoryStorage? kept = null) : IHostFiles
{
    public IStorage Open(string path, HostAccess access, bool directIo) => path == "image" ? kept is null ? Specimen.Storage(bytes) : new Kept(kept)
        : path.EndsWith("data", StringComparison.Ordinal) ? new MemoryStorage(path, 1 << 20)
        : throw new StorageException(QcowFs.Native.Errno.ENOENT, "open", path);

    public IStorage OpenBeneath(string directory, string relativePath, HostAccess access, bool directIo) =>
        Open(relativePath, access, directIo);

    public void SyncName(string path) => throw new StorageException(QcowFs.Native.Errno.EROFS, "sync", path);

    public void Delete(string path) => throw new StorageException(QcowFs.Native.Errno.EROFS, "delete", path);

    private sealed class Kept(MemoryStorage file) : IStorage
    {
        public string Name => file.Name;

        public long Length => file.Length;

        public bool IsReadOnly => false;

        public void Read(long offset, Span<byte> destination) => file.Read(offset, destination);

        public void Write(long offset, ReadOnlySpan<byte> source) => file.Write(offset, source);

        public void WriteZeroes(long offset, long length) => file.WriteZeroes(offset, length);

        public void Discard(long offset, long length) => file.Discard(offset, length);

        public void Reserve(long offset, long length) => file.Reserve(offset, length);

        public void SetLength(long length) => file.SetLength(length);

        public void Sync() => file.Sync();

        public void Dispose()
        {
            // The file outlives the image over it.
        }
    }
}
