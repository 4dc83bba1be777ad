// Content that says where it comes from: a function of seed and offset, so that no test has to keep what it wrote.
using System.Buffers.Binary;

namespace QcowFs.Testing;

/// <summary>Pseudo-random bytes. The byte at an offset depends on seed and offset only, not on how a range is cut into pieces.</summary>
public static class Pattern
{
    /// <summary>Fills a range that begins at <paramref name="offset"/>.</summary>
    public static void Fill(Span<byte> destination, ulong seed, long offset)
    {
        Span<byte> word = stackalloc byte[8];
        while (!destination.IsEmpty)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(word, Mix(unchecked(seed * 0x9E3779B97F4A7C15UL + (ulong)(offset / 8))));
            int at = (int)(offset % 8);
            int count = Math.Min(8 - at, destination.Length);
            word.Slice(at, count).CopyTo(destination);
            destination = destination[count..];
            offset += count;
        }
    }

    /// <summary>A new array for a range.</summary>
    public static byte[] Bytes(ulong seed, long offset, int length)
    {
        byte[] bytes = new byte[length];
        Fill(bytes, seed, offset);
        return bytes;
    }

    /// <summary>The mixing function of splitmix64: any two inputs differ in about half of the output's bits.</summary>
    public static ulong Mix(ulong value)
    {
        unchecked
        {
            value += 0x9E3779B97F4A7C15UL;
            value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9UL;
            value = (value ^ (value >> 27)) * 0x94D049BB133111EBUL;
            return value ^ (value >> 31);
        }
    }
}
