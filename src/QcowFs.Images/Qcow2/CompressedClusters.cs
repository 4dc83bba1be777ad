// Compressed clusters: raw deflate (RFC 1951) or zstd frames, a cluster at a time.
using System.Buffers;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Reads and makes the compressed clusters of one image. Thread-safe.</summary>
internal sealed class CompressedClusters(IStorage file, Qcow2Header header)
{
    // QEMU writes with a window of 4 KiB; other writers use up to 32 KiB, which any decoder of that size reads.
    private const int DeflateWindowBits = Zlib.LargestWindowBits;

    /// <summary>Decompresses the cluster that an L2 entry's low 62 bits describe into <paramref name="cluster"/>, all of it.</summary>
    public void Decompress(long descriptor, Span<byte> cluster)
    {
        CompressedDescriptor place = CompressedDescriptor.Of(
            new L2Entry((ulong)descriptor | L2Entry.CompressedBit), header.ClusterBits);
        if (!place.IsWellFormed || place.Offset >= file.Length)
            throw Bad(place, "the stream does not lie inside the file");
        byte[] stream = ArrayPool<byte>.Shared.Rent(place.Length);
        try
        {
            // The last sector may reach past the end of the file; a stream that is complete before that is fine.
            Span<byte> bytes = stream.AsSpan(0, place.Length);
            file.Read(place.Offset, bytes);
            int produced = header.CompressionType == CompressionType.Zstd
                ? Zstd.Decompress(bytes, cluster)
                : Zlib.Inflate(bytes, cluster, DeflateWindowBits);
            if (produced != cluster.Length)
                throw Bad(place, $"the {header.CompressionType} stream does not give a whole cluster");
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(stream);
        }
    }

    /// <summary>Compresses a whole cluster into <paramref name="stream"/>. Gives the stream's length, or 0 where it is no smaller.</summary>
    public static int Compress(CompressionType type, ReadOnlySpan<byte> cluster, Span<byte> stream)
    {
        Span<byte> smaller = stream[..(cluster.Length - 1)];
        int length = type == CompressionType.Zstd
            ? Zstd.Compress(cluster, smaller) : Zlib.Deflate(cluster, smaller, Zlib.Qcow2WindowBits);
        return Math.Max(length, 0);
    }

    private ImageFormatException Bad(CompressedDescriptor place, string problem) => new(
        file.Name, "compressed cluster", place.Offset, problem, "the guest data in it is lost; restore it from a copy");
}
