// How the header comes to say that there is a journal, and how it ceases to (J12): steps of one sector, a sync between, each of which
// leaves a header that every reader understands. The extension means nothing while the feature bit is clear.
//
// Make: a backing name that is in the way is copied further back, and bytes 8 to 19 are switched to the copy. The extension's data and
// a new end marker are written behind the old marker; its head then replaces the marker; last the bit.
// Take away: the bit; then the head becomes the end marker again.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

internal static class JournalHeader
{
    private const int Sector = 512;
    private const int HeadLength = Qcow2HeaderLayout.ExtensionHeadLength;

    // The extension and the end marker behind it.
    private const int Needed = HeadLength + JournalArea.Size + HeadLength;

    /// <summary>Why an image cannot have a journal, in words that advice follows; or null.</summary>
    public static string? FindObstacle(Qcow2Header header)
    {
        if (header.Version < 3)
            return "a journal needs version 3 of the format, the image is version 2";
        if (header.FindExtension(HeaderExtensionType.Journal) is { } left)
            return left.Data.Length == JournalArea.Size ? null : "the header has a journal extension of another kind";
        if (header.BackingNameOffset != 0 && header.BackingNameOffset < header.ExtensionsEnd)
            return "the header has no room for the journal's extension";
        long end = MarkerAt(header) + Needed;
        if (NameIsInTheWay(header))
            end = NewNamePlace(header) + NameLength(header);
        return end <= header.ClusterSize ? null : "the header has no room for the journal's extension";
    }

    /// <summary>What a person can do about it.</summary>
    public static string AdviceFor(Qcow2Header header, string file) => header.Version < 3
        ? $"run qemu-img amend -o compat=1.1 {file}, or mount it without --journal"
        : "mount it without --journal";

    /// <summary>Makes the header name a journal, durably. The area's content is durable.</summary>
    public static void Make(IStorage file, JournalArea area)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        if (header.FindExtension(HeaderExtensionType.Journal) is null && NameIsInTheWay(header))
        {
            MoveName(header, file);
            header = Qcow2HeaderReader.Read(file);
        }

        HeaderExtension? left = header.FindExtension(HeaderExtensionType.Journal);
        int at = left?.Offset ?? MarkerAt(header);
        Span<byte> rest = stackalloc byte[JournalArea.Size + HeadLength];
        rest.Clear();
        area.WriteTo(rest);
        file.Write(at + HeadLength, left is null ? rest : rest[..JournalArea.Size]);
        file.Sync();
        if (left is null)
        {
            Span<byte> head = stackalloc byte[HeadLength];
            BinaryPrimitives.WriteUInt32BigEndian(head, (uint)HeaderExtensionType.Journal);
            BinaryPrimitives.WriteUInt32BigEndian(head[4..], JournalArea.Size);
            file.Write(at, head);
            file.Sync();
        }

        ChangeBits(file, (incompatible, autoclear) => (incompatible | IncompatibleFeatures.Journal, autoclear));
    }

    /// <summary>Makes the header name no journal, durably: everything that the journal held is durable in its place. What a crash before
    /// the end of it leaves counted is a leak, which the in-use mark tells of.</summary>
    public static void Remove(IStorage file)
    {
        ChangeBits(file, (incompatible, autoclear) => (incompatible & ~IncompatibleFeatures.Journal, autoclear | AutoclearFeatures.InUse));
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        HeaderExtension? extension = header.FindExtension(HeaderExtensionType.Journal);

        // Other software may have put extensions behind it; then it stays, without a meaning.
        if (extension is null || extension.Offset + extension.SizeOnDisk != MarkerAt(header))
            return;
        Span<byte> zeros = stackalloc byte[HeadLength + JournalArea.Size];
        zeros.Clear();
        file.Write(extension.Offset, zeros[..HeadLength]);
        file.Sync();
        file.Write(extension.DataOffset, zeros[..JournalArea.Size]);
    }

    private static int MarkerAt(Qcow2Header header) => header.ExtensionsEnd - HeadLength;

    private static bool NameIsInTheWay(Qcow2Header header) =>
        header.BackingNameOffset != 0 && header.BackingNameOffset < MarkerAt(header) + Needed;

    private static int NameLength(Qcow2Header header) => Encoding.UTF8.GetByteCount(header.BackingName ?? "");

    // Behind the old name, which must stay whole until the header names the new one.
    private static int NewNamePlace(Qcow2Header header) =>
        (Math.Max(MarkerAt(header) + Needed, header.BackingNameOffset + NameLength(header)) + 7) & ~7;

    private static void MoveName(Qcow2Header header, IStorage file)
    {
        Span<byte> sector = stackalloc byte[Sector];
        file.Read(0, sector);
        int length = BinaryPrimitives.ReadInt32BigEndian(sector[Qcow2HeaderLayout.BackingNameLengthAt..]);
        byte[] name = new byte[length];
        file.Read(header.BackingNameOffset, name);
        int place = NewNamePlace(header);
        file.Write(place, name);
        file.Sync();
        BinaryPrimitives.WriteInt64BigEndian(sector[Qcow2HeaderLayout.BackingNameOffsetAt..], place);
        file.Write(0, sector);
        file.Sync();
    }

    private static void ChangeBits(
        IStorage file, Func<IncompatibleFeatures, AutoclearFeatures, (IncompatibleFeatures Incompatible, AutoclearFeatures Autoclear)> change)
    {
        Span<byte> sector = stackalloc byte[Sector];
        file.Read(0, sector);
        (IncompatibleFeatures incompatible, AutoclearFeatures autoclear) = change(
            (IncompatibleFeatures)BinaryPrimitives.ReadUInt64BigEndian(sector[Qcow2HeaderLayout.IncompatibleFeaturesAt..]),
            (AutoclearFeatures)BinaryPrimitives.ReadUInt64BigEndian(sector[Qcow2HeaderLayout.AutoclearFeaturesAt..]));
        BinaryPrimitives.WriteUInt64BigEndian(sector[Qcow2HeaderLayout.IncompatibleFeaturesAt..], (ulong)incompatible);
        BinaryPrimitives.WriteUInt64BigEndian(sector[Qcow2HeaderLayout.AutoclearFeaturesAt..], (ulong)autoclear);
        file.Write(0, sector);
        file.Sync();
    }
}
