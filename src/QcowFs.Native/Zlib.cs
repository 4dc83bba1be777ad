// Raw deflate (RFC 1951, no zlib header) by the system's zlib. DeflateStream cannot write the 4 KiB window that QEMU's decoder
// insists on in compressed qcow2 clusters, and would cost an object per cluster when reading them.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

/// <summary>Raw deflate on spans. Total: any bytes give a result. Allocates only zlib's own state, freed on return.</summary>
public static unsafe partial class Zlib
{
    /// <summary>The window of qcow2's compressed clusters, 4 KiB, as bits.</summary>
    public const int Qcow2WindowBits = 12;
    /// <summary>The largest window, 32 KiB, as bits: decodes every deflate stream.</summary>
    public const int LargestWindowBits = 15;

    private const string LibraryName = "libz.so.1";
    private const int Ok = 0;
    private const int StreamEnd = 1;
    private const int BufferError = -5;
    private const int Finish = 4;
    private const int Deflated = 8;
    private const int DefaultMemoryLevel = 8;
    private const int DefaultStrategy = 0;

    /// <summary>
    /// Decodes a stream until it ends or <paramref name="destination"/> is full; bytes that follow are ignored. Gives the number of
    /// bytes decoded, which is less than the destination where the stream ended or was cut off early, or -1 where it is malformed.
    /// Since all output is still there, zlib accepts matches from further back than the window, too.
    /// </summary>
    public static int Inflate(ReadOnlySpan<byte> source, Span<byte> destination, int windowBits)
    {
        CheckWindow(windowBits);
        fixed (byte* input = source, output = destination)
        {
            byte nothing;
            var stream = new Stream
            {
                NextIn = input == null ? &nothing : input,
                AvailableIn = (uint)source.Length,
                NextOut = output == null ? &nothing : output,
                AvailableOut = (uint)destination.Length,
            };
            Require(InflateInit2(&stream, -windowBits, Version, sizeof(Stream)));
            int result = Inflate(&stream, Finish);
            int decoded = destination.Length - (int)stream.AvailableOut;
            Require(InflateEnd(&stream));
            // With Z_FINISH, Z_BUF_ERROR says that the input or the room came to its end first: no fault of the stream so far.
            return result is StreamEnd or BufferError or Ok ? decoded : -1;
        }
    }

    /// <summary>Encodes all of <paramref name="source"/> as one stream. Gives its length, or -1 where it does not fit into
    /// <paramref name="destination"/>. <paramref name="level"/> is 1 (fast) to 9 (small).</summary>
    public static int Deflate(ReadOnlySpan<byte> source, Span<byte> destination, int windowBits, int level = 6)
    {
        CheckWindow(windowBits);
        fixed (byte* input = source, output = destination)
        {
            byte nothing;
            var stream = new Stream
            {
                NextIn = input == null ? &nothing : input,
                AvailableIn = (uint)source.Length,
                NextOut = output == null ? &nothing : output,
                AvailableOut = (uint)destination.Length,
            };
            Require(DeflateInit2(&stream, level, Deflated, -windowBits, DefaultMemoryLevel, DefaultStrategy, Version, sizeof(Stream)));
            int result = Deflate(&stream, Finish);
            int encoded = destination.Length - (int)stream.AvailableOut;
            // deflateEnd answers Z_DATA_ERROR when output was still pending, which is the "does not fit" case.
            _ = DeflateEnd(&stream);
            return result == StreamEnd ? encoded : -1;
        }
    }

    // zlib compares the first character of the version and the size of the structure.
    private static ReadOnlySpan<byte> VersionText => "1.2.11\0"u8;

    private static byte* Version => (byte*)System.Runtime.CompilerServices.Unsafe.AsPointer(
        ref MemoryMarshal.GetReference(VersionText));

    // Below 9, zlib changes the meaning of the window for raw streams.
    private static void CheckWindow(int windowBits)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(windowBits, 9);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(windowBits, LargestWindowBits);
    }

    private static void Require(int result)
    {
        if (result != Ok)
            throw new InvalidOperationException($"zlib could not set up its state (result {result}).");
    }

    [LibraryImport(LibraryName, EntryPoint = "inflateInit2_")]
    private static partial int InflateInit2(Stream* stream, int windowBits, byte* version, int streamSize);

    [LibraryImport(LibraryName, EntryPoint = "inflate")]
    private static partial int Inflate(Stream* stream, int flush);

    [LibraryImport(LibraryName, EntryPoint = "inflateEnd")]
    private static partial int InflateEnd(Stream* stream);

    [LibraryImport(LibraryName, EntryPoint = "deflateInit2_")]
    private static partial int DeflateInit2(
        Stream* stream, int level, int method, int windowBits, int memoryLevel, int strategy, byte* version, int streamSize);

    [LibraryImport(LibraryName, EntryPoint = "deflate")]
    private static partial int Deflate(Stream* stream, int flush);

    [LibraryImport(LibraryName, EntryPoint = "deflateEnd")]
    private static partial int DeflateEnd(Stream* stream);

    // z_stream of 64-bit Linux, where C's long has 64 bits.
    [StructLayout(LayoutKind.Sequential)]
    private struct Stream
    {
        public byte* NextIn;
        public uint AvailableIn;
        public nuint TotalIn;
        public byte* NextOut;
        public uint AvailableOut;
        public nuint TotalOut;
        public byte* Message;
        public void* State;
        public void* Allocate;
        public void* Free;
        public void* Opaque;
        public int DataType;
        public nuint Adler;
        public nuint Reserved;
    }
}
