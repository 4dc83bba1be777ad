// A parent of any size that holds the same byte everywhere and takes no memory.
using System.Diagnostics.CodeAnalysis;
using Microsoft.Win32.SafeHandles;
using QcowFs.Images;

namespace QcowFs.Simulation.Tests.Vhdx;

internal sealed class FilledDisk(long length, byte value) : IDiskImage
{
    public string Name => "filled";

    public long Length => length;

    public bool IsReadOnly => true;

    public ImageInfo Info { get; } = new() { Path = "filled", Format = "filled", VirtualSize = length };

    public ImageStatistics Statistics { get; } = new();

    public string? Failure => null;

    public void Read(long offset, Span<byte> destination) => destination.Fill(value);

    public Extent QueryExtent(long offset, long length) => new(ExtentKind.Data, length, offset);

    public void Write(long offset, ReadOnlySpan<byte> source) => throw new InvalidOperationException("a parent is not written");

    public void WriteZeroes(long offset, long length) => throw new InvalidOperationException("a parent is not written");

    public void Discard(long offset, long length) => throw new InvalidOperationException("a parent is not written");

    public void Reserve(long offset, long length) => throw new InvalidOperationException("a parent is not written");

    public void SetLength(long length) => throw new InvalidOperationException("a parent is not written");

    public void Sync()
    {
        // Nothing changes.
    }

    public bool TryGetIdentityFile([NotNullWhen(true)] out SafeFileHandle? file)
    {
        file = null;
        return false;
    }

    public void Close()
    {
        // Nothing to end.
    }

    public void Dispose()
    {
        // Nothing to release.
    }
}
