// The check of an add-cow image, and its repair. What the header alone breaks is refused when it is read; here is what can be told, and
// mostly mended, beyond that. Nothing is unmapped but what lies past the end of the disk.
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

/// <summary>Checks one image.</summary>
internal sealed class AddCowChecker(IStorage file, Func<NamedReference, NamedDisk> look)
{
    private const string Bitmap = "bitmap";
    private readonly CheckFindings _findings = new();

    /// <summary>Checks without changing anything.</summary>
    public CheckReport Check()
    {
        AddCowHeader header = AddCowHeaderReader.Read(file);
        if (header.Layout == AddCowLayout.Final && FindNamePadding(header, ReadHeader(header)) is >= 0 and var padding)
            _findings.Harmless("padding", AddCowHeaderReader.Structure, padding, "bytes outside of the names are not zero", "sets them to zero");
        if (header.IsResizing)
        {
            _findings.Harmless("resize-interrupted", AddCowHeaderReader.Structure,
                header.Layout == AddCowLayout.March2012 ? AddCowHeader.MarchReservedAt : AddCowHeader.CompatFeaturesAt,
                "a change of the disk's size was interrupted", "ends it with the size that the image file has");
        }

        foreach (NamedReference reference in AddCowFormat.ReferencesOf(header))
            Look(reference, out _);
        long? size = SizeOf(header);
        AddCowGeometry geometry = new(header, size ?? 0);
        if (size is not null)
            CheckBitmap(geometry);
        return new CheckReport
        {
            Format = AddCowFormat.FormatName,
            CheckErrors = _findings.CheckErrors,
            Corruptions = _findings.Corruptions,
            HarmlessCorruptions = _findings.HarmlessCount,
            TotalClusters = size is null ? null : geometry.Clusters,
            AllocatedClusters = size is null ? null : header.IsAllAllocated ? geometry.Clusters : BitmapFile.CountAllocated(file, geometry),
            Findings = _findings.Listed,
            FindingsNotListed = _findings.NotListed,
        };
    }

    /// <summary>Mends what can be mended and checks again.</summary>
    public static CheckReport Repair(IStorage file, RepairMode mode, Func<NamedReference, NamedDisk> look)
    {
        CheckReport before = new AddCowChecker(file, look).Check();
        if (mode != RepairMode.All || before.Corruptions == 0)
            return before;
        AddCowHeader header = AddCowHeaderReader.Read(file);
        file.Sync();
        if (header.Layout == AddCowLayout.Final)
            ClearNamePadding(file, header);
        NamedDisk image = look(ImageOf(header));
        AddCowGeometry geometry = new(header, image.Size ?? 0);
        if (image.Size is not null && (header.IsAllAllocated || file.Length >= geometry.FileLength))
        {
            BitmapFile.CutToSize(file, geometry);
            if (header.IsAllAllocated)
                BitmapFile.Write(file, geometry, 0, geometry.Clusters, value: true);
            file.Sync();
            if (header.IsResizing)
                AddCowResize.Finish(file, geometry);
        }

        CheckReport after = new AddCowChecker(file, look).Check();
        return after with { CorruptionsFixed = Math.Max(0, before.Corruptions - after.Corruptions) };
    }

    private static NamedReference ImageOf(AddCowHeader header) => AddCowFormat.ReferencesOf(header)[0];

    private long? SizeOf(AddCowHeader header)
    {
        NamedDisk image = look(ImageOf(header));
        return image.Problem is null ? image.Size : null;
    }

    private void Look(NamedReference reference, out NamedDisk disk)
    {
        disk = look(reference);
        bool isImage = reference.Kind == ReferenceKind.DataFile;
        string structure = isImage ? "image file" : "backing file";
        if (disk.Problem is not null)
            _findings.Unchecked(isImage ? "image-unreachable" : "backing-unreachable", structure, -1, disk.Problem);
        else if (isImage && disk.Size is null)
            _findings.Unchecked("image-size-unknown", structure, -1, $"{Printable.Quote(reference.Name)}: its size is not known without opening what it names itself");
    }

