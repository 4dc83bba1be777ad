// Messages laid out by hand, field by field as linux/fuse.h has them, so that the library's own structures are not their own proof.
using System.Buffers.Binary;
using System.Text;

namespace QcowFs.Fuse.Tests;

/// <summary>A growing message. Numbers are little-endian, which every host that runs these tests is.</summary>
internal sealed class Packet
{
    private readonly List<byte> _bytes = [];

    public byte[] Bytes => [.. _bytes];

    public int Length => _bytes.Count;

    /// <summary>A whole request: struct fuse_in_header with the length filled in, then <paramref name="body"/>.</summary>
    public static byte[] Request(FuseOpcode opcode, ulong node, Packet? body = null, ulong unique = 0x1122334455667788)
        => new Packet()
            .U32((uint)(40 + (body?.Length ?? 0))).U32((uint)opcode).U64(unique).U64(node)
            .U32(1000).U32(1001).U32(4242).U16(0).U16(0)
            .Raw(body?.Bytes ?? []).Bytes;

    /// <summary>A whole reply: struct fuse_out_header with the length filled in, then <paramref name="body"/>.</summary>
    public static byte[] Reply(int error, Packet? body = null, ulong unique = 0x1122334455667788)
        => new Packet().U32((uint)(16 + (body?.Length ?? 0))).U32(unchecked((uint)error)).U64(unique).Raw(body?.Bytes ?? []).Bytes;

    public Packet U16(ushort value)
    {
        Span<byte> bytes = stackalloc byte[2];
        BinaryPrimitives.WriteUInt16LittleEndian(bytes, value);
        _bytes.AddRange(bytes);
        return this;
    }

    public Packet U32(uint value)
    {
        Span<byte> bytes = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, value);
        _bytes.AddRange(bytes);
        return this;
    }

    public Packet U64(ulong value)
    {
        Span<byte> bytes = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        _bytes.AddRange(bytes);
        return this;
    }

    public Packet I64(long value) => U64(unchecked((ulong)value));

    public Packet Raw(ReadOnlySpan<byte> bytes)
    {
        _bytes.AddRange(bytes);
        return this;
    }

    public Packet Text(string text) => Raw(Encoding.UTF8.GetBytes(text));

    /// <summary>A name and the NUL behind it.</summary>
    public Packet Name(string name) => Text(name).Raw([0]);

    public Packet Zeros(int count) => Raw(new byte[count]);
}
