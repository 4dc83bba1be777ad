// Keeps an image's persistent dirty bitmaps true while its disk changes.
//
// D1. Before the first change of the disk every bitmap that says it records all changes is marked in use, durably. So after a crash it is
//     inconsistent, as the format calls it, and never wrong.
// D2. The mark falls after everything of the bitmap is durable: its bits and raised counts before its table, its table before the mark.
//     The commit's stages keep that order. Whatever the mark's crash leaves, tables name clusters that are counted.
// D3. A bitmap that cannot be recorded (too large for memory, a table that contradicts itself or the disk's size, no space) is marked in use
//     and stays so, and the log says it.
// D4. Bitmaps that are disabled or in use already are not changed.
// D5. Directory, tables and data clusters are on the list of structures (MetadataMap), so that nothing else is ever written there.
using System.Buffers;
using System.Buffers.Binary;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>The bitmaps of one image that is open for writing. <see cref="Note"/> is thread-safe; the rest is called in turn.</summary>
internal sealed class BitmapTracking : IChangeTracker
{
    private readonly Qcow2State _state;
    private readonly Qcow2Space _space;
    private readonly Action<string>? _log;
    private readonly List<TrackedBitmap> _tracked = [];
    private readonly List<Qcow2Bitmap> _givenUp = [];
    private readonly int _clusterBits;
    private long _tableEntries;

    private BitmapTracking(Qcow2State state, Qcow2Space space, Action<string>? log)
    {
        _state = state;
        _space = space;
        _log = log;
        _clusterBits = state.Header.ClusterBits;
    }

    /// <summary>Reads the directory and the tables. Null where there are no bitmaps, or the directory makes no sense: then the header's
    /// bit that vouches for them falls with the first write.</summary>
    public static BitmapTracking? TryCreate(Qcow2State state, Qcow2Space space, Action<string>? log)
    {
        if (state.Header.Bitmaps is not { } place)
            return null;
        try
        {
            IReadOnlyList<Qcow2Bitmap> bitmaps = BitmapDirectory.Read(state.Header, state.File);
            BitmapTracking tracking = new(state, space, log);
            if (!state.Metadata!.TryClaim(place.DirectoryOffset, place.DirectoryLength, BitmapDirectory.Structure))
                throw new ImageFormatException(state.File.Name, BitmapDirectory.Structure, place.DirectoryOffset, "it lies in another structure", "run qcowfs check");
            foreach (Qcow2Bitmap bitmap in bitmaps)
                tracking.Add(bitmap);
            return tracking;
        }
        catch (ImageFormatException exception)
        {
            log?.Invoke($"{exception.Message}; no bitmap of the image will be valid after the first write");
            return null;
        }
    }

    /// <summary>Loads the bits and marks the bitmaps; the caller syncs the file (D1).</summary>
    public void Begin()
    {
        foreach (TrackedBitmap bitmap in _tracked.ToArray())
        {
            try
            {
                Load(bitmap);
            }
            catch (StorageException exception)
            {
                _tracked.Remove(bitmap);
                GiveUp(bitmap.Entry, exception.Message);
            }
        }

        foreach (Qcow2Bitmap bitmap in _tracked.Select(tracked => tracked.Entry).Concat(_givenUp))
            WriteFlags(bitmap, bitmap.Flags | BitmapFlags.InUse);
    }

    /// <inheritdoc/>
    public void Note(long offset, long length)
    {
        if (length == 0)
            return;
        foreach (TrackedBitmap bitmap in _tracked)
            bitmap.Set(offset, length);
    }

    /// <inheritdoc/>
    public void Store()
    {
        foreach (TrackedBitmap bitmap in _tracked)
        {
            try
            {
                for (int index = 0; index < bitmap.Table.Length; index++)
                {
                    if (bitmap.IsChanged(index))
                        StoreEntry(bitmap, index);
                }

                bitmap.IsStored = true;
            }
            catch (StorageException exception) when (exception.IsOutOfSpace)
            {
                LogGivenUp(bitmap.Entry, exception.Message); // D3
            }
        }
    }

