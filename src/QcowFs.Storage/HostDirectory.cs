// A directory of the host by descriptor: its entries, their facts, and the files in it. Whatever is mounted over its path later is
// not seen, and entries that are not UTF-8 are named without loss (HostText).
using System.Buffers.Binary;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>Which symbolic links a name below a directory may lead through.</summary>
public enum LinkPolicy
{
    /// <summary>None.</summary>
    None,
    /// <summary>Those that stay below the directory, whatever happens to the tree meanwhile.</summary>
    Beneath,
    /// <summary>Any.</summary>
    Any,
}

/// <summary>What an entry of a directory is, as far as the directory tells.</summary>
/// <param name="Name">Its name (<see cref="HostText"/>).</param>
/// <param name="IsLink">A symbolic link; else a regular file, or a kind that the directory does not tell.</param>
public readonly record struct HostEntry(string Name, bool IsLink);

/// <summary>An open directory. Thread-safe. Failures are <see cref="StorageException"/>.</summary>
public sealed class HostDirectory : IDisposable
{
    private const int BufferSize = 32 << 10;

    private readonly SafeFileHandle _handle;
    private readonly LinkPolicy _links;
    private readonly Lock _reading = new(); // guards the descriptor's position

    /// <summary>Opens a directory.</summary>
    /// <param name="path">Its path.</param>
    /// <param name="links">Where names in it may lead.</param>
    public HostDirectory(string path, LinkPolicy links)
    {
        Path = path;
        _links = links;
        _handle = HostFiles.OpenDirectory(path);
    }

    /// <summary>The path as it was opened.</summary>
    public string Path { get; }

    /// <summary>Every entry that may be a regular file or is a symbolic link that the policy may let pass; unordered.</summary>
    public List<HostEntry> List()
    {
        const int lengthAt = 16, typeAt = 18, nameAt = 19;
        const byte unknown = 0, regular = 8, link = 10;
        List<HostEntry> entries = [];
        byte[] buffer = new byte[BufferSize];
        lock (_reading)
        {
            int fd = (int)_handle.DangerousGetHandle();
            if (Libc.Lseek(fd, 0, Libc.SEEK_SET) < 0) throw Failure("seek");
            while (true)
            {
                nint count = Libc.GetDirectoryEntries(fd, buffer);
                if (count < 0 && Libc.LastErrno == Errno.EINTR) continue;
                if (count < 0) throw Failure("list");
                if (count == 0) return entries;
                for (ReadOnlySpan<byte> rest = buffer.AsSpan(0, (int)count); !rest.IsEmpty;)
                {
                    ReadOnlySpan<byte> entry = rest[..BinaryPrimitives.ReadUInt16LittleEndian(rest[lengthAt..])];
                    rest = rest[entry.Length..];
                    byte type = entry[typeAt];
                    if (type is not (unknown or regular) && (type != link || _links == LinkPolicy.None)) continue;
                    ReadOnlySpan<byte> name = entry[nameAt..];
                    name = name[..name.IndexOf((byte)0)];
                    if (!name.SequenceEqual("."u8) && !name.SequenceEqual(".."u8))
                        entries.Add(new HostEntry(HostText.Decode(name), type == link));
                }
            }
        }
    }

    /// <summary>Facts about what a name leads to; null where it is not there, is no regular file, or leads where the policy does not
    /// let it. Nothing is opened for reading.</summary>
    public FileFacts? TryQuery(HostEntry entry)
    {
        if (!entry.IsLink)
        {
            // No link, so nothing on the way that could be followed; a link that took its place meanwhile is no regular file.
            int directory = (int)_handle.DangerousGetHandle();
            return RegularFile(Libc.Statx(directory, entry.Name, Libc.AT_SYMLINK_NOFOLLOW, out StatxData there), there);
        }
        int fd = OpenRaw(entry.Name, Libc.O_PATH | Libc.O_CLOEXEC);
        if (fd < 0) return null;
        using SafeFileHandle file = new(fd, ownsHandle: true);
        return RegularFile(Libc.Statx(fd, Libc.STATX_BASIC_STATS, out StatxData facts), facts);
    }

    /// <summary>Opens a file by its name in the directory, or by a path below it.</summary>
    /// <param name="relativePath">Name or path.</param>
    /// <param name="access">What for.</param>
    /// <param name="directIo">Whether transfers bypass the host's page cache.</param>
    public FileStorage Open(string relativePath, StorageAccess access, bool directIo = false)
    {
        string name = System.IO.Path.Join(Path, relativePath);
        return _links == LinkPolicy.Any
            ? HostFiles.OpenAt(_handle, relativePath, name, access, directIo)
            : HostFiles.OpenBeneath(_handle, relativePath, name, access, directIo, noLinks: _links == LinkPolicy.None);
    }

    /// <summary>Opens a file that an image names; it stays beneath the directory whatever the policy for its entries.</summary>
    public FileStorage OpenBeneath(string relativePath, StorageAccess access, bool directIo) =>
        HostFiles.OpenBeneath(_handle, relativePath, System.IO.Path.Join(Path, relativePath), access, directIo);

    /// <summary>Makes a file without a name in the directory, to read and write: its space is free again when it is closed, however the
    /// process ends.</summary>
    /// <param name="name">What error messages call it.</param>
    public FileStorage CreateUnnamed(string name) => HostFiles.CreateUnnamed(_handle, name);

    /// <inheritdoc/>
    public void Dispose() => _handle.Dispose();

    private static FileFacts? RegularFile(int result, in StatxData facts) =>
        result == 0 && (facts.Mode & Libc.S_IFMT) == Libc.S_IFREG ? FileFacts.From(facts) : null;

    private int OpenRaw(string name, int flags)
    {
        int directory = (int)_handle.DangerousGetHandle();
        return _links == LinkPolicy.Any
            ? Libc.OpenAt(directory, name, flags, 0)
            : Libc.OpenAt2(directory, name, flags, 0, Libc.RESOLVE_BENEATH | Libc.RESOLVE_NO_MAGICLINKS);
    }

    private StorageException Failure(string operation) => new(Libc.LastErrno, operation, Path);
}
