// Walks the block allocation table from its beginning to its end. The table of a large disk has millions of entries, of which most say
// that a block is not there or reads as zeros, and a writable mount waits for the walk.
using System.Buffers;
using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>Reads the whole table.</summary>
internal static class BatReader
{
    private const int ChunkSize = 64 << 10;
    private const int EntriesOfChunk = ChunkSize / BatEntry.Size;

    /// <summary>The entries that state a place or break a rule, and some others, with their numbers, in order: all but those that are zero
    /// or, where no entry is for a sector bitmap, say no more than that a block reads as zeros. Reads <paramref name="file"/> as it goes.</summary>
    public static IEnumerable<(long Index, BatEntry Entry)> InUse(VhdxLayout layout, IStorage file)
    {
        long entries = layout.Geometry.EntryCount;
        ulong plain = layout.Geometry.HasParent ? (ulong)BlockState.NotPresent : (ulong)BlockState.Zero;
        byte[] chunk = ArrayPool<byte>.Shared.Rent(ChunkSize);
        try
        {
            for (long first = 0; first < entries; first += EntriesOfChunk)
            {
                int count = (int)Math.Min(EntriesOfChunk, entries - first);
                file.Read(layout.Regions.Bat.Offset + (first * BatEntry.Size), chunk.AsSpan(0, count * BatEntry.Size));
                for (int i = Next(chunk, 0, count, plain); i < count; i = Next(chunk, i + 1, count, plain))
                    yield return (first + i, new BatEntry(BinaryPrimitives.ReadUInt64LittleEndian(chunk.AsSpan(i * BatEntry.Size))));
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(chunk);
        }
    }

    // Compiled well at its first call: a mount has no second one.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static int Next(byte[] chunk, int start, int count, ulong plain)
    {
        int i = start;
        while (i < count && (BinaryPrimitives.ReadUInt64LittleEndian(chunk.AsSpan(i * BatEntry.Size)) & ~plain) == 0)
            i++;
        return i;
    }
}