    /// <summary>Takes the marks away; all else is durable (D2). The caller syncs the file.</summary>
    public void End()
    {
        foreach (TrackedBitmap bitmap in _tracked)
        {
            if (bitmap.IsStored)
                WriteFlags(bitmap.Entry, bitmap.Entry.Flags);
        }
    }

    private void Add(Qcow2Bitmap bitmap)
    {
        ulong[] table = [];
        string? problem = "the bitmaps' tables have more entries than can be kept in memory";
        if (bitmap.TableEntries <= Qcow2Limits.MaxTrackedBitmapTableEntries - _tableEntries)
        {
            _tableEntries += bitmap.TableEntries;
            table = ReadTable(bitmap);
            problem = Claim(bitmap, table); // D5, also for those that are only kept
        }

        if (!bitmap.Flags.HasFlag(BitmapFlags.Auto) || bitmap.Flags.HasFlag(BitmapFlags.InUse))
            return; // D4
        long size = TrackedBitmap.SizeFor(_state.Header.VirtualSize, bitmap.GranularityBits);
        long taken = _tracked.Sum(tracked => TrackedBitmap.SizeFor(_state.Header.VirtualSize, tracked.Entry.GranularityBits));
        long entries = TrackedBitmap.TableEntriesFor(_state.Header.VirtualSize, bitmap.GranularityBits, _clusterBits);
        if (entries != bitmap.TableEntries)
            problem ??= $"its table has {bitmap.TableEntries} entries, expected {entries}";
        if (size > Qcow2Limits.MaxTrackedBitmapBytes - taken)
            problem ??= $"its {size} bytes are more than the {Qcow2Limits.MaxTrackedBitmapBytes} that bitmaps may take in memory";
        if (problem is null)
            _tracked.Add(new TrackedBitmap(bitmap, table, _state.Header.VirtualSize, _clusterBits));
        else
            GiveUp(bitmap, problem);
    }

    /// <summary>The table's entries, those in the file.</summary>
    private ulong[] ReadTable(Qcow2Bitmap bitmap)
    {
        ulong[] table = new ulong[bitmap.TableEntries];
        WindowReader reader = new(_state.File);
        int perRead = reader.Capacity / sizeof(ulong);
        long inFile = Math.Clamp((_state.File.Length - bitmap.TableOffset) / sizeof(ulong), 0, table.Length);
        for (int index = 0; index < inFile; index++)
        {
            if (index % perRead == 0)
                Decode(reader.Get(bitmap.TableOffset + index * (long)sizeof(ulong), (int)Math.Min(inFile - index, perRead) * sizeof(ulong)), table.AsSpan(index));
        }

        return table;
    }

    private static void Decode(ReadOnlySpan<byte> bytes, Span<ulong> entries)
    {
        for (int i = 0; i < bytes.Length / sizeof(ulong); i++)
            entries[i] = BinaryPrimitives.ReadUInt64BigEndian(bytes[(i * sizeof(ulong))..]);
    }

    /// <summary>Lists what a bitmap occupies as its own. Gives the reason where it cannot be so.</summary>
    private string? Claim(Qcow2Bitmap bitmap, ulong[] table)
    {
        MetadataMap metadata = _state.Metadata!;
        long fileEnd = _state.FileClustersAtOpen << _clusterBits;
        if (bitmap.TableOffset + bitmap.TableEntries * sizeof(ulong) > fileEnd
            || !metadata.TryClaim(bitmap.TableOffset, bitmap.TableEntries * sizeof(ulong), "bitmap table"))
        {
            return "its table lies outside the file or in another structure";
        }

        foreach (ulong entry in table)
        {
            long offset = (long)(entry & Qcow2Bitmap.EntryOffsetMask);
            bool isSound = (entry & Qcow2Bitmap.EntryReservedMask) == 0 && (offset == 0 || (entry & Qcow2Bitmap.EntryAllOnes) == 0)
                && offset % _state.Header.ClusterSize == 0 && offset < fileEnd;
            if (!isSound || (offset != 0 && !metadata.TryClaim(offset, _state.Header.ClusterSize, "bitmap")))
                return $"its table's entry 0x{entry:x16} makes no sense";
        }

        return null;
    }

