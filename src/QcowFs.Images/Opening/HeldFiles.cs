// Host files that stay open, and locked, while disks over them come and go.
//   H1. A file that was opened once is the file from then on, whatever happens to its name: who asks for the path again gets it.
//       Where a file was looked for in vain, there is none from then on for who only looks: a mount may cover the name meanwhile, and
//       its own server must not ask for it.
//   H2. It is closed, and unlocked, only by Dispose, when no disk over it is open any more.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>Opens files through <paramref name="files"/> and keeps each of them. Thread-safe. What is no <see cref="FileStorage"/>
/// (a simulated file, of which there is only one anyway) passes through.</summary>
/// <param name="files">Opens and locks.</param>
public sealed class HeldFiles(IHostFiles files) : IHostFiles, IDisposable
{
    private readonly Lock _gate = new(); // guards _held, _missing and _same
    private readonly Dictionary<string, FileStorage> _held = [];
    private readonly HashSet<string> _missing = [];
    private readonly HashSet<(string First, string Second)> _same = [];

    /// <inheritdoc/>
    public IStorage Open(string path, HostAccess access, bool directIo) =>
        Get(path, access, () => files.Open(path, access, directIo));

    /// <inheritdoc/>
    public IStorage OpenBeneath(string directory, string relativePath, HostAccess access, bool directIo) =>
        Get($"{directory}\0{relativePath}", access, () => files.OpenBeneath(directory, relativePath, access, directIo));

    /// <inheritdoc/>
    public void SyncName(string path) => files.SyncName(path);

    /// <inheritdoc/>
    public void Delete(string path) => files.Delete(path);

    /// <inheritdoc/>
    public long? TryGetLength(string directory, string relativePath) => files.TryGetLength(directory, relativePath);

    /// <inheritdoc/>
    public bool IsSameFile(string first, string second)
    {
        lock (_gate)
        {
            // H1: what was found to be one file stays it.
            if (_same.Contains((first, second))) return true;
            bool isSame = files.IsSameFile(first, second);
            if (isSame) _same.Add((first, second));
            return isSame;
        }
    }

    /// <inheritdoc/>
    public IStorage CreateUnnamed(string beside, string name, bool directIo)
    {
        lock (_gate)
        {
            if (_held.TryGetValue(name, out FileStorage? held)) return held;
            IStorage made = files.CreateUnnamed(beside, name, directIo);
            if (made is FileStorage file)
            {
                file.IsHeld = true;
                _held.Add(name, file);
            }
            return made;
        }
    }

    /// <summary>Facts about a held file that was opened by its path, or null.</summary>
    public FileFacts? TryQuery(string path)
    {
        lock (_gate) return _held.TryGetValue(path, out FileStorage? file) ? file.QueryFacts() : null;
    }

    /// <summary>Device and inode of every held file.</summary>
    public IReadOnlyList<(ulong Device, ulong Inode)> Identities()
    {
        lock (_gate) return [.. _held.Values.Select(static f => f.QueryFacts()).Select(static f => (f.Device, f.Inode))];
    }

    /// <summary>Closes all.</summary>
    public void Dispose()
    {
        lock (_gate)
        {
            foreach (FileStorage file in _held.Values) End(file);
            _held.Clear();
        }
    }

    private IStorage Get(string key, HostAccess access, Func<IStorage> open)
    {
        lock (_gate)
        {
            // H1
            if (_held.TryGetValue(key, out FileStorage? held) && Covers(held, access)) return held;
            if (held is not null)
            {
                // It was for reading. Our own lock would be in the way of the one for writing.
                _held.Remove(key);
                End(held);
            }
            if (access == HostAccess.Inspect && _missing.Contains(key)) throw new StorageException(Errno.ENOENT, "open", key);
            IStorage opened = OpenOrRemember(key, access, open);
            if (opened is FileStorage file)
            {
                file.IsHeld = true;
                _held.Add(key, file);
            }
            return opened;
        }
    }

    private IStorage OpenOrRemember(string key, HostAccess access, Func<IStorage> open)
    {
        try
        {
            IStorage opened = open();
            _missing.Remove(key);
            return opened;
        }
        catch (StorageException exception) when (exception.Errno == Errno.ENOENT && access == HostAccess.Inspect)
        {
            _missing.Add(key);
            throw;
        }
    }

    // A file without a lock is no answer to who needs one.
    private static bool Covers(FileStorage held, HostAccess access) =>
        access == HostAccess.Inspect || (held.HoldsLocks && (access == HostAccess.Read || !held.IsReadOnly));

    // H2
    private static void End(FileStorage file)
    {
        file.IsHeld = false;
        file.Dispose();
    }
}
