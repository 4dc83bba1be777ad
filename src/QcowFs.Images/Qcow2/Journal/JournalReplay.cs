// Replay (J10, J11): which records of a journal count, and what the file is with them.
//
// Y1. Nothing is trusted before a sync returned (the caller's): a process that died may have left bytes that could still vanish.
// Y2. c is the highest record of which something other than itself says that its sync returned. The chain reaches c, or the image is
//     damaged and refused: nothing is replayed in part.
// Y3. Commits above c count, in order, while every range that they list reads as listed (bytes past the end of the file are zeros).
//     The first that does not was never acknowledged; it and all after it do not count, and no intent after the last that counts.
// Y4. After a kill on the same boot the page cache never went away: then all records count, intents too.
// Y5. What was decided is durable (adopted) before the first page is written: a replay that is interrupted is repeated with the same
//     outcome, since pages that it wrote can change what a list compares.
// Y6. All pages are written and synced before the feature bit is cleared; until then the journal stays as it is.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>What becomes of a record.</summary>
internal enum JournalVerdict
{
    /// <summary>It counts.</summary>
    Replayed,

    /// <summary>A commit whose sync never returned, and whose data is not all there; or what comes after it.</summary>
    NotAcknowledged,

    /// <summary>Changes that no sync asked for, lost in a power failure as they may be.</summary>
    Unsynced,
}

/// <summary>One record as a replay sees it.</summary>
/// <param name="Header">Its fixed part.</param>
/// <param name="HostOffset">Where it begins in the file.</param>
/// <param name="Verdict">Whether it counts.</param>
internal readonly record struct JournalEntry(JournalRecordHeader Header, long HostOffset, JournalVerdict Verdict);

/// <summary>The replay of one image's journal. Used by one thread.</summary>
internal sealed class JournalReplay
{
    private const int CheckPiece = 64 << 10;

    // Home writes go in pieces of neighbouring pages.
    private const int HomeBatch = 1 << 20;

    private readonly JournalReader _reader;
    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly List<JournalEntry> _entries = [];
    private long _chainBytes;

    private JournalReplay(Qcow2Header header, IStorage file)
    {
        _header = header;
        _file = file;
        _reader = JournalReader.Open(header, file);
    }

    /// <summary>All records from the tail on.</summary>
    public IReadOnlyList<JournalEntry> Entries => _entries;

    public JournalSuperblock Superblock => _reader.Superblock;

    public JournalArea Area => _reader.Area;

    /// <summary>The last record that counts; below the tail where none does.</summary>
    public ulong Last { get; private set; }

    /// <summary>Whether the records count because the host never went down (Y4).</summary>
    public bool AfterKill { get; private set; }

    /// <summary>Records that count.</summary>
    public int Replayed => _entries.Count(entry => entry.Verdict == JournalVerdict.Replayed);

    /// <summary>One line for a person.</summary>
    public string Summary
    {
        get
        {
            int dropped = _entries.Count - Replayed;
            int at = _entries.FindIndex(entry => entry.Verdict != JournalVerdict.Replayed);
            return $"{Replayed} journal {(Replayed == 1 ? "record" : "records")} replayed"
                + (dropped == 0 ? "" : $", {dropped} that no sync had acknowledged dropped, from byte {_entries[at].HostOffset} on");
        }
    }

    /// <summary>Decides which records count. Changes nothing. Faults: <see cref="ImageFormatException"/> where the journal is damaged,
    /// <see cref="StorageException"/>.</summary>
    /// <param name="header">A header with a journal.</param>
    /// <param name="file">The image file.</param>
    public static JournalReplay Plan(Qcow2Header header, IStorage file)
    {
        JournalReplay replay = new(header, file);
        replay.ReadEntries();
        replay.Decide();
        return replay;
    }

