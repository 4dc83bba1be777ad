// What a person decides about inline deduplication.
namespace QcowFs.Images;

/// <summary>How blocks are hashed. Every hit is compared byte by byte whatever the hash.</summary>
public enum DedupHash
{
    /// <summary>XXH3 with 128 bits under a random key that the index keeps: many times faster.</summary>
    Xxh3 = 0,
    /// <summary>SHA-256.</summary>
    Sha256 = 1,
}

/// <summary>Settings of inline deduplication. Frozen at the open.</summary>
public sealed record DedupSettings
{
    /// <summary>Memory for the index when nothing is said, in bytes.</summary>
    public const long DefaultMemory = 256L << 20;

    /// <summary>The largest size of the index file when nothing is said, in bytes.</summary>
    public const long DefaultIndexSize = 1L << 30;

    /// <summary>The least memory that is of use.</summary>
    public const long LeastMemory = Dedup.IndexGeometry.LeastMemory;

    /// <summary>The least index size that is of use.</summary>
    public const long LeastIndexSize = Dedup.IndexGeometry.LeastIndexSize;

    /// <summary>The most memory that the index takes, in bytes.</summary>
    public long Memory { get; init; } = DefaultMemory;

    /// <summary>The largest the index file becomes, in bytes.</summary>
    public long IndexSize { get; init; } = DefaultIndexSize;

    /// <summary>The hash of a new index; null: whatever an existing one uses, else XXH3.</summary>
    public DedupHash? Hash { get; init; }

    /// <summary>An image that cannot share blocks is opened without deduplication; otherwise it is refused.</summary>
    public bool IsOptional { get; init; }

    /// <summary>Begins a new index even where there is one.</summary>
    public bool BeginsAnew { get; init; }

    /// <summary>Fills a span with bytes that nobody can guess: keys and ids.</summary>
    public required Action<Span<byte>> FillRandom { get; init; }

    /// <summary>Whether full logs are frozen by a thread of their own; tests do it in line.</summary>
    internal bool Background { get; init; } = true;

    /// <summary>A hash in place of the chosen one, for tests that want collisions.</summary>
    internal Func<byte[], UInt128>? TestHash { get; init; }

    /// <summary>The name of the index of an image.</summary>
    public static string IndexPath(string image) => image + ".dedup";
}
