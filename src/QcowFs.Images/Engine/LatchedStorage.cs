// The failure latch (I7). After a failed sync, or a write error other than ENOSPC and EDQUOT, what is on disk is unknown; from then
// on nothing more is changed through any storage that shares the latch. A sync is never repeated: after an error the kernel may
// have dropped the dirty pages and would report success.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Engine;

/// <summary>Remembers why an image takes no more changes. Thread-safe.</summary>
/// <param name="log">Told once, when the image fails; may be null.</param>
internal sealed class FailureLatch(Action<string>? log)
{
    private string? _reason;

    /// <summary>Why, or null while the image is well.</summary>
    public string? Reason => Volatile.Read(ref _reason);

    /// <summary>Fails the image. The first reason stays.</summary>
    public void Fail(string reason)
    {
        if (Interlocked.CompareExchange(ref _reason, reason, null) is null)
            log?.Invoke($"{reason}; the image takes no more changes");
    }
}

/// <summary>A storage whose changes stop for good once one of them has failed.</summary>
internal sealed class LatchedStorage(IStorage inner, FailureLatch latch) : IStorage
{
    public string Name => inner.Name;

    public long Length => inner.Length;

    public bool IsReadOnly => inner.IsReadOnly;

    /// <summary>The storage underneath.</summary>
    public IStorage Inner => inner;

    public void Read(long offset, Span<byte> destination) => inner.Read(offset, destination);

    public void Write(long offset, ReadOnlySpan<byte> source)
    {
        ThrowIfFailed("write");
        try
        {
            inner.Write(offset, source);
        }
        catch (StorageException exception)
        {
            Note(exception);
            throw;
        }
    }

    public void WriteZeroes(long offset, long length)
    {
        ThrowIfFailed("write zeroes");
        try
        {
            inner.WriteZeroes(offset, length);
        }
        catch (StorageException exception)
        {
            Note(exception);
            throw;
        }
    }

    public void Discard(long offset, long length)
    {
        ThrowIfFailed("discard");
        try
        {
            inner.Discard(offset, length);
        }
        catch (StorageException exception)
        {
            Note(exception);
            throw;
        }
    }

    public void Reserve(long offset, long length)
    {
        ThrowIfFailed("reserve");
        try
        {
            inner.Reserve(offset, length);
        }
        catch (StorageException exception)
        {
            Note(exception);
            throw;
        }
    }

    public void SetLength(long length)
    {
        ThrowIfFailed("truncate");
        try
        {
            inner.SetLength(length);
        }
        catch (StorageException exception)
        {
            Note(exception);
            throw;
        }
    }

    public void Sync()
    {
        ThrowIfFailed("sync");
        try
        {
            inner.Sync();
        }
        catch (StorageException exception)
        {
            // A disk image's sync is a commit: the host's space ended before anything was synced, and it begins anew the next time.
            if (inner is not IDiskImage || !exception.IsOutOfSpace)
                latch.Fail(exception.Message);
            throw;
        }
    }

    public void Dispose() => inner.Dispose();

    private void Note(StorageException exception)
    {
        if (!exception.IsOutOfSpace)
            latch.Fail(exception.Message);
    }

    private void ThrowIfFailed(string operation)
    {
        if (latch.Reason is not null)
            throw new StorageException(Errno.EIO, $"{operation} after an earlier failure", inner.Name);
    }
}