    /// <summary>All that the records say.</summary>
    public JournalFacts Describe()
    {
        List<JournalRecordFacts> records = new(_entries.Count);
        _reader.Walk((record, _) =>
        {
            JournalEntry entry = _entries[records.Count];
            List<FileRange> writes = new(record.Header.RedoCount);
            int cursor = 0;
            while (record.TryNextRedo(ref cursor, out long offset, out ReadOnlySpan<byte> bytes))
                writes.Add(new FileRange(offset, bytes.Length));
            List<FileRange> revokes = [];
            for (int i = 0; i < record.Header.Revokes; i++)
                revokes.Add(new FileRange(record.Revoke(i).Offset, record.Revoke(i).Length));
            List<FileRange> checks = [];
            for (int i = 0; i < record.Header.Checks; i++)
                checks.Add(new FileRange(record.Check(i).Offset, record.Check(i).Length));
            records.Add(new JournalRecordFacts(
                record.Header.Sequence, record.Header.Kind == JournalRecordKind.Commit ? "commit" : "intent",
                new FileRange(entry.HostOffset, record.Header.Length), record.Header.Confirmed, record.Header.DataIsDurable,
                Name(entry.Verdict), writes, revokes, checks));
            return records.Count < _entries.Count;
        });
        return new JournalFacts
        {
            Path = _file.Name,
            Ring = new FileRange(Area.RingOffset, Superblock.RingBytes),
            Confirmed = Superblock.Confirmed,
            AfterKill = AfterKill,
            Summary = Summary,
            Records = records,
        };
    }

    private static string Name(JournalVerdict verdict) => verdict switch
    {
        JournalVerdict.Replayed => "replayed",
        JournalVerdict.NotAcknowledged => "not-acknowledged",
        _ => "unsynced",
    };

    /// <summary>The file as it is after the replay, for reading.</summary>
    public IStorage View()
    {
        PagePatches patches = Gather();
        long end = patches.Count == 0 ? 0 : patches.Offsets[^1] + PageSize;
        return new ReplayedView(_file, patches, Math.Max(_file.Length, end));
    }

    /// <summary>Brings everything that counts to its place, durably. The journal is still there afterwards, and can be replayed again
    /// with the same outcome.</summary>
    public void Apply()
    {
        PagePatches patches = Gather();
        if (Last < Superblock.TailSequence)
            return;
        WriteAdopted();
        WriteHome(_file, patches, patches.Offsets);
        _file.Sync();
    }

    /// <summary>Writes pages to their places, neighbours in one write.</summary>
    internal static void WriteHome(IStorage file, PagePatches patches, ReadOnlySpan<long> offsets)
    {
        byte[] batch = [];
        for (int i = 0; i < offsets.Length;)
        {
            int first = i;
            int size = patches.Find(offsets[i])!.Length;
            while (++i < offsets.Length && offsets[i] == offsets[i - 1] + size && (i - first + 1) * size <= HomeBatch)
            {
            }

            int length = (i - first) * size;
            if (batch.Length < length)
                batch = new byte[length];
            for (int page = first; page < i; page++)
                patches.Find(offsets[page])!.CopyTo(batch.AsSpan((page - first) * size));
            file.Write(offsets[first], batch.AsSpan(0, length));
        }
    }

    private int PageSize => Math.Min(JournalLayout.BlockSize, _header.ClusterSize);

    private void ReadEntries()
    {
        _reader.Walk((record, offset) =>
        {
            _entries.Add(new JournalEntry(record.Header, _reader.HostOffset(offset), JournalVerdict.Replayed));
            _chainBytes += (long)JournalLayout.BlocksFor(record.Header.Length) * JournalLayout.BlockSize;
            return true;
        });
    }