    private void CheckBitmap(AddCowGeometry geometry)
    {
        AddCowHeader header = geometry.Header;
        if (header.Layout == AddCowLayout.March2012 && !header.IsResizing)
            geometry.Require(file, header.ImageName);
        else if (header.IsAllAllocated)
            CheckFullBitmap(geometry);
        else if (file.Length < geometry.FileLength)
            _findings.Corruption("bitmap-short", Bitmap, file.Length,
                $"the file ends here, and {geometry.FileLength} bytes belong to an image file of {geometry.DiskSize}",
                "none: restore the add-cow file, or give the image file the size that it had");
        else if (!header.IsResizing && !EndsWithTheDisk(geometry))
            return;
        if (!header.IsAllAllocated && BitmapFile.HasPaddingBits(file, geometry))
            _findings.Harmless("padding-bits", Bitmap, geometry.BitmapEnd - 1, "bits past the last cluster are set", "clears them");
    }

    private bool EndsWithTheDisk(AddCowGeometry geometry)
    {
        long set = BitmapFile.FindSetByte(file, geometry.BitmapEnd, file.Length);
        if (set < 0 && file.Length == geometry.FileLength)
            return true;
        _findings.Corruption("image-short", Bitmap, set < 0 ? geometry.FileLength : set,
            $"the bitmap goes on past the end of the image file at byte {geometry.DiskSize}",
            "drops what lies past the end; to keep it, restore the image file instead");
        return false;
    }

    // The flag says that all is in the image file; a reader that does not know it goes by the bitmap.
    private void CheckFullBitmap(AddCowGeometry geometry)
    {
        if (file.Length != geometry.FileLength || BitmapFile.CountAllocated(file, geometry) != geometry.Clusters
            || BitmapFile.FindSetByte(file, geometry.BitmapEnd, geometry.FileLength) >= 0)
        {
            _findings.Harmless("bitmap-not-full", Bitmap, geometry.Header.BitmapOffset,
                "ALL_ALLOCATED is set, but the bitmap is not that of a disk of this size with all bits set", "writes such a bitmap");
        }
    }

    private byte[] ReadHeader(AddCowHeader header)
    {
        byte[] bytes = new byte[header.BitmapOffset];
        file.Read(0, bytes);
        return bytes;
    }

    private static long FindNamePadding(AddCowHeader header, byte[] bytes)
    {
        byte[] padding = WithoutNames(header, bytes);
        return padding.AsSpan().IndexOfAnyExcept((byte)0) is >= 0 and var at ? at : -1;
    }

    /// <summary>The header with zeros for everything that has a meaning.</summary>
    private static byte[] WithoutNames(AddCowHeader header, byte[] bytes)
    {
        byte[] padding = [.. bytes];
        padding.AsSpan(0, AddCowHeader.FieldsLength).Clear();
        Clear(AddCowHeader.BackingOffsetAt, header.BackingName is not null);
        Clear(AddCowHeader.ImageOffsetAt, true);
        return padding;

        void Clear(int field, bool isThere)
        {
            if (isThere)
                padding.AsSpan(BitConverter.ToInt32(bytes, field), BitConverter.ToInt32(bytes, field + 4)).Clear();
        }
    }

    // Every sector stays what it is but for its padding, so the write may be torn.
    private static void ClearNamePadding(IStorage file, AddCowHeader header)
    {
        byte[] bytes = new byte[header.BitmapOffset];
        file.Read(0, bytes);
        byte[] padding = WithoutNames(header, bytes);
        if (!padding.AsSpan().ContainsAnyExcept((byte)0))
            return;
        for (int i = 0; i < bytes.Length; i++)
            bytes[i] ^= padding[i];
        file.Write(0, bytes);
    }
}
