// The hash of a block's bytes. It need not be strong: every hit is compared (D1). The key keeps a guest from making blocks that all
// fall into one bucket.
using System.Buffers.Binary;
using System.Security.Cryptography;
using QcowFs.Native;

namespace QcowFs.Images.Dedup;

/// <summary>Hashes blocks. Thread-safe.</summary>
/// <param name="kind">Which hash.</param>
/// <param name="key">The index's random key.</param>
/// <param name="test">A hash in its place, or null.</param>
internal sealed class BlockHash(DedupHash kind, byte[] key, Func<byte[], UInt128>? test)
{
    /// <summary>The hash of one block.</summary>
    public UInt128 Of(ReadOnlySpan<byte> block)
    {
        if (test is not null)
            return test(block.ToArray());
        return kind == DedupHash.Xxh3 ? XxHash.Hash128(block, key) : Sha256(block);
    }

    private static UInt128 Sha256(ReadOnlySpan<byte> block)
    {
        Span<byte> digest = stackalloc byte[SHA256.HashSizeInBytes];
        SHA256.HashData(block, digest);
        return BinaryPrimitives.ReadUInt128LittleEndian(digest);
    }
}