    private void Decide()
    {
        ulong first = Superblock.TailSequence;
        ulong end = first + (ulong)_entries.Count - 1;
        ulong confirmed = Math.Max(Math.Max(Superblock.Confirmed, Superblock.Adopted), _reader.FindConfirmed(_chainBytes));
        foreach (JournalEntry entry in _entries)
            confirmed = Math.Max(confirmed, entry.Header.Confirmed);

        // Y2.
        if (end < confirmed)
        {
            throw _reader.Bad(At(end), $"its records end with {end}, but record {confirmed} was acknowledged: the journal is damaged, "
                + "and what it holds cannot be told");
        }

        if (Superblock.Adopted != 0)
        {
            Last = Superblock.Adopted; // Y5
        }
        else
        {
            ulong matching = LastMatching(Math.Max(confirmed, first - 1));
            bool allMatch = !_entries.Exists(e => e.Header.Kind == JournalRecordKind.Commit && e.Header.Sequence > matching);
            AfterKill = allMatch && IsSameHost();
            Last = AfterKill ? end : matching;
        }

        bool afterCommit = _entries.Exists(e => e.Header.Sequence > Last && e.Header.Kind == JournalRecordKind.Commit);
        for (int i = 0; i < _entries.Count; i++)
        {
            if (_entries[i].Header.Sequence <= Last)
                continue;
            _entries[i] = _entries[i] with { Verdict = afterCommit ? JournalVerdict.NotAcknowledged : JournalVerdict.Unsynced };
        }

        long At(ulong last) => _entries.Count == 0 || last < first
            ? _reader.HostOffset(Superblock.TailOffset)
            : _entries[^1].HostOffset;
    }

    private bool IsSameHost() => _file is IIdentifiedStorage identified && identified.Identity.IsSameAs(Superblock.Host);

    /// <summary>The last record that counts by Y3, without intents after it.</summary>
    private ulong LastMatching(ulong confirmed)
    {
        ulong last = confirmed;
        int first = _entries.FindIndex(entry => entry.Header.Sequence > confirmed && entry.Header.Kind == JournalRecordKind.Commit);
        if (first < 0)
            return last;
        byte[] piece = new byte[CheckPiece];
        _reader.Walk(_entries[first].HostOffset - Area.RingOffset, _entries[first].Header.Sequence, (record, _) =>
        {
            if (record.Header.Kind != JournalRecordKind.Commit)
                return true;
            for (int i = 0; i < record.Header.Checks; i++)
            {
                if (ChecksumOf(_file, record.Check(i).Offset, record.Check(i).Length, piece) != record.Check(i).Checksum)
                    return false;
            }

            last = record.Header.Sequence;
            return true;
        });
        return last;
    }

    /// <summary>The checksum of a range as the file holds it.</summary>
    internal static uint ChecksumOf(IStorage file, long offset, long length, byte[] piece)
    {
        uint running = Crc32C.Start;
        while (length > 0)
        {
            Span<byte> part = piece.AsSpan(0, (int)Math.Min(piece.Length, length));
            file.Read(offset, part);
            running = Crc32C.Append(running, part);
            offset += part.Length;
            length -= part.Length;
        }

        return ~running;
    }

    private PagePatches Gather()
    {
        PagePatches patches = new(PageSize);
        _reader.Walk((record, _) =>
        {
            if (record.Header.Sequence > Last)
                return false;

            // Revokes act on earlier records only, so they come first.
            for (int i = 0; i < record.Header.Revokes; i++)
                patches.Drop(record.Revoke(i).Offset, record.Revoke(i).Length);
            int cursor = 0;
            while (record.TryNextRedo(ref cursor, out long offset, out ReadOnlySpan<byte> bytes))
                patches.PutRange(offset, bytes, _file.Read);
            return patches.Bytes <= JournalLayout.MaxPatchedBytes ? true : throw _reader.Bad(
                Area.RingOffset, $"its records change more than {JournalLayout.MaxPatchedBytes} bytes of metadata, which no journal does");
        });
        return patches;
    }

    private void WriteAdopted()
    {
        if (Superblock.Adopted != 0)
            return;
        JournalSuperblock adopted = Superblock with { Generation = Superblock.Generation + 1, Confirmed = Last, Adopted = Last };
        JournalRing.WriteSuperblock(_file, Area, adopted);
        _file.Sync();
    }
}
