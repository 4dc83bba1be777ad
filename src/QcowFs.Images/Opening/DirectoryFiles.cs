// The host's files as seen from one open directory: paths below it are walked from its descriptor, so that a mount over it, ours
// above all, is never entered.
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>Opens and locks files, those below <paramref name="directory"/> by its descriptor. Thread-safe.</summary>
/// <param name="directory">The directory; it stays the caller's.</param>
public sealed class DirectoryFiles(HostDirectory directory) : IHostFiles
{
    private readonly HostDirectory _below = directory;
    private readonly string _prefix = directory.Path.TrimEnd('/') + "/";

    /// <inheritdoc/>
    public IStorage Open(string path, HostAccess access, bool directIo) => !path.StartsWith(_prefix, StringComparison.Ordinal)
        ? HostFileSystem.Instance.Open(path, access, directIo)
        : HostFileSystem.Lock(_below.Open(path[_prefix.Length..], HostFileSystem.Access(access), directIo), access);

    /// <inheritdoc/>
    public IStorage OpenBeneath(string directory, string relativePath, HostAccess access, bool directIo) =>
        directory.TrimEnd('/') + "/" != _prefix
            ? HostFileSystem.Instance.OpenBeneath(directory, relativePath, access, directIo)
            : HostFileSystem.Lock(_below.OpenBeneath(relativePath, HostFileSystem.Access(access), directIo), access);

    /// <inheritdoc/>
    public long? TryGetLength(string directory, string relativePath) =>
        directory.TrimEnd('/') + "/" != _prefix ? HostFileSystem.Instance.TryGetLength(directory, relativePath)
            : _below.TryQuery(new HostEntry(relativePath, IsLink: true)) is { } facts ? facts.Length : null;

    /// <inheritdoc/>
    public void SyncName(string path) => HostFileSystem.Instance.SyncName(path);

    /// <inheritdoc/>
    public void Delete(string path) => HostFileSystem.Instance.Delete(path);
}
