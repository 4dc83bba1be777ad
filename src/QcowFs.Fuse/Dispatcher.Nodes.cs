// Requests on names, nodes and directories.
using System.Runtime.InteropServices;
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal sealed partial class Dispatcher
{
    private Errno Lookup(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, ref int length)
    {
        if (!Message.TryReadName(body, out ReadOnlySpan<byte> name)) return Malformed(in header);
        Errno errno = _fileSystem.Lookup(header.Node, name, out FuseEntry entry);
        if (errno != Errno.None) return Checked(in header, errno);
        EntryOut result = EntryOut.From(in entry);
        length = Message.Write(payload, in result);
        return Errno.None;
    }

    private Errno Forget(in InHeader header, ReadOnlySpan<byte> body)
    {
        if (!Message.TryRead(body, out ForgetIn forget)) return Malformed(in header);
        _fileSystem.Forget(header.Node, forget.Count);
        return Errno.None;
    }

    private Errno BatchForget(in InHeader header, ReadOnlySpan<byte> body)
    {
        if (!Message.TryRead(body, out BatchForgetIn batch)) return Malformed(in header);
        ReadOnlySpan<byte> items = body[BatchForgetIn.Size..];
        if (batch.Count > (uint)(items.Length / ForgetOne.Size)) return Malformed(in header);
        foreach (ForgetOne one in MemoryMarshal.Cast<byte, ForgetOne>(items)[..(int)batch.Count])
            _fileSystem.Forget(one.Node, one.Count);
        return Errno.None;
    }

    private Errno GetAttributes(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, ref int length)
    {
        if (!Message.TryRead(body, out GetAttributesIn get)) return Malformed(in header);
        ulong handle = (get.Flags & GetAttributesIn.HasHandle) != 0 ? get.Handle : 0;
        Errno errno = _fileSystem.GetAttributes(header.Node, handle, out FuseAttributes attributes);
        if (errno != Errno.None) return Checked(in header, errno);
        length = WriteAttributes(payload, in attributes);
        return Errno.None;
    }

    private Errno SetAttributes(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, ref int length)
    {
        if (!Message.TryRead(body, out SetAttributesIn set)) return Malformed(in header);
        long size = 0;
        if (set.Has(SetAttributesValid.Size) && !TryOffset(set.Length, out size)) return Errno.EFBIG;
        var change = new FuseSetAttributes
        {
            Handle = set.Has(SetAttributesValid.Handle) ? set.Handle : 0,
            Size = set.Has(SetAttributesValid.Size) ? size : null,
            Mode = set.Has(SetAttributesValid.Mode) ? set.Mode : null,
            Uid = set.Has(SetAttributesValid.Uid) ? set.Uid : null,
            Gid = set.Has(SetAttributesValid.Gid) ? set.Gid : null,
            Times = set.Has(SetAttributesValid.AnyTime),
        };
        Errno errno = _fileSystem.SetAttributes(header.Node, in change, out FuseAttributes attributes);
        if (errno != Errno.None) return Checked(in header, errno);
        length = WriteAttributes(payload, in attributes);
        return Errno.None;
    }

    private Errno StatFs(in InHeader header, Span<byte> payload, ref int length)
    {
        Errno errno = _fileSystem.StatFs(header.Node, out FuseStatFs facts);
        if (errno != Errno.None) return Checked(in header, errno);
        StatFsOut result = StatFsOut.From(in facts);
        length = Message.Write(payload, in result);
        return Errno.None;
    }

    private Errno OpenDirectory(in InHeader header, Span<byte> payload, ref int length)
    {
        Errno errno = _fileSystem.OpenDirectory(header.Node, out FuseOpenResult opened);
        if (errno != Errno.None) return Checked(in header, errno);
        length = WriteOpened(payload, in opened);
        return Errno.None;
    }

    private Errno ReadDirectory(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, bool withAttributes, ref int length)
    {
        if (!Message.TryRead(body, out ReadIn read)) return Malformed(in header);
        // A listing may always be given in smaller pieces, so a size beyond the buffer is no error here.
        Span<byte> space = payload[..(int)Math.Min(read.Length, (uint)payload.Length)];
        var writer = new FuseDirectoryWriter(space, withAttributes);
        bool complete = false;
        try
        {
            long position = unchecked((long)read.Offset);
            Errno errno = _fileSystem.ReadDirectory(header.Node, read.Handle, position, ref writer);
            if (errno != Errno.None) return Checked(in header, errno);
            length = writer.Length;
            complete = true;
            return Errno.None;
        }
        finally
        {
            if (!complete && withAttributes) ForgetEntries(space[..writer.Length]);
        }
    }

    private Errno ReleaseDirectory(in InHeader header, ReadOnlySpan<byte> body)
    {
        if (!Message.TryRead(body, out ReleaseIn release)) return Malformed(in header);
        _fileSystem.ReleaseDirectory(header.Node, release.Handle);
        return Errno.None;
    }

    /// <summary>Gives back the references of a READDIRPLUS payload that the kernel did not get (D3).</summary>
    private void ForgetEntries(ReadOnlySpan<byte> payload)
    {
        while (Message.TryRead(payload, out DirectoryEntryPlus entry))
        {
            if (entry.Entry.Node != 0) _fileSystem.Forget(entry.Entry.Node, 1);
            payload = payload[DirectoryEntry.PaddedSize(DirectoryEntryPlus.Size, (int)entry.Directory.NameLength)..];
        }
    }

    private static int WriteAttributes(Span<byte> payload, in FuseAttributes attributes)
    {
        var result = new AttributesOut { Attributes = Attributes.From(in attributes) };
        (result.ValidSeconds, result.ValidNanoseconds) = WireTime.Split(attributes.Valid);
        return Message.Write(payload, in result);
    }
}
