// Deduplication of images that are not mounted: scan, status, rebuild, off.
using System.Collections;
using QcowFs.Images.Dedup;
using QcowFs.Images.Engine;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>What a scan did.</summary>
/// <param name="Looked">Bytes of the disk that were read and hashed.</param>
/// <param name="Shared">Bytes that are not stored twice any more.</param>
/// <param name="Zeroed">Bytes of zeros that are not stored any more.</param>
/// <param name="StoppedAt">Where it was told to stop, or -1: it is complete.</param>
/// <param name="Paused">Why the index stopped taking entries, or null.</param>
public sealed record DedupScanResult(long Looked, long Shared, long Zeroed, long StoppedAt, string? Paused);

/// <summary>What is shared in an image, and what its index holds.</summary>
public sealed record DedupStatus
{
    /// <summary>Unit of sharing in bytes.</summary>
    public required long BlockSize { get; init; }

    /// <summary>Blocks that several places of the disk, or a snapshot, refer to.</summary>
    public required long SharedBlocks { get; init; }

    /// <summary>Bytes that sharing between places of the disk saves.</summary>
    public required long BytesSaved { get; init; }

    /// <summary>Whether the index is that of the image's present state.</summary>
    public bool IsBound { get; init; }

    /// <summary>Length of the index file in bytes; null: there is none.</summary>
    public long? IndexSize { get; init; }

    /// <summary>Host space that the index file takes.</summary>
    public long IndexActualSize { get; init; }

    /// <summary>The hash, or null without an index.</summary>
    public DedupHash? Hash { get; init; }

    /// <summary>Entries of frozen tables and, at most, of logs.</summary>
    public long Entries { get; init; }

    /// <summary>Blocks hashed since the index was begun.</summary>
    public long Hashed { get; init; }

    /// <summary>How many of them were there already.</summary>
    public long Hits { get; init; }

    /// <summary>Where an interrupted scan goes on, in bytes; 0: there is none.</summary>
    public long ScanOffset { get; init; }
}

/// <summary>Deduplicates images that nobody else has open. Thread-safe. Faults: <see cref="ImageFormatException"/>,
/// <see cref="ImageInUseException"/>, <see cref="StorageException"/>.</summary>
/// <param name="files">The host's files.</param>
public sealed class ImageDeduplicator(IHostFiles files)
{
    private const long WindowBlocks = 1L << 28; // 32 MiB of bits

    private readonly ImageOpener _opener = new(files);

    /// <summary>Finds equal blocks of an image and stores them once. What is done is durable in steps; interrupted, it goes on where it
    /// was. The disk's content never changes.</summary>
    /// <param name="path">The image.</param>
    /// <param name="options">Must be writable with <see cref="OpenOptions.Dedup"/>.</param>
    /// <param name="share">False: only the index is filled.</param>
    /// <param name="progress">Told how much of the disk is done, and says whether to go on.</param>
    public DedupScanResult Scan(string path, OpenOptions options, bool share, Func<long, long, bool> progress)
    {
        using IDiskImage disk = _opener.Open(path, options);
        CowImage image = (CowImage)disk;
        DedupScanResult result = image.DeduplicateAll(share, done => progress(done, image.Length));
        image.Close();
        return result;
    }

    /// <summary>Ends deduplication: what is shared stays shared, flags are put right, mark and index go.</summary>
    /// <returns>Whether there was an index.</returns>
    public bool TurnOff(string path, OpenOptions options)
    {
        string index = DedupSettings.IndexPath(path);
        bool existed = AttachedIndex.Exists(files, path);
        using (IDiskImage disk = _opener.Open(path, options with { Writable = true, Dedup = null, EndsSharing = true }))
        {
            if (disk is not CowImage image || image.Map.Sharing is null)
                throw new ImageFormatException(path, "dedup", -1, "blocks of this image cannot be shared", "there is nothing to turn off");
            image.EndSharing();
            image.Close();
        }

        files.Delete(index);
        files.SyncName(index);
        return existed;
    }

    /// <summary>What is shared, and what the index says of itself. Nothing is changed; an image in use is read as it lies there.</summary>
    public DedupStatus ReadStatus(string path, string? format)
    {
        using IDiskImage disk = _opener.Open(path, new OpenOptions { Format = format, Lock = false });
        if (disk is not CowImage image || image.Map.Sharing is null)
            throw new ImageFormatException(path, "dedup", -1, "blocks of this image cannot be shared", "qcow2 images can: see qcowfs convert or qemu-img convert");
        (long mappings, long distinct, long many) = CountShared(image);
        DedupStatus status = new()
        {
            BlockSize = image.Info.BlockSize,
            SharedBlocks = many,
            BytesSaved = (mappings - distinct) * image.Info.BlockSize,
        };
        using IStorage? file = AttachedIndex.TryOpen(files, DedupSettings.IndexPath(path), HostAccess.Inspect);
        if (file is null || DedupIndex.ReadSuperblock(file) is not { } found)
            return status;
        using IStorage imageFile = files.Open(path, HostAccess.Inspect, directIo: false);
        return status with
        {
            IsBound = found.Binding == AttachedIndex.BindingOf(imageFile),
            IndexSize = file.Length,
            IndexActualSize = (file as FileStorage)?.QueryFacts().AllocatedBytes ?? file.Length,
            Hash = found.Hash,
            Entries = found.TableRegions.Sum(table => table.State == RegionState.InUse ? table.Entries : 0) + DedupIndex.CountLogEntries(file, found),
            Hashed = found.Hashed,
            Hits = found.Hits,
            ScanOffset = found.ScanOffset,
        };
    }

    /// <summary>Counts mappings without the right to be written in place, the blocks that they refer to, and how many of those have several.
    /// A window of blocks at a time.</summary>
    private static (long Mappings, long Distinct, long Many) CountShared(CowImage image)
    {
        long size = image.Info.BlockSize;
        long mappings = 0;
        long distinct = 0;
        long many = 0;
        long end = 0;
        for (long first = 0; first == 0 || first < end; first += WindowBlocks)
        {
            BitArray once = new(0);
            BitArray twice = new(0);
            for (long at = 0; at < image.Length;)
            {
                Extent extent = image.QueryExtent(at, image.Length - at);
                for (long i = 0; extent is { Depth: 0, Kind: ExtentKind.Data, Writable: false } && i < extent.Length; i += size)
                {
                    long block = ((extent.Host + i) / size) - first;
                    end = Math.Max(end, block + first + 1);
                    if (block < 0 || block >= WindowBlocks)
                        continue;
                    if (block >= once.Length)
                        once.Length = twice.Length = (int)Math.Min(WindowBlocks, Math.Max(block + 1, once.Length * 2L));
                    mappings++;
                    many += once[(int)block] && !twice[(int)block] ? 1 : 0;
                    twice[(int)block] |= once[(int)block];
                    distinct += once[(int)block] ? 0 : 1;
                    once[(int)block] = true;
                }

                at += extent.Length;
            }
        }

        return (mappings, distinct, many);
    }
}
