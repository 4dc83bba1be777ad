// The bitmap on disk as a whole, for what works on an image that nobody uses: facts, check, repair, creation, resize. Holes of the file
// are skipped: a bitmap that claims an exabyte costs nothing to look through.
using System.Numerics;
using System.Runtime.InteropServices;
using QcowFs.Images.Engine;
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

internal static class BitmapFile
{
    private const int WindowSize = 1 << 16;

    /// <summary>Bits of the disk's clusters that are set.</summary>
    public static long CountAllocated(IStorage file, AddCowGeometry geometry)
    {
        long count = 0;
        byte[] window = new byte[WindowSize];
        foreach ((long offset, int length) in DataWindows(file, geometry.Header.BitmapOffset, geometry.BitmapEnd))
        {
            Span<byte> bits = window.AsSpan(0, length);
            file.Read(offset, bits);
            if (offset + length == geometry.BitmapEnd)
                bits[^1] &= LastByteMask(geometry);
            foreach (byte eight in bits)
                count += BitOperations.PopCount(eight);
        }

        return count;
    }

    /// <summary>The place of the first byte in a range that is not zero, or -1.</summary>
    public static long FindSetByte(IStorage file, long from, long end)
    {
        byte[] window = new byte[WindowSize];
        foreach ((long offset, int length) in DataWindows(file, from, end))
        {
            Span<byte> part = window.AsSpan(0, length);
            file.Read(offset, part);
            int found = part.IndexOfAnyExcept((byte)0);
            if (found >= 0)
                return offset + found;
        }

        return -1;
    }

    /// <summary>Whether bits of the byte that holds the last cluster's are set past the disk's end.</summary>
    public static bool HasPaddingBits(IStorage file, AddCowGeometry geometry)
    {
        if (geometry.Clusters % 8 == 0)
            return false;
        byte last = 0;
        file.Read(geometry.BitmapEnd - 1, MemoryMarshal.CreateSpan(ref last, 1));
        return (last & ~LastByteMask(geometry)) != 0;
    }

    /// <summary>Sets or clears the bits of clusters, not durably.</summary>
    public static void Write(IStorage file, AddCowGeometry geometry, long first, long end, bool value)
    {
        for (; first < end && first % 8 != 0; first++)
            WriteBit(file, geometry, first, value);
        long wholeEnd = Math.Max(first, end - (end % 8));
        byte[] window = new byte[(int)Math.Min(WindowSize, Math.Max((wholeEnd - first) / 8, 1))];
        window.AsSpan().Fill(value ? (byte)0xFF : (byte)0);
        while (first < wholeEnd)
        {
            int length = (int)Math.Min(window.Length, (wholeEnd - first) / 8);
            file.Write(geometry.ByteOf(first), window.AsSpan(0, length));
            first += length * 8L;
        }

        for (; first < end; first++)
            WriteBit(file, geometry, first, value);
    }

    /// <summary>Whether a cluster's bit is set.</summary>
    public static bool Read(IStorage file, AddCowGeometry geometry, long cluster)
    {
        byte eight = 0;
        file.Read(geometry.ByteOf(cluster), MemoryMarshal.CreateSpan(ref eight, 1));
        return ((eight >> (int)(cluster % 8)) & 1) != 0;
    }

    /// <summary>Clears everything past the disk's last bit and gives the file its length, not durably.</summary>
    public static void CutToSize(IStorage file, AddCowGeometry geometry)
    {
        if (file.Length != geometry.FileLength)
            file.SetLength(geometry.FileLength);
        Write(file, geometry, geometry.Clusters, geometry.BitmapBytes * 8, value: false);
        for (long from = FindSetByte(file, geometry.BitmapEnd, geometry.FileLength); from >= 0; from = FindSetByte(file, from, geometry.FileLength))
        {
            int length = (int)Math.Min(WindowSize, geometry.FileLength - from);
            file.Write(from, new byte[length]);
        }
    }

    private static void WriteBit(IStorage file, AddCowGeometry geometry, long cluster, bool value)
    {
        byte eight = 0;
        long offset = geometry.ByteOf(cluster);
        file.Read(offset, MemoryMarshal.CreateSpan(ref eight, 1));
        int bit = 1 << (int)(cluster % 8);
        eight = (byte)(value ? eight | bit : eight & ~bit);
        file.Write(offset, MemoryMarshal.CreateReadOnlySpan(ref eight, 1));
    }

    private static byte LastByteMask(AddCowGeometry geometry) => (byte)(0xFF >> (int)((8 - (geometry.Clusters % 8)) % 8));

    private static IEnumerable<(long Offset, int Length)> DataWindows(IStorage file, long from, long end)
    {
        end = Math.Min(end, file.Length);
        while (from < end)
        {
            if (!DataHoles.IsData(file, from, end - from, out long run))
            {
                from += run;
                continue;
            }

            int length = (int)Math.Min(WindowSize, run);
            yield return (from, length);
            from += length;
        }
    }
}
