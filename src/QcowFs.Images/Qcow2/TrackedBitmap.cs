// One persistent dirty bitmap in memory: a bit for each granule of the disk, least significant bit first, as on disk.
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2;

/// <summary>The bits of a bitmap. <see cref="Set"/> is thread-safe; the rest is used by one thread.</summary>
/// <param name="entry">The bitmap in the directory.</param>
/// <param name="table">Its table's entries as they are in the image.</param>
/// <param name="virtualSize">Bytes of the disk.</param>
/// <param name="clusterBits">Of the image.</param>
internal sealed class TrackedBitmap(Qcow2Bitmap entry, ulong[] table, long virtualSize, int clusterBits)
{
    private readonly long _bitCount = BitsFor(virtualSize, entry.GranularityBits);
    private readonly bool[] _changed = new bool[table.Length];
    private ulong[] _words = [];

    /// <summary>The bitmap in the directory.</summary>
    public Qcow2Bitmap Entry => entry;

    /// <summary>Its table's entries as they are in the image, and as they become.</summary>
    public ulong[] Table => table;

    /// <summary>All of it is in the image.</summary>
    public bool IsStored { get; set; }

    /// <summary>Granules of such a disk.</summary>
    public static long BitsFor(long virtualSize, int granularityBits) =>
        (virtualSize >> granularityBits) + ((virtualSize & ((1L << granularityBits) - 1)) == 0 ? 0 : 1);

    /// <summary>Bytes that the bits of such a disk take in memory.</summary>
    public static long SizeFor(long virtualSize, int granularityBits) => (BitsFor(virtualSize, granularityBits) + 63) / 64 * sizeof(ulong);

    /// <summary>Entries that the table of a consistent bitmap has.</summary>
    public static long TableEntriesFor(long virtualSize, int granularityBits, int clusterBits) =>
        (SizeFor(virtualSize, granularityBits) + (1L << clusterBits) - 1) >> clusterBits;

    /// <summary>Whether the bits behind a table entry are to be written again.</summary>
    public bool IsChanged(int index) => Volatile.Read(ref _changed[index]);

    /// <summary>Makes room for the bits.</summary>
    public void Allocate() => _words = new ulong[SizeFor(virtualSize, entry.GranularityBits) / sizeof(ulong)];

    /// <summary>Takes the bits behind a table entry from the image.</summary>
    /// <param name="index">The table entry.</param>
    /// <param name="cluster">The data cluster, or empty where there is none.</param>
    public void Load(int index, ReadOnlySpan<byte> cluster)
    {
        Span<ulong> words = WordsOf(index);
        if (cluster.Length == 0)
            words.Fill((table[index] & Qcow2Bitmap.EntryAllOnes) != 0 ? ulong.MaxValue : 0);
        for (int i = 0; i < words.Length && cluster.Length > 0; i++)
            words[i] = BinaryPrimitives.ReadUInt64LittleEndian(cluster[(i * sizeof(ulong))..]);

        // Bits behind the disk's end are zero on disk.
        if (index == table.Length - 1 && _bitCount % 64 != 0)
            words[^1] &= (1UL << (int)(_bitCount % 64)) - 1;
    }

    /// <summary>Sets the bits of a range of the disk.</summary>
    public void Set(long offset, long length)
    {
        long first = offset >> entry.GranularityBits;
        long end = ((offset + length - 1) >> entry.GranularityBits) + 1;
        for (long bit = first; bit < end;)
        {
            long word = bit / 64;
            long stop = Math.Min(end, (word + 1) * 64);
            ulong mask = (stop % 64 == 0 ? ulong.MaxValue : (1UL << (int)(stop % 64)) - 1) & ~((1UL << (int)(bit % 64)) - 1);
            if ((Volatile.Read(ref _words[word]) & mask) != mask)
            {
                Interlocked.Or(ref _words[word], mask);
                Volatile.Write(ref _changed[(word * sizeof(ulong)) >> clusterBits], true);
            }

            bit = stop;
        }
    }

    /// <summary>What is to stand behind a table entry.</summary>
    /// <param name="index">The table entry.</param>
    /// <param name="cluster">Receives the data cluster where the result is null.</param>
    /// <returns>The entry that says it without a data cluster, or null.</returns>
    public ulong? Store(int index, Span<byte> cluster)
    {
        ReadOnlySpan<ulong> words = WordsOf(index);
        if (!words.ContainsAnyExcept(0UL))
            return 0;
        if (words.Length == cluster.Length / sizeof(ulong) && !words.ContainsAnyExcept(ulong.MaxValue))
            return Qcow2Bitmap.EntryAllOnes;
        cluster.Clear();
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(cluster[(i * sizeof(ulong))..], words[i]);
        return null;
    }

    private Span<ulong> WordsOf(int index)
    {
        int perCluster = 1 << (clusterBits - 3);
        int first = index * perCluster;
        return _words.AsSpan(first, Math.Min(perCluster, _words.Length - first));
    }

}
