// An entry of the snapshot table. Entries start at multiples of 8 and have variable length:
//   0 u64 L1 offset | 8 u32 L1 entries | 12 u16 id length | 14 u16 name length | 16 u32 seconds | 20 u32 nanoseconds
//   24 u64 guest run time in ns | 32 u32 VM state bytes (superseded) | 36 u32 length of extra data
//   40 extra data: u64 VM state bytes, u64 virtual size, u64 icount (-1: none), unknown rest | id | name
using System.Buffers.Binary;
using System.Text;

namespace QcowFs.Images.Qcow2;

/// <summary>One internal snapshot as its table entry states it. Place and size of its L1 table are not judged here.</summary>
internal sealed record Qcow2Snapshot
{
    public const int FixedSize = 40;
    public const int Alignment = 8;

    /// <summary>Extra data that a version 3 image must have: 64-bit VM state size and virtual size.</summary>
    public const int Version3ExtraSize = 16;

    private const int IcountEnd = 24;

    /// <summary>Byte offset of the entry in the image file.</summary>
    public required long Offset { get; init; }

    /// <summary>Byte offset of the L1 table; any value, negative where bit 63 is set.</summary>
    public required long L1Offset { get; init; }

    /// <summary>Entries of the L1 table; any 32-bit value.</summary>
    public required long L1Size { get; init; }

    public required byte[] Id { get; init; }

    public required byte[] Name { get; init; }

    /// <summary>When it was made, in seconds since 1970 UTC, and nanoseconds.</summary>
    public required uint Seconds { get; init; }

    public required uint Nanoseconds { get; init; }

    /// <summary>Run time of the guest at that moment in nanoseconds.</summary>
    public required ulong RunTime { get; init; }

    public required ulong VmStateSize { get; init; }

    /// <summary>Size of the disk at that moment, or null where the entry does not state it (old images): today's.</summary>
    public required ulong? VirtualSize { get; init; }

    /// <summary>Instruction count of the guest, or null.</summary>
    public required ulong? Icount { get; init; }

    /// <summary>The extra data as found, unknown fields included.</summary>
    public required byte[] Extra { get; init; }

    public int SizeOnDisk => FixedSize + Extra.Length + Id.Length + Name.Length;

    public string IdText => Encoding.UTF8.GetString(Id);

    public string NameText => Encoding.UTF8.GetString(Name);

    /// <summary>Bytes of the entry with the given fixed part, without padding; null where its extra data is beyond the limit.</summary>
    public static int? MeasureEntry(ReadOnlySpan<byte> fixedPart)
    {
        uint extra = BinaryPrimitives.ReadUInt32BigEndian(fixedPart[36..]);
        return extra > Qcow2Limits.MaxSnapshotExtraBytes ? null
            : FixedSize + (int)extra + BinaryPrimitives.ReadUInt16BigEndian(fixedPart[12..])
                + BinaryPrimitives.ReadUInt16BigEndian(fixedPart[14..]);
    }

    /// <summary>Reads an entry of exactly the length that <see cref="MeasureEntry"/> gave.</summary>
    public static Qcow2Snapshot Parse(ReadOnlySpan<byte> entry, long offset)
    {
        int idLength = BinaryPrimitives.ReadUInt16BigEndian(entry[12..]);
        int extraLength = (int)BinaryPrimitives.ReadUInt32BigEndian(entry[36..]);
        ReadOnlySpan<byte> extra = entry.Slice(FixedSize, extraLength);
        ReadOnlySpan<byte> names = entry[(FixedSize + extraLength)..];
        ulong icount = extraLength >= IcountEnd ? BinaryPrimitives.ReadUInt64BigEndian(extra[16..]) : ulong.MaxValue;
        return new Qcow2Snapshot
        {
            Offset = offset,
            L1Offset = BinaryPrimitives.ReadInt64BigEndian(entry),
            L1Size = BinaryPrimitives.ReadUInt32BigEndian(entry[8..]),
            Id = names[..idLength].ToArray(),
            Name = names[idLength..].ToArray(),
            Seconds = BinaryPrimitives.ReadUInt32BigEndian(entry[16..]),
            Nanoseconds = BinaryPrimitives.ReadUInt32BigEndian(entry[20..]),
            RunTime = BinaryPrimitives.ReadUInt64BigEndian(entry[24..]),
            VmStateSize = extraLength >= 8
                ? BinaryPrimitives.ReadUInt64BigEndian(extra) : BinaryPrimitives.ReadUInt32BigEndian(entry[32..]),
            VirtualSize = extraLength >= Version3ExtraSize ? BinaryPrimitives.ReadUInt64BigEndian(extra[8..]) : null,
            Icount = icount == ulong.MaxValue ? null : icount,
            Extra = extra.ToArray(),
        };
    }

    public void WriteTo(Span<byte> destination)
    {
        BinaryPrimitives.WriteInt64BigEndian(destination, L1Offset);
        BinaryPrimitives.WriteUInt32BigEndian(destination[8..], (uint)L1Size);
        BinaryPrimitives.WriteUInt16BigEndian(destination[12..], (ushort)Id.Length);
        BinaryPrimitives.WriteUInt16BigEndian(destination[14..], (ushort)Name.Length);
        BinaryPrimitives.WriteUInt32BigEndian(destination[16..], Seconds);
        BinaryPrimitives.WriteUInt32BigEndian(destination[20..], Nanoseconds);
        BinaryPrimitives.WriteUInt64BigEndian(destination[24..], RunTime);
        BinaryPrimitives.WriteUInt32BigEndian(destination[32..], VmStateSize > uint.MaxValue ? 0 : (uint)VmStateSize);
        BinaryPrimitives.WriteUInt32BigEndian(destination[36..], (uint)Extra.Length);
        Extra.CopyTo(destination[FixedSize..]);
        Id.CopyTo(destination[(FixedSize + Extra.Length)..]);
        Name.CopyTo(destination[(FixedSize + Extra.Length + Id.Length)..]);
    }
}
