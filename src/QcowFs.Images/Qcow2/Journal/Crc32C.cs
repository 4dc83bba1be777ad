// CRC-32C (Castagnoli) of a run of bytes.
using System.Buffers.Binary;
using System.Numerics;

namespace QcowFs.Images.Qcow2.Journal;

internal static class Crc32C
{
    /// <summary>The value before the first byte, for <see cref="Append"/>.</summary>
    public const uint Start = uint.MaxValue;

    public static uint Compute(ReadOnlySpan<byte> bytes) => ~Append(Start, bytes);

    /// <summary>Goes on with a running value; its complement at the end is the checksum.</summary>
    public static uint Append(uint running, ReadOnlySpan<byte> bytes)
    {
        for (; bytes.Length >= 8; bytes = bytes[8..])
            running = BitOperations.Crc32C(running, BinaryPrimitives.ReadUInt64LittleEndian(bytes));
        foreach (byte one in bytes)
            running = BitOperations.Crc32C(running, one);
        return running;
    }
}
