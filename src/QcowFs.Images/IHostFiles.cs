// How images reach the host's files. The one implementation on real files is FileStorage's; tests give simulated ones, several
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

/// <summary>Opens host files by path. Thread-safe.</summary>
public interface IHostFiles
{
    /// <summary>Opens a file or throws <see cref="StorageException"/>.</summary>
    IStorage Open(string path, HostAccess access, bool directIo);
}
