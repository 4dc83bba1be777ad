// CRC-32C (Castagnoli, reflected) as VHDX uses it: over a whole structure, its own checksum field taken as zeros.
using System.Buffers.Binary;
using System.Numerics;

namespace QcowFs.Images.Vhdx;

/// <summary>A checksum that is built up piece by piece.</summary>
internal struct Crc32C
{
    private uint _state;

    public Crc32C() => _state = uint.MaxValue;

    /// <summary>The checksum of all that was added.</summary>
    public readonly uint Value => ~_state;

    /// <summary>The checksum of a structure whose own 4 bytes of checksum lie at <paramref name="checksumAt"/>.</summary>
    public static uint OfStructure(ReadOnlySpan<byte> structure, int checksumAt)
    {
        Crc32C crc = new();
        crc.AddStructure(structure, checksumAt);
        return crc.Value;
    }

    /// <summary>Adds a part that holds the structure's own checksum.</summary>
    public void AddStructure(ReadOnlySpan<byte> part, int checksumAt)
    {
        Add(part[..checksumAt]);
        Add([0, 0, 0, 0]);
        Add(part[(checksumAt + sizeof(uint))..]);
    }

    public void Add(ReadOnlySpan<byte> bytes)
    {
        uint state = _state;
        for (; bytes.Length >= sizeof(ulong); bytes = bytes[sizeof(ulong)..])
            state = BitOperations.Crc32C(state, BinaryPrimitives.ReadUInt64LittleEndian(bytes));
        foreach (byte value in bytes)
            state = BitOperations.Crc32C(state, value);
        _state = state;
    }
}
