// Page-aligned native memory: what direct I/O and the FUSE channels transfer from and to, out of the collector's sight.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

/// <summary>
/// Native memory aligned to a page, zero at first. The creator owns it and disposes it when no span of it is in use any more: it
/// is freed by <see cref="Dispose"/> only and never by a finalizer, because a span does not keep this object alive.
/// </summary>
public sealed unsafe class AlignedBuffer : IDisposable
{
    /// <summary>Alignment of every buffer unless told otherwise: a page, which satisfies every device's direct I/O.</summary>
    public const int PageSize = 4096;

    private byte* _pointer;

    /// <summary>Allocates <paramref name="length"/> bytes at a multiple of <paramref name="alignment"/>, a power of two.</summary>
    public AlignedBuffer(int length, int alignment = PageSize)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        Length = length;
        _pointer = (byte*)NativeMemory.AlignedAlloc((nuint)length, (nuint)alignment);
        NativeMemory.Clear(_pointer, (nuint)length);
    }

    /// <summary>Bytes.</summary>
    public int Length { get; }

    /// <summary>The first byte.</summary>
    public byte* Pointer
    {
        get
        {
            ObjectDisposedException.ThrowIf(_pointer == null, this);
            return _pointer;
        }
    }

    /// <summary>All of the buffer.</summary>
    public Span<byte> Span => new(Pointer, Length);

    /// <summary>Whether a span begins at a multiple of <paramref name="alignment"/>. Of the collector's memory that is true only
    /// until the collector moves it.</summary>
    public static bool IsAligned(ReadOnlySpan<byte> span, int alignment)
    {
        fixed (byte* pointer = span)
            return (nuint)pointer % (nuint)alignment == 0;
    }

    /// <summary>Frees the memory; a second call does nothing.</summary>
    public void Dispose()
    {
        NativeMemory.AlignedFree(_pointer);
        _pointer = null;
    }
}
