// Bits of a sector bitmap: bit i of a chunk (byte i / 8, the lowest first) says whether logical sector i is in this file.
using System.Numerics;

namespace QcowFs.Images.Vhdx;

/// <summary>Runs of bits within one page of a bitmap.</summary>
internal static class SectorBitmap
{
    /// <summary>Sectors that a page of a bitmap tells about.</summary>
    public const int BitsPerPage = VhdxLimits.SectorSize * 8;

    public static bool Get(ReadOnlySpan<byte> page, int bit) => (page[bit >> 3] >> (bit & 7) & 1) != 0;

    /// <summary>How many bits from one on, at most <paramref name="limit"/>, are like it.</summary>
    public static int RunLength(ReadOnlySpan<byte> page, int first, int limit)
    {
        bool value = Get(page, first);
        byte whole = value ? byte.MaxValue : (byte)0;
        int length = 0;
        while (length < limit)
        {
            int bit = first + length;
            if ((bit & 7) == 0 && limit - length >= 8 && page[bit >> 3] == whole)
            {
                length += 8;
                continue;
            }

            if (Get(page, bit) != value)
                break;
            length++;
        }

        return length;
    }

    /// <summary>Sets or clears a run of bits.</summary>
    public static void Fill(Span<byte> page, int first, int count, bool value)
    {
        for (int bit = first; bit < first + count;)
        {
            if ((bit & 7) == 0 && first + count - bit >= 8)
            {
                int bytes = (first + count - bit) >> 3;
                page.Slice(bit >> 3, bytes).Fill(value ? byte.MaxValue : (byte)0);
                bit += bytes << 3;
                continue;
            }

            byte mask = (byte)(1 << (bit & 7));
            page[bit >> 3] = value ? (byte)(page[bit >> 3] | mask) : (byte)(page[bit >> 3] & ~mask);
            bit++;
        }
    }

    /// <summary>How many of the bits of whole bytes are set.</summary>
    public static long Count(ReadOnlySpan<byte> bytes)
    {
        long count = 0;
        foreach (byte value in bytes)
            count += BitOperations.PopCount(value);
        return count;
    }
}
