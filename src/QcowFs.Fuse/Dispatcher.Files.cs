// Requests on open files. READ and WRITE are the hot path: one structure looked at in place, one call, one structure laid down.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal sealed partial class Dispatcher
{
    private Errno Read(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, ref int length)
    {
        if (!Message.TryRead(body, out ReadIn read) || read.Length > (uint)payload.Length) return Malformed(in header);
        if (!TryOffset(read.Offset, out long offset)) return Errno.EINVAL;
        Errno errno = _fileSystem.Read(header.Node, read.Handle, offset, payload[..(int)read.Length], out int count);
        if (errno != Errno.None) return Checked(in header, errno);
        if ((uint)count > read.Length) return Fail(in header, $"The file system read {count} of {read.Length} bytes.", Errno.EIO);
        length = count;
        return Errno.None;
    }

    private Errno Write(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, ref int length)
    {
        if (!Message.TryRead(body, out WriteIn write) || write.Length != (uint)(body.Length - WriteIn.Size)) return Malformed(in header);
        if (!TryOffset(write.Offset, out long offset)) return Errno.EINVAL;
        Errno errno = _fileSystem.Write(header.Node, write.Handle, offset, body[WriteIn.Size..], write.Flags, out int count);
        if (errno != Errno.None) return Checked(in header, errno);
        if ((uint)count > write.Length) return Fail(in header, $"The file system wrote {count} of {write.Length} bytes.", Errno.EIO);
        var result = new WriteOut { Length = (uint)count };
        length = Message.Write(payload, in result);
        return Errno.None;
    }

    private Errno Sync(in InHeader header, ReadOnlySpan<byte> body)
    {
        if (!Message.TryRead(body, out FSyncIn sync)) return Malformed(in header);
        bool dataOnly = (sync.Flags & FSyncIn.DataOnly) != 0;
        return Checked(in header, _fileSystem.Sync(header.Node, sync.Handle, dataOnly));
    }

    private Errno Allocate(in InHeader header, ReadOnlySpan<byte> body)
    {
        if (!Message.TryRead(body, out AllocateIn allocate)) return Malformed(in header);
        if (!TryOffset(allocate.Offset, out long offset) || !TryOffset(allocate.Length, out long length)) return Errno.EINVAL;
        if (length > long.MaxValue - offset) return Errno.EFBIG;
        return Checked(in header, _fileSystem.Allocate(header.Node, allocate.Handle, offset, length, allocate.Mode));
    }

    private Errno Seek(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, ref int length)
    {
        const uint seekData = 3, seekHole = 4;
        if (!Message.TryRead(body, out SeekIn seek)) return Malformed(in header);
        if (seek.Whence is not (seekData or seekHole)) return Errno.EINVAL;
        // lseek(2): an offset outside the file is ENXIO, and nothing is further outside than a negative one.
        if (!TryOffset(seek.Offset, out long offset)) return Errno.ENXIO;
        Errno errno = _fileSystem.Seek(header.Node, seek.Handle, offset, (int)seek.Whence, out long found);
        if (errno != Errno.None) return Checked(in header, errno);
        var result = new SeekOut { Offset = found };
        length = Message.Write(payload, in result);
        return Errno.None;
    }

    private Errno Open(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, ref int length)
    {
        if (!Message.TryRead(body, out OpenIn open)) return Malformed(in header);
        Errno errno = _fileSystem.Open(header.Node, open.Flags, out FuseOpenResult opened);
        if (errno != Errno.None) return Checked(in header, errno);
        length = WriteOpened(payload, in opened);
        return Errno.None;
    }

    private Errno Flush(in InHeader header, ReadOnlySpan<byte> body)
        => Message.TryRead(body, out FlushIn flush)
            ? Checked(in header, _fileSystem.Flush(header.Node, flush.Handle))
            : Malformed(in header);

    private Errno Release(in InHeader header, ReadOnlySpan<byte> body)
    {
        if (!Message.TryRead(body, out ReleaseIn release)) return Malformed(in header);
        _fileSystem.Release(header.Node, release.Handle);
        return Errno.None;
    }

    private static int WriteOpened(Span<byte> payload, in FuseOpenResult opened)
    {
        var result = new OpenOut { Handle = opened.Handle, Flags = (uint)opened.Flags, BackingId = opened.BackingId };
        return Message.Write(payload, in result);
    }

    private static bool TryOffset(ulong value, out long offset)
    {
        offset = unchecked((long)value);
        return offset >= 0;
    }
}
