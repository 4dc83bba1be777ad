// The options of deduplication, for `mount` and `dedup`.
using System.Security.Cryptography;
using QcowFs.Images;

namespace QcowFs.CommandLine;

/// <summary>Budgets and hash of the dedup index.</summary>
internal static class DedupOptions
{
    public static readonly Option Memory = new("dedup-memory", "the most memory that the dedup index takes; default: 256M", "SIZE");

    public static readonly Option IndexSize = new("dedup-index-size", "the largest its file IMAGE.dedup becomes; default: 1G", "SIZE");

    public static readonly Option Hash = new("dedup-hash", "xxh3 (default) or sha256; every hit is compared byte by byte anyway", "HASH");

    public static Option[] All { get; } = [Memory, IndexSize, Hash];

    /// <summary>The settings that a line asks for.</summary>
    public static DedupSettings From(ParsedLine line) => new()
    {
        Memory = AtLeast(line, Memory, DedupSettings.LeastMemory) ?? DedupSettings.DefaultMemory,
        IndexSize = AtLeast(line, IndexSize, DedupSettings.LeastIndexSize) ?? DedupSettings.DefaultIndexSize,
        Hash = line.Choice(Hash, "xxh3", "sha256") switch
        {
            "xxh3" => DedupHash.Xxh3,
            "sha256" => DedupHash.Sha256,
            _ => null,
        },
        FillRandom = RandomNumberGenerator.Fill,
    };

    /// <summary>The name of a hash on the command line and in JSON.</summary>
    public static string NameOf(DedupHash hash) => hash == DedupHash.Sha256 ? "sha256" : "xxh3";

    private static long? AtLeast(ParsedLine line, Option option, long least) => line.Size(option) switch
    {
        { } size when size < least => throw line.Wrong(option, $"{size} bytes are too few", $"give at least {least >> 20}M"),
        var size => size,
    };
}
