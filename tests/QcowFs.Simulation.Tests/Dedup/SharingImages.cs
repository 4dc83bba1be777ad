// Images opened with deduplication on simulated disks, and an independent look at what is on them.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Dedup;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;

namespace QcowFs.Simulation.Tests;

internal static class SharingImages
{
    /// <summary>Opens the image on a disk with its index beside it.</summary>
    /// <param name="disk">The disk.</param>
    /// <param name="image">What was put there.</param>
    /// <param name="weakHash">Hashes of 8 bits, so that different blocks collide all the time.</param>
    /// <param name="log">Told what a person would be.</param>
    /// <param name="cacheSize">Metadata cache in bytes.</param>
    /// <param name="journal">The journal to write with, or null.</param>
    /// <param name="indexDisk">Where the index is, if not on the same disk.</param>
    public static CowImage Open(
        SimulatedDisk disk, PreparedImage image, bool weakHash = false, Action<string>? log = null, long cacheSize = 1024,
        JournalOptions? journal = null, SimulatedDisk? indexDisk = null)
    {
        SimulatedStorage file = disk.Open("image");
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        Random random = new((int)disk.Clock);
        DedupSettings settings = new()
        {
            Memory = DedupSettings.LeastMemory,
            IndexSize = DedupSettings.LeastIndexSize,
            FillRandom = random.NextBytes,
            Background = false,
            TestHash = weakHash ? WeakHash : null,
        };
        OpenOptions options = new()
        {
            Writable = true,
            CommitInterval = TimeSpan.Zero,
            BackgroundRecovery = false,
            CacheSize = cacheSize,
            Log = log,
            Journal = journal,
            AttachedIndex = AttachedIndex.Open(indexDisk ?? disk, file, header.ClusterSize, settings, log),
        };
        IDiskImage? backing = image.Backing is null ? null : SimulatedImages.OpenBacking(image.Backing);
        return (CowImage)Qcow2Image.Open(new Qcow2Parts(header, file, null, backing, options));
    }

    /// <summary>Everything that breaks I2 or I11 on a disk, found by a walk that shares no code with the product. Where a journal is left,
    /// which keeps everyone else out of the image, on the disk as its replay makes it.</summary>
    public static string? FindBrokenSharing(SimulatedDisk disk, PreparedImage image)
    {
        SimulatedDisk replayed = disk.Kill();
        if (Qcow2HeaderReader.Read(replayed.Open("image")).HasJournal)
            SimulatedImages.Open(replayed, image).Dispose();
        return FindBrokenSharing(replayed.Content("image"));
    }

    /// <summary>The same for the bytes of an image without a journal.</summary>
    public static string? FindBrokenSharing(byte[] image)
    {
        long U64(long at) => BinaryPrimitives.ReadInt64BigEndian(image.AsSpan(checked((int)at)));
        int U32(long at) => BinaryPrimitives.ReadInt32BigEndian(image.AsSpan(checked((int)at)));
        const long Offset = 0x00FF_FFFF_FFFF_FE00;
        int clusterBits = U32(20);
        bool extended = (U64(72) & 16) != 0;
        int order = U32(96);
        Dictionary<long, (int References, bool Copied)> clusters = [];
        for (int i = 0; i < U32(36); i++)
        {
            long table = U64(U64(40) + (8L * i)) & Offset;
            if (table == 0)
                continue;
            for (long at = table; at < table + (1L << clusterBits); at += extended ? 16 : 8)
            {
                long entry = at + 8 <= image.Length ? U64(at) : 0;
                if ((entry >> 62 & 1) != 0 || (entry & Offset) == 0)
                    continue;
                (int references, bool copied) = clusters.GetValueOrDefault(entry & Offset);
                clusters[entry & Offset] = (references + 1, copied | entry < 0);
            }
        }

        foreach ((long host, (int references, bool copied)) in clusters)
        {
            if (copied && references > 1)
                return $"I11: {references} mappings of host {host}, one with COPIED";
            long cluster = host >> clusterBits;
            long perBlock = (8L << clusterBits) >> order;
            long block = U64(U64(48) + (8 * (cluster / perBlock))) & Offset;
            int bits = 1 << order;
            long bit = cluster % perBlock * bits;
            long count = bits >= 8
                ? bits switch { 8 => image[block + (bit / 8)], 16 => BinaryPrimitives.ReadUInt16BigEndian(image.AsSpan((int)(block + (bit / 8)))), 32 => U32(block + (bit / 8)), _ => U64(block + (bit / 8)) }
                : image[block + (bit / 8)] >> (int)(bit % 8) & ((1 << bits) - 1);
            if (count < references)
                return $"I2: {references} mappings of host {host}, counted {count}";
        }

        return null;
    }

    /// <summary>How many guest clusters share a host cluster with another one, beyond the first.</summary>
    public static int CountShared(byte[] image)
    {
        long U64(long at) => BinaryPrimitives.ReadInt64BigEndian(image.AsSpan(checked((int)at)));
        const long Offset = 0x00FF_FFFF_FFFF_FE00;
        int step = (U64(72) & 16) != 0 ? 16 : 8;
        int size = 1 << BinaryPrimitives.ReadInt32BigEndian(image.AsSpan(20));
        HashSet<long> seen = [];
        int shared = 0;
        for (int i = 0; i < BinaryPrimitives.ReadInt32BigEndian(image.AsSpan(36)); i++)
        {
            long table = U64(U64(40) + (8L * i)) & Offset;
            for (long at = table; table != 0 && at < Math.Min(table + size, image.Length - 7); at += step)
            {
                long entry = U64(at);
                if ((entry >> 62 & 1) == 0 && (entry & Offset) != 0 && !seen.Add(entry & Offset))
                    shared++;
            }
        }

        return shared;
    }

    /// <summary>A sum of 8 bits over a block; its last byte adds itself.</summary>
    public static byte WeakSum(ReadOnlySpan<byte> block)
    {
        byte sum = 0;
        foreach (byte one in block)
            sum = unchecked((byte)((sum * 31) + one));
        return sum;
    }

    private static UInt128 WeakHash(byte[] block)
    {
        ulong half = WeakSum(block) * 0x0101_0101_0101_0101UL;
        return new UInt128(half, half);
    }
}
