// A storage whose end is not the end of the one below it: for an image opened for a while over a file that somebody else keeps, and
// keeps locked.
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>Passes everything on except <see cref="Dispose"/>. Thread-safe as what is below.</summary>
internal sealed class BorrowedStorage(IStorage file) : IStorage
{
    public string Name => file.Name;

    public long Length => file.Length;

    public bool IsReadOnly => file.IsReadOnly;

    public void Read(long offset, Span<byte> destination) => file.Read(offset, destination);

    public void Write(long offset, ReadOnlySpan<byte> source) => file.Write(offset, source);

    public void WriteZeroes(long offset, long length) => file.WriteZeroes(offset, length);

    public void Discard(long offset, long length) => file.Discard(offset, length);

    public void Reserve(long offset, long length) => file.Reserve(offset, length);

    public void SetLength(long length) => file.SetLength(length);

    public void Sync() => file.Sync();

    public void Dispose()
    {
        // The file stays its owner's.
    }
}
