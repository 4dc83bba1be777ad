// Reference counts inside a refcount block: 1, 2 or 4 bits packed from the lowest bit on, one byte, or big-endian 16, 32, 64 bits.
using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace QcowFs.Images.Qcow2;

internal static class RefcountEncoding
{
    /// <summary>The count at <paramref name="index"/> of a block with counts of 1 &lt;&lt; <paramref name="order"/> bits.</summary>
    public static ulong Get(ReadOnlySpan<byte> block, int index, int order)
    {
        switch (order)
        {
            case < 3:
                int perByte = 3 - order;
                int shift = (index & ((1 << perByte) - 1)) << order;
                return (uint)(block[index >> perByte] >> shift) & ((1u << (1 << order)) - 1);
            case 3:
                return block[index];
            case 4:
                return BinaryPrimitives.ReadUInt16BigEndian(block[(index * 2)..]);
            case 5:
                return BinaryPrimitives.ReadUInt32BigEndian(block[(index * 4)..]);
            default:
                return BinaryPrimitives.ReadUInt64BigEndian(block[(index * 8)..]);
        }
    }

    /// <summary>Counts of 16 bits as they are stored, in a byte each: 255 for that and all above.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void CopySmall16(ReadOnlySpan<ushort> stored, Span<byte> destination)
    {
        int i = 0;
        ReadOnlySpan<byte> bytes = MemoryMarshal.AsBytes(stored);
        for (; i + Vector128<byte>.Count <= destination.Length; i += Vector128<byte>.Count)
        {
            Vector128<ushort> low = Clip(Vector128.Create(bytes.Slice(2 * i, 16)).AsUInt16());
            Vector128<ushort> high = Clip(Vector128.Create(bytes.Slice((2 * i) + 16, 16)).AsUInt16());
            Vector128.Narrow(low, high).CopyTo(destination[i..]);
        }

        for (; i < destination.Length; i++)
            destination[i] = (byte)Math.Min(byte.MaxValue, BinaryPrimitives.ReadUInt16BigEndian(bytes[(2 * i)..]));

        // In the stored order of bytes the low byte of a little-endian machine is the count's high one.
        static Vector128<ushort> Clip(Vector128<ushort> big) => Vector128.Min(
            BitConverter.IsLittleEndian ? (big << 8) | (big >> 8) : big, Vector128.Create((ushort)byte.MaxValue));
    }

    /// <summary>Sets a count, which must fit.</summary>
    public static void Set(Span<byte> block, int index, int order, ulong count)
    {
        switch (order)
        {
            case < 3:
                int perByte = 3 - order;
                int shift = (index & ((1 << perByte) - 1)) << order;
                int mask = ((1 << (1 << order)) - 1) << shift;
                ref byte packed = ref block[index >> perByte];
                packed = (byte)((packed & ~mask) | ((int)count << shift));
                break;
            case 3:
                block[index] = (byte)count;
                break;
            case 4:
                BinaryPrimitives.WriteUInt16BigEndian(block[(index * 2)..], (ushort)count);
                break;
            case 5:
                BinaryPrimitives.WriteUInt32BigEndian(block[(index * 4)..], (uint)count);
                break;
            default:
                BinaryPrimitives.WriteUInt64BigEndian(block[(index * 8)..], count);
                break;
        }
    }
}
