// Zstandard by the system's libzstd, one call per cluster. Decoding goes frame by frame straight into the destination: so the
// window that a hostile frame announces is never allocated.
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace QcowFs.Native;

/// <summary>Zstandard on spans. Total: any bytes give a result. Contexts are kept per thread, so steady use allocates nothing.</summary>
public static unsafe partial class Zstd
{
    private const string LibraryName = "libzstd.so.1";

    [ThreadStatic]
    private static DecompressionContext? Decompressor;

    [ThreadStatic]
    private static CompressionContext? Compressor;

    /// <summary>
    /// Decodes frames until <paramref name="destination"/> is full or <paramref name="source"/> ends; bytes after the frame that
    /// fills the destination are ignored. Gives the number of bytes decoded, or -1 where a frame is malformed, cut off, or holds
    /// more than the destination has room for.
    /// </summary>
    public static int Decompress(ReadOnlySpan<byte> source, Span<byte> destination)
    {
        void* context = (Decompressor ??= new DecompressionContext()).Pointer;
        fixed (byte* input = source, output = destination)
        {
            int consumed = 0;
            int decoded = 0;
            while (decoded < destination.Length && consumed < source.Length)
            {
                nuint frame = FindFrameCompressedSize(input + consumed, (nuint)(source.Length - consumed));
                if (IsError(frame) != 0)
                    return -1;
                nuint result = DecompressContext(context, output + decoded, (nuint)(destination.Length - decoded), input + consumed, frame);
                if (IsError(result) != 0)
                    return -1;
                consumed += (int)frame;
                decoded += (int)result;
            }
            return decoded;
        }
    }

    /// <summary>Encodes all of <paramref name="source"/> as one frame. Gives its length, or -1 where it does not fit into
    /// <paramref name="destination"/>. <paramref name="level"/> is libzstd's, 3 being its default.</summary>
    public static int Compress(ReadOnlySpan<byte> source, Span<byte> destination, int level = 3)
    {
        void* context = (Compressor ??= new CompressionContext()).Pointer;
        fixed (byte* input = source, output = destination)
        {
            nuint result = CompressContext(context, output, (nuint)destination.Length, input, (nuint)source.Length, level);
            return IsError(result) != 0 ? -1 : (int)result;
        }
    }

    [LibraryImport(LibraryName, EntryPoint = "ZSTD_isError")]
    private static partial uint IsError(nuint result);

    [LibraryImport(LibraryName, EntryPoint = "ZSTD_findFrameCompressedSize")]
    private static partial nuint FindFrameCompressedSize(byte* source, nuint length);

    [LibraryImport(LibraryName, EntryPoint = "ZSTD_decompressDCtx")]
    private static partial nuint DecompressContext(void* context, byte* destination, nuint capacity, byte* source, nuint length);

    [LibraryImport(LibraryName, EntryPoint = "ZSTD_compressCCtx")]
    private static partial nuint CompressContext(void* context, byte* destination, nuint capacity, byte* source, nuint length, int level);

    [LibraryImport(LibraryName, EntryPoint = "ZSTD_createDCtx")]
    private static partial nint CreateDecompression();

    [LibraryImport(LibraryName, EntryPoint = "ZSTD_freeDCtx")]
    private static partial nuint FreeDecompression(nint context);

    [LibraryImport(LibraryName, EntryPoint = "ZSTD_createCCtx")]
    private static partial nint CreateCompression();

    [LibraryImport(LibraryName, EntryPoint = "ZSTD_freeCCtx")]
    private static partial nuint FreeCompression(nint context);

    private static nint Require(nint context) =>
        context != 0 ? context : throw new InvalidOperationException("libzstd could not allocate a context.");

    // A context belongs to one thread and is freed by the finalizer after that thread has ended.
    private sealed class DecompressionContext : SafeHandleZeroOrMinusOneIsInvalid
    {
        public DecompressionContext()
            : base(ownsHandle: true) => SetHandle(Require(CreateDecompression()));

        public void* Pointer => (void*)handle;

        protected override bool ReleaseHandle() => FreeDecompression(handle) == 0;
    }

    private sealed class CompressionContext : SafeHandleZeroOrMinusOneIsInvalid
    {
        public CompressionContext()
            : base(ownsHandle: true) => SetHandle(Require(CreateCompression()));

        public void* Pointer => (void*)handle;

        protected override bool ReleaseHandle() => FreeCompression(handle) == 0;
    }
}
