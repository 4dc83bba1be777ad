// How images reach the host's files. The one implementation on real files is HostFileSystem; tests give simulated ones, several
// under one fault plan.
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>How a host file is opened and locked (the locks are those of QEMU's file driver).</summary>
public enum HostAccess
{
    /// <summary>Read-only, without any lock: for facts only.</summary>
    Inspect,
    /// <summary>Read-only; refuses where another process writes.</summary>
    Read,
    /// <summary>Read and write; refuses where another process reads or writes.</summary>
    Write,
    /// <summary>Creates the file, which must not exist, to read and write it.</summary>
    Create,
}

/// <summary>Opens host files by path. Thread-safe. Faults are <see cref="StorageException"/>, and
/// <see cref="ImageInUseException"/> where somebody else uses the file.</summary>
public interface IHostFiles
{
    /// <summary>Opens a file that the user named.</summary>
    IStorage Open(string path, HostAccess access, bool directIo);

    /// <summary>Opens a file that an image named, below <paramref name="directory"/>. No component of
    /// <paramref name="relativePath"/> may leave the directory, be it by "..", by a symbolic link or by an absolute path, at whatever
    /// moment someone changes the tree: <see cref="StorageException"/> with EXDEV.</summary>
    IStorage OpenBeneath(string directory, string relativePath, HostAccess access, bool directIo);

    /// <summary>The length of a regular file that an image names, below <paramref name="directory"/>, without opening it; null where there is
    /// none, or it cannot be seen, or a symbolic link leads to it.</summary>
    long? TryGetLength(string directory, string relativePath) => null;

    /// <summary>Makes a file's name durable: a new file survives a crash only after this and its own sync.</summary>
    void SyncName(string path);

    /// <summary>Removes a file that <see cref="HostAccess.Create"/> made and that could not be completed.</summary>
    void Delete(string path);

    /// <summary>Makes a file without a name, locked by nobody, which is gone when it is closed.</summary>
    /// <param name="beside">The image beside which it lies, if its directory can be written.</param>
    /// <param name="name">What error messages call it.</param>
    /// <param name="directIo">Whether transfers bypass the host's page cache.</param>
    IStorage CreateUnnamed(string beside, string name, bool directIo) => throw new StorageException(Native.Errno.EOPNOTSUPP, "create", name);

    /// <summary>Whether two paths lead to the same file. Opens neither.</summary>
    bool IsSameFile(string first, string second) => first == second;
}
