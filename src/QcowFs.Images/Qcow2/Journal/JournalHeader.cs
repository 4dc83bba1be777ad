// How the header comes to say that there is a journal, and how it ceases to (J12): steps of one sector, a sync between, each of which
// leaves a header that every reader understands (HeaderExtensionEdit). The extension means nothing while the feature bit is clear.
//
// Make: the names of our bits where there is room, so that other software refuses the image by name; the extension; last the bit.
// Take away: the bit; then the head becomes the end marker again. The names stay.
using System.Buffers.Binary;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

internal static class JournalHeader
{
    private const int Sector = 512;
    private const int HeadLength = Qcow2HeaderLayout.ExtensionHeadLength;

    /// <summary>Why an image cannot have a journal, in words that advice follows; or null.</summary>
    public static string? FindObstacle(Qcow2Header header)
    {
        if (header.Version < 3)
            return "a journal needs version 3 of the format, the image is version 2";
        if (header.FindExtension(HeaderExtensionType.Journal) is { } left)
            return left.Data.Length == JournalArea.Size ? null : "the header has a journal extension of another kind";
        return HeaderExtensionEdit.Fits(header, JournalArea.Size) ? null : "the header has no room for the journal's extension";
    }

    /// <summary>What a person can do about it.</summary>
    public static string AdviceFor(Qcow2Header header, string file) => header.Version < 3
        ? $"run qemu-img amend -o compat=1.1 {file}, or mount it without --journal"
        : "mount it without --journal";

    /// <summary>Makes the header name a journal, durably. The area's content is durable.</summary>
    public static void Make(IStorage file, JournalArea area)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        AddNames(header, file);
        byte[] data = new byte[JournalArea.Size];
        area.WriteTo(data);
        if (Qcow2HeaderReader.Read(file).FindExtension(HeaderExtensionType.Journal) is { } left)
        {
            file.Write(left.DataOffset, data);
            file.Sync();
        }
        else
        {
            HeaderExtensionEdit.Append(file, HeaderExtensionType.Journal, data);
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

    // Who has read the header already may have kept the place of what an overlay remembers, so that does not move.
    private static void AddNames(Qcow2Header header, IStorage file)
    {
        if (header.FindExtension(HeaderExtensionType.FeatureNames) is not { } names || FeatureNameTable.WithPrivateNames(names.Data) is not { } complete
            || header.FindExtension(HeaderExtensionType.OverlayBase)?.Offset > names.Offset)
        {
            return;
        }

        _ = HeaderExtensionEdit.TryReplace(file, HeaderExtensionType.FeatureNames, complete);
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
