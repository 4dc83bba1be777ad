// How the header comes to have other extensions, and its backing name another place, while a crash may leave it at any instant.
//
// X1. New bytes go where no reader looks: behind the end marker, outside the backing name. Then a sync.
// X2. One write inside one sector, which is never torn, makes them count. Then a sync. So what is on disk is always a header that every
//     reader understands, with all that it said.
// X3. A backing name that is in the way is copied behind everything first; bytes 8 to 15 are switched to the copy.
// X4. An extension that grows: all of the list from it on is written behind everything; its own head becomes that of an extension which
//     nobody knows and which covers the old list; then the list is written in the old place but for its first head, and last that head.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Edits of the header extensions of one image that nobody else writes. Faults: <see cref="StorageException"/>, which leaves a
/// valid header.</summary>
internal static class HeaderExtensionEdit
{
    private const int HeadLength = Qcow2HeaderLayout.ExtensionHeadLength;

    // "QFCV". To every reader, ourselves too, an extension that means nothing.
    private const HeaderExtensionType Cover = (HeaderExtensionType)0x51464356;

    /// <summary>Whether an extension with so many bytes of data can be appended.</summary>
    public static bool Fits(Qcow2Header header, int dataLength) =>
        HasMarker(header) && EndWith(header, header.ExtensionsEnd + HeaderExtension.SizeFor(dataLength)) <= header.ClusterSize;

    /// <summary>Appends an extension that fits and of whose type there is none, durably.</summary>
    public static void Append(IStorage file, HeaderExtensionType type, ReadOnlySpan<byte> data)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        int marker = header.ExtensionsEnd - HeadLength;
        byte[] bytes = new byte[HeaderExtension.SizeFor(data.Length) + HeadLength]; // with the new marker
        new HeaderExtension(type, data.ToArray()).WriteTo(bytes);
        MakeRoom(file, header, marker + bytes.Length);
        WriteBehindHead(file, marker, bytes); // X1
        WriteHead(file, marker, bytes);
    }

    /// <summary>Gives an extension other data, which is not shorter, durably. False where there is no room for it or no such
    /// extension; nothing has changed then.</summary>
    public static bool TryReplace(IStorage file, HeaderExtensionType type, byte[] data)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        if (header.FindExtension(type) is not { } old || !HasMarker(header) || data.Length < old.Data.Length)
            return false;
        byte[] list = ListFrom(header, old, data);
        // What an edit that crashed left is used up.
        HeaderExtension first = header.Extensions.FirstOrDefault(e => e.Type == Cover && e.Offset + e.SizeOnDisk == old.Offset) ?? old;
        int copy = Math.Max(first.Offset + list.Length, header.ExtensionsEnd); // in the way of neither the old list nor the new one
        if (EndWith(header, copy + list.Length) > header.ClusterSize)
            return false;
        MakeRoom(file, header, copy + list.Length);
        file.Write(copy, list); // X1, X4
        file.Sync();
        byte[] cover = new byte[HeadLength];
        BinaryPrimitives.WriteUInt32BigEndian(cover, (uint)Cover);
        BinaryPrimitives.WriteInt32BigEndian(cover.AsSpan(sizeof(uint)), copy - first.DataOffset);
        WriteHead(file, first.Offset, cover);
        WriteBehindHead(file, first.Offset, list);
        WriteHead(file, first.Offset, list);
        file.Write(copy, new byte[list.Length]); // nobody looks there any more
        return true;
    }

    // The extension with its new data, those behind it as they are, and the end marker.
    private static byte[] ListFrom(Qcow2Header header, HeaderExtension first, byte[] data)
    {
        List<HeaderExtension> extensions = [first with { Data = data }, .. header.Extensions.Where(e => e.Offset > first.Offset)];
        byte[] list = new byte[extensions.Sum(e => e.SizeOnDisk) + HeadLength];
        int at = 0;
        foreach (HeaderExtension extension in extensions)
        {
            extension.WriteTo(list.AsSpan(at));
            at += extension.SizeOnDisk;
        }

        return list;
    }

    private static void WriteBehindHead(IStorage file, int at, ReadOnlySpan<byte> bytes)
    {
        file.Write(at + HeadLength, bytes[HeadLength..]);
        file.Sync();
    }

    // X2: heads are aligned to their own length.
    private static void WriteHead(IStorage file, int at, ReadOnlySpan<byte> bytes)
    {
        file.Write(at, bytes[..HeadLength]);
        file.Sync();
    }

    // X3
    private static void MakeRoom(IStorage file, Qcow2Header header, int end)
    {
        if (!IsInTheWay(header, end))
            return;
        Span<byte> field = stackalloc byte[sizeof(long)];
        file.Read(Qcow2HeaderLayout.BackingNameLengthAt, field[..sizeof(int)]);
        byte[] name = new byte[BinaryPrimitives.ReadInt32BigEndian(field)];
        file.Read(header.BackingNameOffset, name);
        int place = NewNamePlace(header, end);
        file.Write(place, name);
        file.Sync();
        // The field alone: the name may lie in the same sector.
        BinaryPrimitives.WriteInt64BigEndian(field, place);
        file.Write(Qcow2HeaderLayout.BackingNameOffsetAt, field);
        file.Sync();
    }

    // Old writers end the list at the backing name, without a marker.
    private static bool HasMarker(Qcow2Header header) => header.BackingNameOffset == 0 || header.BackingNameOffset >= header.ExtensionsEnd;

    private static bool IsInTheWay(Qcow2Header header, int end) => header.BackingNameOffset != 0 && header.BackingNameOffset < end;

    private static int EndWith(Qcow2Header header, int end) => IsInTheWay(header, end) ? NewNamePlace(header, end) + NameLength(header) : end;

    // Behind the old name, which must stay whole until the header names the new one.
    private static int NewNamePlace(Qcow2Header header, int end) =>
        (Math.Max(end, header.BackingNameOffset + NameLength(header)) + Qcow2HeaderLayout.ExtensionAlignment - 1) & -Qcow2HeaderLayout.ExtensionAlignment;

    // Bytes that are no UTF-8 count three here, and once in the header.
    private static int NameLength(Qcow2Header header) => Encoding.UTF8.GetByteCount(header.BackingName ?? "");
}
