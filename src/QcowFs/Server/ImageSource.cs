// TEMPORARY raw adapter until ImageOpener lands.
using Microsoft.Win32.SafeHandles;
using QcowFs.Images;
using QcowFs.Storage;

namespace QcowFs.Server;

internal static class ImageSource
{
    public static IDiskImage Open(string path, OpenOptions options) =>
        new RawDisk(HostFiles.Open(path, options.Writable ? StorageAccess.Write : StorageAccess.Read, options.DirectIo));
}

internal sealed class RawDisk(FileStorage file) : IDiskImage
{
    public ImageInfo Info { get; } = new() { Path = file.Name, Format = "raw", VirtualSize = file.Length };
    public ImageStatistics Statistics { get; } = new();
    public string? Failure => null;
    public string Name => file.Name;
    public long Length => file.Length;
    public bool IsReadOnly => file.IsReadOnly;
    public void Read(long offset, Span<byte> destination) => file.Read(offset, destination);
    public void Write(long offset, ReadOnlySpan<byte> source) => file.Write(offset, source);
    public void WriteZeroes(long offset, long length) => file.WriteZeroes(offset, length);
    public void Discard(long offset, long length) => file.Discard(offset, length);
    public void Reserve(long offset, long length) => file.Reserve(offset, length);
    public void SetLength(long length) => file.SetLength(length);
    public void Sync() => file.Sync();
    public Extent QueryExtent(long offset, long length) => new(ExtentKind.Data, length, offset);
    public bool TryGetIdentityFile([System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out SafeFileHandle? handle) { handle = null; return false; }
    public void Close() { if (!IsReadOnly) file.Sync(); }
    public void Dispose() => file.Dispose();
}
