// What an overlay remembers of the image below it, so that a base which changed behind its back is noticed: kept in the overlay's
// header, in a private extension of 56 bytes, big-endian.
//
//    0  u32  version, 1
//    4  u32  state: 0 the overlay belongs to the base described here; 1 a commit into that base has begun and not ended
//    8  u64  length of the base's file
//   16  i64  its modification time, seconds since 1970
//   24  u32  nanoseconds on top
//   28  u32  reserved, 0
//   32  u64  its inode number
//   40  u128 hash over samples of the base's file and of every file below it
//
// The state is changed by itself, in one aligned word, so it is never torn; the rest is rewritten only while the state says that it
// does not count.
using System.Buffers.Binary;
using System.Globalization;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>What identifies the base of an overlay. Immutable.</summary>
internal readonly record struct BaseIdentity
{
    public const int Size = 56;
    public const int StateAt = 4;
    public const int StateSize = 4;

    private const uint CurrentVersion = 1;
    private const int LengthAt = 8;
    private const int SecondsAt = 16;
    private const int NanosecondsAt = 24;
    private const int InodeAt = 32;
    private const int HashAt = 40;

    private const int EdgeSample = 64 << 10;
    private const int InnerSample = 4096;
    private const int InnerSamples = 32;

    /// <summary>Whether a commit into the base has begun and not ended.</summary>
    public bool IsCommitting { get; init; }

    /// <summary>Bytes of the base's file.</summary>
    public long Length { get; init; }

    public long ModifiedSeconds { get; init; }

    public uint ModifiedNanoseconds { get; init; }

    /// <summary>Inode number, 0 where there is none.</summary>
    public ulong Inode { get; init; }

    public UInt128 Hash { get; init; }

    /// <summary>Reads it; false where the bytes are of another version or no identity at all.</summary>
    public static bool TryParse(ReadOnlySpan<byte> source, out BaseIdentity identity)
    {
        identity = default;
        if (source.Length != Size || BinaryPrimitives.ReadUInt32BigEndian(source) != CurrentVersion)
            return false;
        uint state = BinaryPrimitives.ReadUInt32BigEndian(source[StateAt..]);
        long length = BinaryPrimitives.ReadInt64BigEndian(source[LengthAt..]);
        uint nanoseconds = BinaryPrimitives.ReadUInt32BigEndian(source[NanosecondsAt..]);
        if (state > 1 || length < 0 || nanoseconds >= 1_000_000_000)
            return false;
        identity = new BaseIdentity
        {
            IsCommitting = state == 1,
            Length = length,
            ModifiedSeconds = BinaryPrimitives.ReadInt64BigEndian(source[SecondsAt..]),
            ModifiedNanoseconds = nanoseconds,
            Inode = BinaryPrimitives.ReadUInt64BigEndian(source[InodeAt..]),
            Hash = BinaryPrimitives.ReadUInt128BigEndian(source[HashAt..]),
        };
        return true;
    }

    /// <summary>Writes <see cref="Size"/> bytes.</summary>
    public void WriteTo(Span<byte> destination)
    {
        destination[..Size].Clear();
        BinaryPrimitives.WriteUInt32BigEndian(destination, CurrentVersion);
        BinaryPrimitives.WriteUInt32BigEndian(destination[StateAt..], IsCommitting ? 1u : 0u);
        BinaryPrimitives.WriteInt64BigEndian(destination[LengthAt..], Length);
        BinaryPrimitives.WriteInt64BigEndian(destination[SecondsAt..], ModifiedSeconds);
        BinaryPrimitives.WriteUInt32BigEndian(destination[NanosecondsAt..], ModifiedNanoseconds);
        BinaryPrimitives.WriteUInt64BigEndian(destination[InodeAt..], Inode);
        BinaryPrimitives.WriteUInt128BigEndian(destination[HashAt..], Hash);
    }

    /// <summary>The identity of a base as it is now.</summary>
    /// <param name="files">The base's file first, then every file that its disk is made of.</param>
    public static BaseIdentity Of(IEnumerable<IStorage> files)
    {
        BaseIdentity? identity = null;
        UInt128 hash = 0;
        foreach (IStorage file in files)
        {
            // A device node's times tell nothing of its content.
            FileFacts facts = (file as FileStorage)?.QueryFacts() ?? new FileFacts { Length = file.Length, IsBlockDevice = true };
            BaseIdentity own = new()
            {
                Length = facts.Length,
                ModifiedSeconds = facts.IsBlockDevice ? 0 : facts.ModifiedSeconds,
                ModifiedNanoseconds = facts.IsBlockDevice ? 0 : facts.ModifiedNanoseconds,
                Inode = facts.Inode,
            };
            bool isBase = identity is null;
            identity ??= own;
            hash = Fold(hash, isBase ? own with { ModifiedSeconds = 0, ModifiedNanoseconds = 0, Inode = 0 } : own with { Inode = 0 });
            hash = FoldSamples(hash, file, facts.Length);
        }

        return identity!.Value with { Hash = hash };
    }

    /// <summary>How the base differs from what was remembered, in words, with what to do about it; or null.</summary>
    /// <param name="now">The base as it is now.</param>
    /// <param name="path">What the user calls the base.</param>
    public (string Problem, string Advice)? DifferenceTo(BaseIdentity now, string path)
    {
        string restore = "put the base back as it was, or use a new overlay";
        if (IsCommitting)
        {
            return Inode == now.Inode ? null
                : ($"{Printable.Quote(path)} is not the file into which a commit was begun", "finish that with qemu-img commit");
        }

        if (Length != now.Length)
            return ($"the base {Printable.Quote(path)} has {now.Length} bytes and had {Length} when the overlay was last its own", restore);
        if (Hash != now.Hash)
            return ($"the content of the base {Printable.Quote(path)}, or of a file below it, changed since the overlay was made over it", restore);
        if ((ModifiedSeconds, ModifiedNanoseconds) == (now.ModifiedSeconds, now.ModifiedNanoseconds))
            return null;
        string before = string.Create(CultureInfo.InvariantCulture, $"@{ModifiedSeconds}.{ModifiedNanoseconds:D9}");
        return ($"the base {Printable.Quote(path)} was modified since the overlay was made over it",
            $"if it was only touched, give it its time back: touch -d {before} {Printable.Quote(path)}");
    }

    private static UInt128 Fold(UInt128 hash, BaseIdentity facts)
    {
        Span<byte> bytes = stackalloc byte[Size + 16];
        facts.WriteTo(bytes);
        BinaryPrimitives.WriteUInt128BigEndian(bytes[Size..], hash);
        return XxHash.Hash128(bytes);
    }

    // Both ends, where formats keep their headers and their newest clusters, and places between.
    private static UInt128 FoldSamples(UInt128 hash, IStorage file, long length)
    {
        using AlignedBuffer buffer = new(EdgeSample);
        if (length <= 2L * EdgeSample + InnerSamples * InnerSample)
        {
            for (long at = 0; at < length; at += EdgeSample)
                hash = FoldBytes(hash, file, at, (int)Math.Min(EdgeSample, length - at), buffer);
            return hash;
        }

        hash = FoldBytes(hash, file, 0, EdgeSample, buffer);
        long step = (length - 2 * EdgeSample) / InnerSamples;
        for (int i = 0; i < InnerSamples; i++)
            hash = FoldBytes(hash, file, (EdgeSample + i * step) / InnerSample * InnerSample, InnerSample, buffer);
        return FoldBytes(hash, file, length - EdgeSample, EdgeSample, buffer);
    }

    private static UInt128 FoldBytes(UInt128 hash, IStorage file, long offset, int length, AlignedBuffer buffer)
    {
        Span<byte> bytes = buffer.Span[..length];
        file.Read(offset, bytes);
        UInt128 sample = XxHash.Hash128(bytes);
        Span<byte> both = stackalloc byte[32];
        BinaryPrimitives.WriteUInt128BigEndian(both, hash);
        BinaryPrimitives.WriteUInt128BigEndian(both[16..], sample);
        return XxHash.Hash128(both);
    }
}
