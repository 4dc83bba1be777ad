// The typed fault of the environment (host file system, device), caught in one place: the channel loop or the program.
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>A host operation failed. Carries the facts that a person or the kernel needs: what, where, why.</summary>
public sealed class StorageException : IOException
{
    /// <summary>Creates the fault of one failed operation.</summary>
    /// <param name="errno">The host's error number.</param>
    /// <param name="operation">The operation in the words of the system call: "read", "write", "sync", "open".</param>
    /// <param name="path">The storage's name.</param>
    /// <param name="offset">Byte offset, or -1 where none applies.</param>
    /// <param name="length">Byte count, or -1 where none applies.</param>
    public StorageException(Errno errno, string operation, string path, long offset = -1, long length = -1)
        : base(Describe(errno, operation, path, offset, length))
    {
        Errno = errno;
        Operation = operation;
        Path = path;
        Offset = offset;
        Length = length;
    }

    /// <summary>The host's error number.</summary>
    public Errno Errno { get; }

    /// <summary>The failed operation.</summary>
    public string Operation { get; }

    /// <summary>The storage's name.</summary>
    public string Path { get; }

    /// <summary>Byte offset, or -1.</summary>
    public long Offset { get; }

    /// <summary>Byte count, or -1.</summary>
    public long Length { get; }

    /// <summary>Whether the host ran out of space, which I7 does not treat as a failure of the image.</summary>
    public bool IsOutOfSpace => Errno is Errno.ENOSPC or Errno.EDQUOT;

    private static string Describe(Errno errno, string operation, string path, long offset, long length)
    {
        string place = offset < 0 ? "" : length < 0 ? $" at byte {offset}" : $" of {length} bytes at byte {offset}";
        return $"{path}: {operation}{place} failed: {ErrnoText.Describe(errno)}";
    }
}
