// The file as a replay of its log would make it, for reading, while not one byte of it changes.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>A file with the pages of its log laid over it. Thread-safe. The file stays its owner's, also on dispose.</summary>
internal sealed class ReplayedView(IStorage file, ActiveLog log) : IStorage
{
    public string Name => file.Name;

    public long Length => Math.Max(file.Length, log.FileLength);

    public bool IsReadOnly => true;

    public void Read(long offset, Span<byte> destination)
    {
        int next = log.FindSegment(offset);
        while (destination.Length > 0)
        {
            bool covered = next < log.Segments.Count && log.Segments[next].Start <= offset;
            long end = covered ? log.Segments[next].End : next < log.Segments.Count ? log.Segments[next].Start : long.MaxValue;
            Span<byte> part = destination[..(int)Math.Min(destination.Length, end - offset)];
            if (!covered)
                file.Read(offset, part);
            else if (log.IsZero(log.Segments[next]))
                part.Clear();
            else
                ReadPage(log.Segments[next], offset, part);
            if (covered)
                next++;
            offset += part.Length;
            destination = destination[part.Length..];
        }
    }

    public void Write(long offset, ReadOnlySpan<byte> source) => throw ReadOnly("write");

    public void WriteZeroes(long offset, long length) => throw ReadOnly("write zeroes");

    public void Discard(long offset, long length) => throw ReadOnly("discard");

    public void Reserve(long offset, long length) => throw ReadOnly("reserve");

    public void SetLength(long length) => throw ReadOnly("truncate");

    public void Sync()
    {
        // Nothing changes through the view.
    }

    public void Dispose()
    {
        // The file is not the view's.
    }

    private void ReadPage(in ActiveLog.Segment segment, long offset, Span<byte> part)
    {
        Span<byte> page = stackalloc byte[VhdxLimits.SectorSize];
        log.ReadPage(file, segment, page);
        page.Slice((int)(offset - segment.Start), part.Length).CopyTo(part);
    }

    private StorageException ReadOnly(string operation) => new(Errno.EROFS, operation, file.Name);
}
