// The sizes and bounds of the journal's on-disk format (DESIGN.md in this folder has the layout byte by byte).
namespace QcowFs.Images.Qcow2.Journal;

internal static class JournalLayout
{
    /// <summary>Records begin at multiples of this, and no block that holds part of a synced record is written again before the ring
    /// turns, so that a torn block harms one record only. No device writes larger sectors.</summary>
    public const int BlockSize = 4096;

    /// <summary>Bytes of a superblock, the unit that is never torn. Each of the two copies has a block of its own.</summary>
    public const int SuperblockSize = 512;

    public const int SuperblockCopies = 2;

    /// <summary>Where the ring begins, from the journal's start on.</summary>
    public const int RingStart = SuperblockCopies * BlockSize;

    /// <summary>Ours: a record takes a quarter of the ring at most, and a quarter of it must hold a few blocks.</summary>
    public const long MinRingBytes = 8 * BlockSize;

    /// <summary>Ours: a replay reads the whole ring twice and must stay below 200 ms and the memory cap.</summary>
    public const long MaxRingBytes = 64L << 20;

    /// <summary>What a mount makes where the user states no size.</summary>
    public const long DefaultRingBytes = 16L << 20;

    /// <summary>Ours: pages that the records of a journal may touch, in bytes; the writer checkpoints long before.</summary>
    public const long MaxPatchedBytes = 64L << 20;

    /// <summary>Ours: no writer counts so far; above it a sequence number is damage.</summary>
    public const ulong MaxSequence = 1UL << 62;

    /// <summary>Ours: how far past the end of the file a record may reach. One epoch lengthens the file by less.</summary>
    public const long MaxGrowth = 4L << 30;

    /// <summary>The largest record of a ring in bytes.</summary>
    public static int MaxRecordBytes(long ringBytes) => (int)(ringBytes / 4 / BlockSize * BlockSize);

    /// <summary>Blocks that so many bytes take.</summary>
    public static int BlocksFor(long bytes) => (int)((bytes + BlockSize - 1) / BlockSize);
}
