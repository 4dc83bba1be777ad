// The host's files with QEMU's image locks: the one implementation of IHostFiles outside of tests.
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;
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
        string name = Path.Join(directory, relativePath);
        return Lock(HostFiles.OpenBeneath(root, relativePath, name, Access(access), directIo), access);
    }

    /// <inheritdoc/>
    public void SyncName(string path) => HostFiles.SyncDirectory(DirectoryOf(path));

    /// <inheritdoc/>
    public void Delete(string path) => HostFiles.Delete(path);

    /// <summary>The directory of a path, "." for a bare name.</summary>
    internal static string DirectoryOf(string path) => Path.GetDirectoryName(path) switch
    {
        null => "/",
        "" => ".",
        string directory => directory,
    };

    private static StorageAccess Access(HostAccess access) => access switch
    {
        HostAccess.Write => StorageAccess.Write,
        HostAccess.Create => StorageAccess.Create,
        _ => StorageAccess.Read,
    };

    private static FileStorage Lock(FileStorage file, HostAccess access)
    {
        if (access == HostAccess.Inspect)
            return file;
        try
        {
            LockRole role = access == HostAccess.Read ? LockRole.Reader : LockRole.Writer;
            LockConflict? conflict = QemuLocks.TryAcquire(file, role);
            return conflict is null ? file : throw new ImageAccessException(file.Name, Errno.EAGAIN,
                $"the file is in use {(access == HostAccess.Read ? "for writing " : "")}by {conflict.Holder}",
                "stop it or unmount it first");
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }
}
