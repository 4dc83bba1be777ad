// Where new GUIDs come from: injected like the clock, so that tests repeat.
namespace QcowFs.Native;

/// <summary>Makes GUIDs that nobody has made before. Thread-safe.</summary>
public abstract class GuidSource
{
    /// <summary>Random GUIDs (version 4) from the kernel.</summary>
    public static GuidSource System { get; } = new KernelSource();

    /// <summary>The next one.</summary>
    public abstract Guid Next();

    private sealed class KernelSource : GuidSource
    {
        public override Guid Next()
        {
            Span<byte> bytes = stackalloc byte[16];
            Fill(bytes);
            // RFC 4122, 4.4; the first fields are little-endian in .NET's byte order.
            bytes[7] = (byte)((bytes[7] & 0x0F) | 0x40);
            bytes[8] = (byte)((bytes[8] & 0x3F) | 0x80);
            return new Guid(bytes);
        }

        // So few bytes come whole or, where a signal came first, not at all.
        private static unsafe void Fill(Span<byte> bytes)
        {
            nint got;
            fixed (byte* start = bytes)
            {
                do
                {
                    got = Libc.GetRandom(start, (nuint)bytes.Length, 0);
                }
                while (got < 0 && Libc.LastErrno == Errno.EINTR);
            }

            if (got != bytes.Length)
                throw new InvalidOperationException("the kernel gives no random bytes");
        }
    }
}
