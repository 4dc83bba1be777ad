// XXH3 with 128 bits by the system's libxxhash: the fast hash of dedup's index, where every hit is compared anyway.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

/// <summary>XXH3-128. Not cryptographic; a secret keeps guests from making collisions on purpose.</summary>
public static unsafe partial class XxHash
{
    /// <summary>The shortest secret that the algorithm takes, in bytes.</summary>
    public const int SmallestSecret = 136;

    private const string LibraryName = "libxxhash.so.0";

    /// <summary>Hash under a 64-bit seed.</summary>
    public static UInt128 Hash128(ReadOnlySpan<byte> source, ulong seed = 0)
    {
        fixed (byte* input = source)
            return HashWithSeed(input, (nuint)source.Length, seed).Value;
    }

    /// <summary>Hash under a secret of at least <see cref="SmallestSecret"/> random bytes.</summary>
    public static UInt128 Hash128(ReadOnlySpan<byte> source, ReadOnlySpan<byte> secret)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(secret.Length, SmallestSecret, nameof(secret));
        fixed (byte* input = source, key = secret)
            return HashWithSecret(input, (nuint)source.Length, key, (nuint)secret.Length).Value;
    }

    [LibraryImport(LibraryName, EntryPoint = "XXH3_128bits_withSeed")]
    private static partial Halves HashWithSeed(byte* source, nuint length, ulong seed);

    [LibraryImport(LibraryName, EntryPoint = "XXH3_128bits_withSecret")]
    private static partial Halves HashWithSecret(byte* source, nuint length, byte* secret, nuint secretLength);

    [StructLayout(LayoutKind.Sequential)]
    private struct Halves
    {
        public ulong Low;
        public ulong High;

        public readonly UInt128 Value => new(High, Low);
    }
}
