// Reads small neighbouring pieces of a file through one buffer, so that a table of many entries costs few system calls.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>A forward reader over a storage. Used by one thread.</summary>
internal sealed class WindowReader(IStorage file, int capacity = WindowReader.DefaultCapacity)
{
    private const int DefaultCapacity = 256 << 10;

    private readonly byte[] _buffer = new byte[capacity];
    private long _start;
    private int _length;

    /// <summary>The most bytes that one call can give.</summary>
    public int Capacity => _buffer.Length;

    /// <summary>The bytes of a range, zeros past the end of the file. Valid until the next call.</summary>
    public ReadOnlySpan<byte> Get(long offset, int length)
    {
        if (offset < _start || offset + length > _start + _length)
        {
            int fill = (int)Math.Clamp(file.Length - offset, length, _buffer.Length);
            _length = 0;
            file.Read(offset, _buffer.AsSpan(0, fill));
            _start = offset;
            _length = fill;
        }

        return _buffer.AsSpan((int)(offset - _start), length);
    }
}
