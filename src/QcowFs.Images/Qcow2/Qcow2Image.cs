// Puts a qcow2 image together from its parts.
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Opens qcow2 images.</summary>
internal static class Qcow2Image
{
    // Small enough that a miss reads little, large enough that one read serves 32 MiB of guest disk at 64 KiB clusters.
    private const int PageSize = 4096;

    /// <summary>Presents the parts as a disk image, which owns them from here on, also when this throws.</summary>
    public static IDiskImage Open(Qcow2Parts parts)
    {
        try
        {
            return Build(parts);
        }
        catch
        {
            parts.Backing?.Dispose();
            parts.DataFile?.Dispose();
            parts.File.Dispose();
            throw;
        }
    }

    private static CowImage Build(Qcow2Parts given)
    {
        OpenOptions options = given.Options;

        // Recovery and trust begin with a sync: a process that died may have left bytes that could still vanish (I8).
        if (options.Writable)
        {
            given.File.Sync();
            given.DataFile?.Sync();
        }

        Qcow2Parts parts = ReplayJournal(given, out string? replayed);
        parts = RepairIfDirty(parts, out string? repaired);
        Qcow2Header header = parts.Header;

        FailureLatch latch = new(options.Log);
        LatchedStorage plain = new(parts.File, latch);
        int pageSize = Math.Min(PageSize, header.ClusterSize);

        // What a journal committed lies over the file for metadata only: guest data is read and written as without one.
        IStorage file = options is { Writable: true, Journal: not null } ? new JournaledFile(plain, pageSize) : plain;
        IStorage data = parts.DataFile is null ? plain : new LatchedStorage(parts.DataFile, latch);
        long clusters = (parts.File.Length + header.ClusterSize - 1) >> header.ClusterBits;
        RequireInside(parts, "L1 table", header.L1Offset, header.L1Size * 8L);
        MetadataCache cache = new(file, pageSize, options.CacheSize);
        ResidentTable counts = LoadCountTable(parts);
        ResidentTable l1 = ResidentTable.Load(file, header.L1Offset, header.L1Size);
        MetadataMap? metadata = options.Writable ? new MetadataMap(parts, l1, counts, latch) : null;
        Refcounts refcounts = new(header, cache, counts, metadata);
        CompressedClusters compressed = new(plain, header);
        Qcow2State state = new()
        {
            Header = header,
            File = file,
            Data = data,
            HasExternalData = parts.DataFile is not null,
            Cache = cache,
            L1 = l1,
            Metadata = metadata,
            Refcounts = refcounts,
            Compressed = new CompressedBlockCache(header.ClusterSize, compressed.Decompress),
            Epoch = new ReaderEpoch(),
            Shared = SharingOf(header, l1, options),
            Latch = latch,
            Allocator = options.Writable ? new HostAllocator(file, header.ClusterBits, refcounts) : null,
            FileClustersAtOpen = clusters,
        };
        bool crashed = options.Writable && header.AutoclearFeatures.HasFlag(AutoclearFeatures.InUse);
        if (options.Journal is { } journal)
            parts = parts with { Options = options with { Journal = journal with { Host = IdentityOf(parts.File) } } };
        Qcow2BlockMap map = new(parts, state, crashed ? new LeakCollector(state, file) : null);
        IReadOnlyList<IStorage> files = parts.DataFile is null ? [file] : [file, data];
        state.Bitmaps = options.Writable ? BitmapTracking.TryCreate(state, map.Space, options.Log) : null;
        CowImageParts image = new(map, data, files, parts.Backing, latch, state.Epoch, state.Bitmaps);
        return new CowImage(image, InfoOf(parts, RecoveryOf(crashed, Join(replayed, repaired)), replayed is not null), options);
    }

    // Before anything else of the image is believed (J10). Without -w into memory; else to the file, which is plain qcow2 afterwards: the
    // space of the journal is collected like any leak, and the session makes its own where it wants one.
    private static Qcow2Parts ReplayJournal(Qcow2Parts parts, out string? replayed)
    {
        replayed = null;
        if (!parts.Header.HasJournal)
            return parts;
        // The header may be that of a snapshot.
        JournalReplay replay = JournalReplay.Plan(Qcow2HeaderReader.Read(parts.File), parts.File);
        replayed = replay.Summary;
        parts.Options.Log?.Invoke($"{parts.File.Name}: {replayed}");
        if (!parts.Options.Writable)
            return parts with { File = replay.View() };
        replay.Apply();
        JournalHeader.Remove(parts.File);
        return parts with { Header = Qcow2HeaderReader.Read(parts.File) };
    }

