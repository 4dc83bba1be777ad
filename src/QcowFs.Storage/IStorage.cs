// The one concept that carries the system: a linear, positional, synchronous byte store.
// A host file is one, a disk image is one, and so are a fault injector, a mirror and a tracer.
namespace QcowFs.Storage;

/// <summary>
/// A linear byte store with positional access. All members may be called from any thread at once, except
/// <see cref="IDisposable.Dispose"/>, which the owner calls last. Offsets and lengths are bytes. Spans belong to the caller
/// and are not kept after the call returns. Faults of the environment are <see cref="StorageException"/>.
/// </summary>
public interface IStorage : IDisposable
{
    /// <summary>What error messages call this storage: a path, as the user gave it.</summary>
    string Name { get; }

    /// <summary>The current length in bytes.</summary>
    long Length { get; }

    /// <summary>Whether every changing member throws <see cref="StorageException"/> with EROFS.</summary>
    bool IsReadOnly { get; }

    /// <summary>Fills all of <paramref name="destination"/>; bytes past the end read as zero.</summary>
    void Read(long offset, Span<byte> destination);

    /// <summary>Writes all of <paramref name="source"/> or throws; extends the storage where it ends before the last byte.
    /// Not durable before a later <see cref="Sync"/> returns.</summary>
    void Write(long offset, ReadOnlySpan<byte> source);

    /// <summary>Makes the range read as zeros and keeps space allocated for it where the storage can. Extends like a write.</summary>
    void WriteZeroes(long offset, long length);

    /// <summary>Makes the range read as zeros and gives its space back where the storage can. Never changes the length.
    /// On a disk image the range reads as zeros, never as the backing image.</summary>
    void Discard(long offset, long length);

    /// <summary>Reserves host space so that later writes to the range do not meet ENOSPC; extends the storage, new bytes read
    /// as zero, existing bytes are kept. Does nothing where the storage cannot.</summary>
    void Reserve(long offset, long length);

    /// <summary>Cuts or extends the storage; new bytes read as zero.</summary>
    void SetLength(long length);

    /// <summary>Returns when every change that returned before the call is durable. A failure is final for this storage: the
    /// caller must not call again and believe the result.</summary>
    void Sync();
}
