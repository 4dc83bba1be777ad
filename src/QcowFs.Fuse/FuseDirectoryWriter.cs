// Lays directory entries into the reply of READDIR and READDIRPLUS.
using QcowFs.Fuse.Wire;

namespace QcowFs.Fuse;

/// <summary>Collects directory entries into a reply. Valid only during the call that received it.</summary>
public ref struct FuseDirectoryWriter
{
    private readonly Span<byte> _buffer;

    /// <summary>Writes into <paramref name="buffer"/>; the session does this, and tests of a file system may.</summary>
    public FuseDirectoryWriter(Span<byte> buffer, bool withAttributes)
    {
        _buffer = buffer;
        WithAttributes = withAttributes;
        Length = 0;
    }

    /// <summary>READDIRPLUS: entries carry attributes and count a reference.</summary>
    public bool WithAttributes { get; }

    /// <summary>Bytes used so far.</summary>
    public int Length { get; private set; }

    /// <summary>Adds one entry; false when it does not fit, which ends the listing for this call and counts no reference.
    /// <paramref name="nextOffset"/> is the position that continues after this entry; the listing of the next call begins there.
    /// Without attributes only the inode number and the type bits of the mode are shown.</summary>
    /// <exception cref="ArgumentException">The name is empty, longer than 1,024 bytes, or holds a slash or a NUL: the kernel would
    /// fail the whole listing for it.</exception>
    public bool TryAdd(scoped ReadOnlySpan<byte> name, in FuseEntry entry, long nextOffset)
    {
        if (name.IsEmpty || name.Length > DirectoryEntry.MaxNameLength || name.IndexOfAny((byte)'/', (byte)0) >= 0)
            throw new ArgumentException("A directory entry's name is 1 to 1,024 bytes without a slash or a NUL.", nameof(name));
        int fixedSize = WithAttributes ? DirectoryEntryPlus.Size : DirectoryEntry.Size;
        int padded = DirectoryEntry.PaddedSize(fixedSize, name.Length);
        if (padded > _buffer.Length - Length) return false;

        Span<byte> record = _buffer.Slice(Length, padded);
        const int typeShift = 12;
        var directory = new DirectoryEntry
        {
            Inode = entry.Attributes.Inode,
            NextOffset = nextOffset,
            NameLength = (uint)name.Length,
            Type = (entry.Attributes.Mode >> typeShift) & 0xF,
        };
        if (WithAttributes)
        {
            // The kernel takes no reference for the dot entries, and trusts what stands there only where the node is not 0.
            var plus = new DirectoryEntryPlus { Directory = directory };
            if (!IsDot(name)) plus.Entry = EntryOut.From(in entry);
            Message.Write(record, in plus);
        }
        else
        {
            Message.Write(record, in directory);
        }
        name.CopyTo(record[fixedSize..]);
        record[(fixedSize + name.Length)..].Clear();
        Length += padded;
        return true;
    }

    /// <summary>Whether <paramref name="name"/> is "." or "..".</summary>
    private static bool IsDot(ReadOnlySpan<byte> name) => name.SequenceEqual("."u8) || name.SequenceEqual(".."u8);
}