    private static StorageIdentity IdentityOf(IStorage file) => file is IIdentifiedStorage identified ? identified.Identity : default;

    private static string? Join(string? first, string? second) =>
        first is null ? second : second is null ? first : $"{first}; {second}";

    // The mark says that a writer put off reference counts and did not come to write them. The mappings are right, so the counts are
    // made from them before anything is allocated. The mark falls last, so a crash meanwhile leaves it to the next open.
    private static Qcow2Parts RepairIfDirty(Qcow2Parts parts, out string? repaired)
    {
        repaired = null;
        if (!parts.Options.Writable || !parts.Header.IsDirty)
            return parts;
        CheckReport report = Qcow2Repair.Run(parts.File, RepairMode.All);
        if (report.CheckErrors > 0 || report.Corruptions > 0)
        {
            string? first = report.Findings.FirstOrDefault(f => f.Severity != CheckSeverity.Leak)?.Message;
            throw new ImageFormatException(parts.File.Name, "header", Qcow2HeaderLayout.IncompatibleFeaturesAt,
                $"the image is marked dirty, and a repair leaves {report.Corruptions + report.CheckErrors} defects{(first is null ? null : $": {first}")}",
                $"see qcowfs check {parts.File.Name}, or mount it without -w");
        }

        repaired = $"the image was marked dirty; {report.CorruptionsFixed} wrong and {report.LeaksFixed} leaked reference counts were repaired";
        parts.Options.Log?.Invoke($"{parts.File.Name}: {repaired}");
        return parts with { Header = Qcow2HeaderReader.Read(parts.File) };
    }

    private static ResidentTable LoadCountTable(Qcow2Parts parts)
    {
        Qcow2Header header = parts.Header;
        if (!parts.Options.Writable)
            return new ResidentTable(header.RefcountTableOffset, 0);
        long length = (long)header.RefcountTableClusters << header.ClusterBits;
        RequireInside(parts, "refcount table", header.RefcountTableOffset, length);
        return ResidentTable.Load(parts.File, header.RefcountTableOffset, (int)(length / 8));
    }

    private static void RequireInside(Qcow2Parts parts, string structure, long offset, long length)
    {
        if (length <= parts.File.Length - offset)
            return;
        throw new ImageFormatException(
            parts.File.Name,
            structure,
            offset,
            $"{length} bytes reach past the end of the file at {parts.File.Length}",
            "the file is cut short; restore it from a copy");
    }

    // Where there is an index but not its mark, somebody else wrote in between, or we crashed: flags may be missing anywhere.
    private static SharedClusters SharingOf(Qcow2Header header, ResidentTable l1, OpenOptions options)
    {
        bool marked = header.AutoclearFeatures.HasFlag(AutoclearFeatures.DedupIndex);
        if (options.EndsSharing)
            return new SharedClusters(l1.Length, null, tracks: true, needsSweep: true);
        bool hasIndex = options.Writable && (options.HasDedupIndex || options.AttachedIndex is not null);
        bool tracks = options.Writable && (marked || hasIndex || header.SnapshotCount == 0);
        return new SharedClusters(l1.Length, marked ? options.AttachedIndex?.LoadTableBits(l1.Length) : null, tracks, hasIndex && !marked)
        {
            LeavesMark = hasIndex,
        };
    }

    private static ImageInfo InfoOf(Qcow2Parts parts, string? recovery, bool replayed) => new()
    {
        Path = parts.File.Name,
        Format = "qcow2",
        VirtualSize = parts.Header.VirtualSize,
        SizeUnit = Qcow2Resize.SizeUnit,
        BlockSize = parts.Header.ClusterSize,
        BackingName = parts.Header.BackingName,
        BackingFormat = parts.Header.BackingFormat,
        Backing = parts.Backing?.Info,
        Recovery = recovery,
        Replayed = replayed,
    };

    private static string? RecoveryOf(bool crashed, string? repaired)
    {
        const string collecting = "the last writer did not end properly; leaked clusters are being collected";
        return !crashed ? repaired : repaired is null ? collecting : $"{repaired}; {collecting}";
    }
}
