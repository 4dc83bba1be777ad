// The host's files with a note of every path that was opened: what a policy promises can be counted.
using QcowFs.Storage;

namespace QcowFs.Images.Tests.Support;

internal sealed class RecordingFiles : IHostFiles
{
    private readonly IHostFiles _files = HostFileSystem.Instance;

    public List<(string Path, HostAccess Access)> Opened { get; } = [];

    public IStorage Open(string path, HostAccess access, bool directIo)
    {
        Opened.Add((path, access));
        return _files.Open(path, access, directIo);
    }

    public IStorage OpenBeneath(string directory, string relativePath, HostAccess access, bool directIo)
    {
        Opened.Add((Path.Join(directory, relativePath), access));
        return _files.OpenBeneath(directory, relativePath, access, directIo);
    }

    public long? TryGetLength(string directory, string relativePath) => _files.TryGetLength(directory, relativePath);

    public void SyncName(string path) => _files.SyncName(path);

    public void Delete(string path) => _files.Delete(path);
}
