// Facts about a qcow2 image for `info`, under the keys that `qemu-img info --output=json` has for them.
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

internal static class Qcow2Description
{
    /// <summary>Reads snapshots and bitmaps too. Faults: <see cref="ImageFormatException"/>, <see cref="StorageException"/>.</summary>
    public static ImageFileFacts Of(Qcow2Header header, IStorage file) => new()
    {
        Path = file.Name,
        Format = Qcow2Format.FormatName,
        VirtualSize = header.VirtualSize,
        ClusterSize = header.ClusterSize,
        BackingName = header.BackingName,
        FullBackingName = header.BackingName is null ? null : ReferenceGate.Resolve(file.Name, header.BackingName),
        BackingFormat = header.BackingFormat,
        DataFileName = header.HasExternalDataFile ? header.DataFileName : null,
        Snapshots = [.. Qcow2SnapshotTable.Read(header, file).Snapshots.Select(DescribeSnapshot)],
        FormatSpecific = DescribeFormat(header, file),
        IsDirty = header.IsDirty,
        Log = header.HasJournal ? DescribeJournal(header, file)
            : header.AutoclearFeatures.HasFlag(AutoclearFeatures.InUse) ? "in use, or not closed properly: space may have leaked" : null,
    };

    // Another process may be writing it; then what is read fits together only by chance.
    private static string DescribeJournal(Qcow2Header header, IStorage file)
    {
        try
        {
            return $"in use, or not closed: {JournalReplay.Plan(header, file).Summary} by mount -w or check --repair";
        }
        catch (ImageFormatException bad)
        {
            return $"in use, or damaged: {bad.Problem}";
        }
    }

    private static SnapshotFacts DescribeSnapshot(Qcow2Snapshot snapshot) => new(snapshot.IdText, snapshot.NameText,
        snapshot.VmStateSize, snapshot.Seconds, snapshot.Nanoseconds, snapshot.RunTime, snapshot.Icount,
        snapshot.VirtualSize is <= long.MaxValue ? (long)snapshot.VirtualSize.Value : null)
    { RawName = snapshot.Name };

    private static List<FormatFact> DescribeFormat(Qcow2Header header, IStorage file)
    {
        List<FormatFact> facts =
        [
            new("compat", header.Version < 3 ? "0.10" : "1.1"),
            new("compression-type", header.CompressionType == CompressionType.Zstd ? "zstd" : "zlib"),
            new("refcount-bits", (long)header.RefcountBits),
        ];
        if (header.Version >= 3)
        {
            facts.Add(new("lazy-refcounts", header.CompatibleFeatures.HasFlag(CompatibleFeatures.LazyRefcounts)));
            facts.Add(new("corrupt", header.IsCorrupt));
            facts.Add(new("extended-l2", header.HasExtendedL2));
        }

        if (header.HasExternalDataFile)
        {
            facts.Add(new("data-file", header.DataFileName ?? ""));
            facts.Add(new("data-file-raw", header.DataFileIsRaw));
        }

        if (header.CryptMethod != CryptMethod.None)
            facts.Add(new("encrypt", new List<FormatFact> { new("format", header.CryptMethod == CryptMethod.Aes ? "aes" : "luks") }));
        IReadOnlyList<Qcow2Bitmap> bitmaps = BitmapDirectory.Read(header, file);
        if (bitmaps.Count > 0)
            facts.Add(new("bitmaps", bitmaps.Select(DescribeBitmap).ToList()));
        return facts;
    }

    private static IReadOnlyList<FormatFact> DescribeBitmap(Qcow2Bitmap bitmap)
    {
        List<string> flags = [];
        if (bitmap.Flags.HasFlag(BitmapFlags.InUse))
            flags.Add("in-use");
        if (bitmap.Flags.HasFlag(BitmapFlags.Auto))
            flags.Add("auto");
        return [new("flags", flags), new("name", bitmap.NameText), new("granularity", 1L << bitmap.GranularityBits)];
    }
}
