// Writes log entries into the ring, and knows which part of it may be overwritten.
//
//   ring:  | free | tail entry ... newest entry | free |        offsets wrap at the ring's length
//
// W1. An entry is durable when Append returns: written, then synced. It is the commit point of the pages in it.
// W2. No part of the ring from the tail of the newest durable entry on is overwritten: a crash in the middle of the next entry leaves the
//     newest durable one and all that it needs.
// W3. An entry's tail is its own place only if the pages of all entries before it are in their places, synced; else it is the tail of the
//     entry before. So the tail moves with the syncs that commits make anyway.
// W4. One sector of the ring stays free beyond what is asked, so that an entry without pages, which moves the tail, always fits, and the
//     head never meets the tail. Where the ring is too full, all pages home are synced and such an entry is written.
// W5. A number is used once more only if its entry was never synced; numbers rise by one, under a GUID that is new for each session.
using System.Buffers;

namespace QcowFs.Images.Vhdx;

/// <summary>A page to be logged: where it lives, and its content.</summary>
internal readonly record struct LoggedPage(long Offset, ReadOnlyMemory<byte> Content);

/// <summary>Writes the log of one session. Used by one thread at a time.</summary>
internal sealed class VhdxLogWriter
{
    private const int Sector = VhdxLimits.SectorSize;

    private readonly VhdxState _state;
    private readonly Region _ring;
    private readonly Guid _guid;
    private ulong _sequence = 1; // of the next entry
    private long _head; // where the next entry begins
    private long _tail; // of the newest durable entry
    private long _used; // from the tail to the head
    private bool _homePending; // a page of a durable entry may not be durable at its place

    public VhdxLogWriter(VhdxState state, Guid guid, long start)
    {
        _state = state;
        _ring = state.Layout.LogRegion;
        _guid = guid;
        _head = start;
        _tail = start;
    }

    /// <summary>How many pages an entry can hold in a ring of so many bytes.</summary>
    public static int PagesPerEntry(long ringLength)
    {
        // Beside it lie the entry that moved the tail, and the free sector (W4).
        long sectors = ringLength / Sector - 2;
        long pages = sectors - 1;
        while (pages + LogEntryHeader.DescriptorSectors(pages) > sectors)
            pages--;
        return (int)Math.Clamp(pages, 1, 4096);
    }

    /// <summary>Notes that a page is about to be written to its place.</summary>
    public void NoteHomeWrites() => _homePending = true;

    /// <summary>Syncs the file: data, and the pages that were written home.</summary>
    /// <param name="homeComplete">Every page of every durable entry has been written to its place.</param>
    public void Sync(bool homeComplete)
    {
        _state.SyncFile();
        if (homeComplete)
            _homePending = false;
    }

    /// <summary>Writes an entry and makes it durable (W1). Every page of every entry before it has been written to its place.</summary>
    /// <param name="pages">Its pages; at most what <see cref="PagesPerEntry"/> says, perhaps none.</param>
    public void Append(IReadOnlyList<LoggedPage> pages)
    {
        long length = (LogEntryHeader.DescriptorSectors(pages.Count) + pages.Count) * Sector;
        if (_used + length + Sector > _ring.Length) // W2, W4
        {
            if (_homePending)
                Sync(homeComplete: true);
            Write([], Sector);
        }

        Invariant.Require(_used + length + Sector <= _ring.Length, "a log entry fits into the ring");
        Write(pages, length);
    }

    private void Write(IReadOnlyList<LoggedPage> pages, long length)
    {
        long tail = _homePending ? _tail : _head; // W3
        LogEntryHeader header = new()
        {
            Checksum = 0,
            Length = (uint)length,
            Tail = (uint)tail,
            Sequence = _sequence,
            DescriptorCount = (uint)pages.Count,
            LogGuid = _guid,
            FlushedFileOffset = (ulong)_state.DurableLength,
            LastFileOffset = (ulong)_state.DurableLength,
        };
        byte[] buffer = ArrayPool<byte>.Shared.Rent((int)length);
        try
        {
            Span<byte> entry = buffer.AsSpan(0, (int)length);
            Compose(entry, header, pages);
            int beforeEnd = (int)Math.Min(length, _ring.Length - _head);
            _state.File.Write(_ring.Offset + _head, entry[..beforeEnd]);
            if (beforeEnd < length)
                _state.File.Write(_ring.Offset, entry[beforeEnd..]);
            _state.SyncFile();
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }

        _sequence++; // W5
        _used = tail == _head ? length : _used + length;
        _tail = tail;
        _head = (_head + length) % _ring.Length;
    }

    private static void Compose(Span<byte> entry, in LogEntryHeader header, IReadOnlyList<LoggedPage> pages)
    {
        int dataAt = (int)LogEntryHeader.DescriptorSectors(pages.Count) * Sector;
        entry[..dataAt].Clear();
        header.WriteTo(entry);
        for (int i = 0; i < pages.Count; i++)
        {
            ReadOnlySpan<byte> page = pages[i].Content.Span;
            LogDescriptor.WriteData(entry[(LogEntryHeader.Size + i * LogDescriptor.Size)..], pages[i].Offset, page, header.Sequence);
            LogDataSector.Write(entry.Slice(dataAt + i * Sector, Sector), page, header.Sequence);
        }

        LogEntryHeader.Seal(entry);
    }
}
