// The image file as metadata sees it while there is a journal: what is committed and not in its place yet lies over the file.
//
// A page is in the overlay from the commit that logged it until a checkpoint's home write of it was synced and the tail moved past its
// records. Two generations: what commits since the last cut logged, and what is being written home. Guest data does not come here.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>A file with an overlay of pages. Thread-safe as <see cref="IStorage"/> says; the members that change the overlay are called
/// by the one thread that commits.</summary>
internal sealed class JournaledFile(IStorage file, int pageSize) : IStorage
{
    private readonly ReaderWriterLockSlim _lock = new();
    private PagePatches _current = new(pageSize);
    private PagePatches _closing = new(pageSize);

    public string Name => file.Name;

    public long Length => file.Length;

    public bool IsReadOnly => file.IsReadOnly;

    /// <summary>The file itself.</summary>
    public IStorage Inner => file;

    /// <summary>Pages logged since the last cut. Only for the thread that commits.</summary>
    public PagePatches Current => _current;

    /// <summary>Pages of the checkpoint under way. Only for the thread that commits.</summary>
    public PagePatches Closing => _closing;

    public void Read(long offset, Span<byte> destination)
    {
        // Under the lock as a whole: a page that leaves the overlay meanwhile must not be missed in both places.
        _lock.EnterReadLock();
        try
        {
            file.Read(offset, destination);
            _closing.CopyOver(offset, destination);
            _current.CopyOver(offset, destination);
        }
        finally
        {
            _lock.ExitReadLock();
        }
    }

    public void Write(long offset, ReadOnlySpan<byte> source) => file.Write(offset, source);

    public void WriteZeroes(long offset, long length) => file.WriteZeroes(offset, length);

    public void Discard(long offset, long length) => file.Discard(offset, length);

    public void Reserve(long offset, long length) => file.Reserve(offset, length);

    public void SetLength(long length) => file.SetLength(length);

    public void Sync() => file.Sync();

    public void Dispose()
    {
        file.Dispose();
        _lock.Dispose();
    }

    /// <summary>Lays committed bytes over the file.</summary>
    public void Put(long offset, ReadOnlySpan<byte> bytes)
    {
        _lock.EnterWriteLock();
        try
        {
            _current.PutRange(offset, bytes, (at, page) =>
            {
                file.Read(at, page);
                _closing.CopyOver(at, page);
            });
        }
        finally
        {
            _lock.ExitWriteLock();
        }
    }

    /// <summary>Forgets freed metadata, which must not be written home any more. Whether there was any.</summary>
    public bool Drop(long offset, long length)
    {
        if (_current.Count + _closing.Count == 0)
            return false;
        _lock.EnterWriteLock();
        try
        {
            return _current.Drop(offset, length) | _closing.Drop(offset, length);
        }
        finally
        {
            _lock.ExitWriteLock();
        }
    }

    /// <summary>What is logged now is to be written home; what is logged from here on is apart.</summary>
    public void Cut()
    {
        Invariant.Require(_closing.Count == 0, "one checkpoint at a time");
        _lock.EnterWriteLock();
        (_closing, _current) = (_current, _closing);
        _lock.ExitWriteLock();
    }

    /// <summary>What was to be written home is home, durably.</summary>
    public void EndCut()
    {
        _lock.EnterWriteLock();
        _closing.Clear();
        _lock.ExitWriteLock();
    }
}
