// Aligned memory for direct I/O on behalf of callers whose own memory or range is not aligned.
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>Page-aligned buffers of one size, shared by all storages. Who rents one owns it until it is returned.</summary>
internal static class BouncePool
{
    /// <summary>Bytes of each buffer: large enough that a megabyte request costs few transfers.</summary>
    public const int BufferSize = 256 << 10;

    // As many as threads usually work at once; what is beyond is freed at return.
    private const int Kept = 16;

    private static readonly Lock Gate = new();
    private static readonly AlignedBuffer?[] Free = new AlignedBuffer?[Kept]; // guarded by Gate
    private static int FreeCount; // guarded by Gate

    public static AlignedBuffer Rent()
    {
        lock (Gate)
        {
            if (FreeCount > 0)
                return Free[--FreeCount]!;
        }
        return new AlignedBuffer(BufferSize);
    }

    public static void Return(AlignedBuffer buffer)
    {
        lock (Gate)
        {
            if (FreeCount < Kept)
            {
                Free[FreeCount++] = buffer;
                return;
            }
        }
        buffer.Dispose();
    }
}
