// The host's files with QEMU's image locks: the one implementation of IHostFiles outside of tests.
using Microsoft.Win32.SafeHandles;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>Opens and locks the host's files. Thread-safe, stateless.</summary>
public sealed class HostFileSystem : IHostFiles
{
    /// <summary>The one instance.</summary>
    public static HostFileSystem Instance { get; } = new();

    private HostFileSystem()
    {
    }

    /// <inheritdoc/>
    public IStorage Open(string path, HostAccess access, bool directIo) =>
        Lock(HostFiles.Open(path, Access(access), directIo), access);

    /// <inheritdoc/>
    public IStorage OpenBeneath(string directory, string relativePath, HostAccess access, bool directIo)
    {
        using SafeFileHandle root = HostFiles.OpenDirectory(directory);
        string name = directory == "." ? relativePath : Path.Join(directory, relativePath);
        return Lock(HostFiles.OpenBeneath(root, relativePath, name, Access(access), directIo), access);
    }

    /// <inheritdoc/>
    public long? TryGetLength(string directory, string relativePath) => HostFiles.TryGetLength(Path.Join(directory, relativePath));

    /// <inheritdoc/>
    public void SyncName(string path) => HostFiles.SyncDirectory(Path.GetDirectoryName(Path.GetFullPath(path)) ?? "/");

    /// <inheritdoc/>
    public void Delete(string path) => HostFiles.Delete(path);

    /// <inheritdoc/>
    public IStorage CreateUnnamed(string beside, string name, bool directIo) =>
        HostFiles.CreateUnnamed(Path.GetDirectoryName(Path.GetFullPath(beside)) ?? "/", name, directIo);

    /// <inheritdoc/>
    public bool IsSameFile(string first, string second) => HostFiles.AreSame(first, second);

    internal static StorageAccess Access(HostAccess access) => access switch
    {
        HostAccess.Write => StorageAccess.Write,
        HostAccess.Create => StorageAccess.Create,
        _ => StorageAccess.Read,
    };

    internal static FileStorage Lock(FileStorage file, HostAccess access)
    {
        if (access == HostAccess.Inspect)
            return file;
        try
        {
            LockRole role = access == HostAccess.Read ? LockRole.Reader : LockRole.Writer;
            LockConflict? conflict = QemuLocks.TryAcquire(file, role);
            return conflict is null ? file
                : throw new ImageInUseException(file.Name, conflict.Holder, writes: role == LockRole.Reader);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }
}
