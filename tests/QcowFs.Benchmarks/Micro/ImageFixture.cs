// An open image on tmpfs for the micro-benchmarks, every block of it mapped.
using QcowFs.Images;
using QcowFs.Images.Engine;

namespace QcowFs.Benchmarks.Micro;

internal sealed class ImageFixture : IDisposable
{
    public const long Size = 256L << 20;
    private readonly string _directory = Path.Combine("/dev/shm", $"qcowfs-micro-{Guid.NewGuid():N}");

    private ImageFixture(string format, bool isFull)
    {
        _ = Directory.CreateDirectory(_directory);
        string path = Path.Combine(_directory, $"disk.{format}");
        _ = Command.Run("qemu-img", ["create", "-q", "-f", format, path, $"{Size}"]);
        Image = (CowImage)new ImageOpener(HostFileSystem.Instance).Open(path, new OpenOptions { Writable = true, Lock = false, CommitInterval = TimeSpan.Zero });
        byte[] bytes = new byte[1 << 20];
        bytes.AsSpan().Fill(1);
        for (long offset = 0; isFull && offset < Size; offset += bytes.Length)
            Image.Write(offset, bytes);
        Image.Sync();
    }

    public CowImage Image { get; }

    /// <summary>A new one, for classes of benchmarks, which may be neither sealed nor disposable.</summary>
    public static ImageFixture Make(string format, bool isFull) => new(format, isFull);

    public void Dispose()
    {
        Image.Dispose();
        Directory.Delete(_directory, recursive: true);
    }
}