    private void Load(TrackedBitmap bitmap)
    {
        bitmap.Allocate();
        byte[] cluster = new byte[_state.Header.ClusterSize];
        for (int index = 0; index < bitmap.Table.Length; index++)
        {
            long offset = (long)(bitmap.Table[index] & Qcow2Bitmap.EntryOffsetMask);
            if (offset != 0)
                _state.File.Read(offset, cluster);
            bitmap.Load(index, offset != 0 ? cluster : default);
        }
    }

    private void StoreEntry(TrackedBitmap bitmap, int index)
    {
        int size = _state.Header.ClusterSize;
        byte[] buffer = ArrayPool<byte>.Shared.Rent(size);
        try
        {
            long old = (long)(bitmap.Table[index] & Qcow2Bitmap.EntryOffsetMask);
            if (bitmap.Store(index, buffer.AsSpan(0, size)) is { } entry)
                Link(bitmap, index, entry, old);
            else if (old == 0)
                StoreInNewCluster(bitmap, index, buffer.AsSpan(0, size));
            else
                WriteBits(old, buffer.AsSpan(0, size)); // in place: while the mark stands, the bits may be anything
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    private void StoreInNewCluster(TrackedBitmap bitmap, int index, ReadOnlySpan<byte> bits)
    {
        ClusterRun run = _space.TakeCounted(1);
        bool linked = false;
        try
        {
            WriteBits(run.First << _clusterBits, bits);
            using PinnedPages counts = new(_state.Cache);
            _space.PinCounts(counts, run.First, 1);
            using PinnedPages table = new(_state.Cache);
            table.AddRange(EntryOffset(bitmap, index), 0);
            lock (_state.Cache.Gate)
            {
                _space.RaiseCounts(counts, 0, run.First, 1);
                _state.Metadata!.Add(run.First, 1, "bitmap");
                SetEntry(table[0], bitmap, index, (ulong)run.First << _clusterBits);
                linked = true;
            }
        }
        finally
        {
            if (!linked)
            {
                lock (_state.Cache.Gate)
                    _state.Allocator!.Free(run with { ReadsAsZero = false });
            }
        }
    }

    /// <summary>Sets a table entry that names no cluster, and gives the old one's up.</summary>
    private void Link(TrackedBitmap bitmap, int index, ulong entry, long old)
    {
        if (old != 0)
            _state.Refcounts.RequireCounted(old, 1);
        using PinnedPages table = new(_state.Cache);
        table.AddRange(EntryOffset(bitmap, index), 0);
        lock (_state.Cache.Gate)
        {
            SetEntry(table[0], bitmap, index, entry);
            if (old != 0)
                _state.Remove(new Removal(old, _state.Header.ClusterSize, RemovalKind.Data));
        }
    }

    private void SetEntry(MetadataPage page, TrackedBitmap bitmap, int index, ulong entry)
    {
        _state.Cache.BeginChange(page, CommitStage.Links);
        BinaryPrimitives.WriteUInt64BigEndian(page.Bytes[(int)(EntryOffset(bitmap, index) & (_state.Cache.PageSize - 1))..], entry);
        page.EndChange();
        bitmap.Table[index] = entry;
    }

    private void WriteBits(long offset, ReadOnlySpan<byte> bits)
    {
        _state.File.Write(offset, bits);
        _state.FileDirty = true;
    }

    private static long EntryOffset(TrackedBitmap bitmap, int index) => bitmap.Entry.TableOffset + index * (long)sizeof(ulong);

    private void WriteFlags(Qcow2Bitmap bitmap, BitmapFlags flags)
    {
        Span<byte> bytes = stackalloc byte[sizeof(uint)];
        BinaryPrimitives.WriteUInt32BigEndian(bytes, (uint)flags);
        _state.File.Write(bitmap.Offset + Qcow2Bitmap.FlagsAt, bytes);
    }

    private void GiveUp(Qcow2Bitmap bitmap, string reason)
    {
        _givenUp.Add(bitmap);
        LogGivenUp(bitmap, reason);
    }

    private void LogGivenUp(Qcow2Bitmap bitmap, string reason) =>
        _log?.Invoke($"{_state.File.Name}: bitmap {Printable.Quote(bitmap.NameText)} becomes inconsistent: {reason}");
}
