// The commit of an add-cow image: data, then bits, then the flag that makes the bits superfluous.
//
// A1. A bit is durable only after its cluster's bytes: the image file is synced, through its own driver, before any bitmap page is
//     written. The backing file is never written.
// A2. Bitmap pages are written and the add-cow file is synced before a Sync returns (I4).
// A3. ALL_ALLOCATED is written only when the bitmap is durably all ones, so that a reader who ignores the flag reads the same disk. From
//     then on, and not before, lookups go without the bitmap.
// A4. Without host space a commit stops before its sync and everything is dirty again (I7).
using System.Buffers;
using System.Buffers.Binary;
using QcowFs.Images.Metadata;
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

/// <summary>Commits the changes of one add-cow image. <see cref="Run"/> is called by one thread at a time.</summary>
internal sealed class AddCowCommit
{
    // What one write of metadata gathers at most.
    private const int BatchSize = 1 << 20;

    // What one commit looks at, at most, for the first missing cluster: 16 MiB of bitmap. The next one goes on.
    private const int ScannedRuns = 4096;

    private readonly IStorage _file;
    private readonly IStorage _data;
    private readonly AddCowBitmap _bitmap;
    private readonly MetadataCache _cache;
    private readonly Action<string>? _log;
    private long _firstGap;
    private volatile bool _isComplete;

    /// <param name="file">The add-cow file, latched.</param>
    /// <param name="data">The image file; syncing it makes its own metadata durable too.</param>
    /// <param name="bitmap">The bitmap.</param>
    /// <param name="log">Told when the last cluster has come; may be null.</param>
    public AddCowCommit(IStorage file, IStorage data, AddCowBitmap bitmap, Action<string>? log)
    {
        _file = file;
        _data = data;
        _bitmap = bitmap;
        _cache = bitmap.Cache;
        _log = log;
        _isComplete = bitmap.Geometry.Header.IsAllAllocated;
    }

    /// <summary>Every cluster is in the image file, durably. Never becomes false again.</summary>
    public bool IsComplete => _isComplete;

    /// <summary>Makes everything up to now durable. Returns whether metadata was written.</summary>
    /// <param name="takeDataDirty">Whether guest data was written since it was last asked.</param>
    public bool Run(Func<bool> takeDataDirty)
    {
        List<MetadataPage> pages;
        lock (_cache.Gate)
            pages = _cache.Freeze();
        bool hasPages = pages.Count > 0;
        bool written = false;
        try
        {
            // A1: asked after the freeze, so the bytes of every frozen bit were written before. Where the answer is no, an earlier commit
            // synced them.
            if (takeDataDirty())
                _data.Sync();
            if (hasPages)
            {
                WritePages(pages);
                _file.Sync(); // A2
            }

            written = true;
        }
        finally
        {
            lock (_cache.Gate)
                _cache.Thaw(pages, written);
        }

        return TryComplete() || hasPages;
    }

    // A3. A bit that the scan sees may be newer than the pages just written; where no page is dirty none is.
    private bool TryComplete()
    {
        if (_isComplete || !IsEveryBitSet())
            return false;
        lock (_cache.Gate)
        {
            if (_cache.DirtyCount > 0)
                return false;
        }

        AddCowHeader header = _bitmap.Geometry.Header;
        if (header.Layout == AddCowLayout.Final)
            WriteFeatures(_file, header with { CompatFeatures = header.CompatFeatures | AddCowFeatures.AllAllocated });
        _isComplete = true;
        _log?.Invoke($"{_file.Name}: every cluster is in {header.ImageName} now");
        return true;
    }

    private bool IsEveryBitSet()
    {
        long clusters = _bitmap.Geometry.Clusters;
        for (int i = 0; i < ScannedRuns && _firstGap < clusters; i++)
        {
            AddCowBitmap.Run run = _bitmap.FindRun(_firstGap, clusters - _firstGap);
            if (!run.IsAllocated)
                return false;
            _firstGap += run.Count;
        }

        return _firstGap >= clusters;
    }

    /// <summary>Writes the compatible feature bits, durably, in one sector. The layout of March 2012 has none but our mark.</summary>
    public static void WriteFeatures(IStorage file, AddCowHeader header)
    {
        int at = header.Layout == AddCowLayout.March2012 ? AddCowHeader.MarchReservedAt : AddCowHeader.CompatFeaturesAt;
        int start = at & -AddCowHeader.SectorSize;
        byte[] sector = new byte[AddCowHeader.SectorSize];
        file.Read(start, sector);
        Span<byte> field = sector.AsSpan(at - start, AddCowHeader.MarchMarkLength);
        if (header.Layout == AddCowLayout.Final)
            BinaryPrimitives.WriteUInt64LittleEndian(field, (ulong)header.CompatFeatures);
        else if (header.IsResizing)
            AddCowHeader.MarchResizing.CopyTo(field);
        else
            field.Clear();
        file.Write(start, sector);
        file.Sync();
    }

    /// <summary>Writes frozen pages, neighbours in one write. The last one is cut where the bitmap ends.</summary>
    private void WritePages(List<MetadataPage> pages)
    {
        pages.Sort(static (left, right) => left.Offset.CompareTo(right.Offset));
        int pageSize = _cache.PageSize;
        long end = _bitmap.Geometry.BitmapEnd;
        byte[] batch = ArrayPool<byte>.Shared.Rent(Math.Min(BatchSize, pages.Count * pageSize));
        try
        {
            for (int i = 0; i < pages.Count;)
            {
                long first = pages[i].Offset;
                int length = 0;
                lock (_cache.Gate)
                {
                    do
                    {
                        pages[i].CommitContent.CopyTo(batch.AsSpan(length));
                        length += pageSize;
                        i++;
                    }
                    while (i < pages.Count && pages[i].Offset == first + length && length + pageSize <= batch.Length);
                }

                _file.Write(first, batch.AsSpan(0, (int)Math.Min(length, end - first)));
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(batch);
        }
    }
}
