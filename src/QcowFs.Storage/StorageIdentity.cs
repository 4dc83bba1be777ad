// Which file of which running host a storage is, for those who must know whether its page cache is still the one they wrote to.
namespace QcowFs.Storage;

/// <summary>A file of a running host. Two equal values: the same file, and the host has not started anew in between.</summary>
/// <param name="Boot">The host's boot id; 0 where the host does not tell, which equals nothing.</param>
/// <param name="Device">The file system's device number.</param>
/// <param name="Inode">The file's inode number.</param>
public readonly record struct StorageIdentity(UInt128 Boot, ulong Device, ulong Inode)
{
    /// <summary>Whether this is known to be the same file under the same boot.</summary>
    public bool IsSameAs(StorageIdentity other) => Boot != 0 && this == other;
}

/// <summary>A storage that knows its identity.</summary>
public interface IIdentifiedStorage : IStorage
{
    /// <summary>The identity now.</summary>
    StorageIdentity Identity { get; }
}
