// The kinds of storage that the same tests run on, each made on something real.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests;

public enum StorageKind
{
    Memory,
    Simulated,
    File,
    FileDirect,
    Tmpfs,
    TmpfsDirect,
    /// <summary>A file on a file system that can neither punch nor reserve.</summary>
    Ramfs,
    BlockDevice,
    BlockDeviceDirect,
    /// <summary>A block device with sectors of 4096 bytes.</summary>
    BlockDevice4KDirect,
}

/// <summary>A storage of a kind, zeros, and everything under it.</summary>
internal sealed class StorageFixture : IDisposable
{
    private readonly Stack<IDisposable> _owned = new();

    public StorageFixture(StorageKind kind, long length)
    {
        try
        {
            Kind = kind;
            Storage = Make(kind, length);
            _owned.Push(Storage);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    public static TheoryData<StorageKind> AllKinds => [.. Enum.GetValues<StorageKind>()];

    public static TheoryData<StorageKind> Files => [.. Enum.GetValues<StorageKind>().Where(kind => kind is not (StorageKind.Memory or StorageKind.Simulated))];

    public static TheoryData<StorageKind> DirectKinds => [.. Enum.GetValues<StorageKind>().Where(kind => kind.ToString().EndsWith("Direct", StringComparison.Ordinal))];

    public StorageKind Kind { get; }

    public IStorage Storage { get; }

    public FileStorage File => (FileStorage)Storage;

    /// <summary>Whether the storage can become longer or shorter.</summary>
    public bool HasFixedLength => Kind is StorageKind.BlockDevice or StorageKind.BlockDeviceDirect or StorageKind.BlockDevice4KDirect;

    public void Dispose()
    {
        while (_owned.TryPop(out IDisposable? owned))
            owned.Dispose();
    }

    private IStorage Make(StorageKind kind, long length)
    {
        switch (kind)
        {
            case StorageKind.Memory:
                return new MemoryStorage(length: length);
            case StorageKind.Simulated:
                return new SimulatedDisk().Create("simulated", length);
            case StorageKind.File:
            case StorageKind.FileDirect:
                return Open(Own(new TempDirectory())["file"], length, kind == StorageKind.FileDirect);
            case StorageKind.Tmpfs:
            case StorageKind.TmpfsDirect:
                return Open(Own(TempDirectory.InMemory())["file"], length, kind == StorageKind.TmpfsDirect);
            case StorageKind.Ramfs:
                TempDirectory directory = Own(new TempDirectory());
                MountNamespace mounts = Own(new MountNamespace());
                mounts.Run("mount", "-t", "ramfs", "none", directory.Root).MustSucceed();
                return Open(mounts.Root + directory["file"], length, directIo: false);
            default:
                string file = Own(new TempDirectory())["file"];
                Open(file, (length + 4095) / 4096 * 4096, directIo: false).Dispose();
                string[] sector = kind == StorageKind.BlockDevice4KDirect ? ["--sector-size", "4096"] : [];
                LoopDevice device = Own(new LoopDevice(file, sector));
                return HostFiles.Open(device.Path, StorageAccess.Write, directIo: kind != StorageKind.BlockDevice);
        }
    }

    private static FileStorage Open(string path, long length, bool directIo)
    {
        FileStorage file;
        try
        {
            file = HostFiles.Open(path, StorageAccess.Create, directIo);
        }
        catch (StorageException e) when (directIo && e.Errno == Native.Errno.EOPNOTSUPP)
        {
            Tools.Require(condition: false, $"no direct I/O at {path}");
            throw;
        }
        file.SetLength(length);
        return file;
    }

    private T Own<T>(T owned)
        where T : IDisposable
    {
        _owned.Push(owned);
        return owned;
    }
}
