// Opens the image that a mount serves.
using QcowFs.Images;

namespace QcowFs.Server;

internal static class ImageSource
{
    public static IDiskImage Open(string path, OpenOptions options) => new ImageOpener(HostFileSystem.Instance).Open(path, options);
}
