// The writer's side of the ring: appends records, and moves the tail.
//
// G1. A block that holds any part of a synced record is not written again before the tail has durably moved past it.
// G2. An open intent record may be rewritten, grown, and become a commit, as long as it fits its one block and no sync covered it: a
//     write of one page is whole after a kill, and after a power failure a torn one only ends the chain where nothing was acknowledged.
// G3. A superblock is written only when the one before it is durable: one copy is always whole.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>A place in the ring between two records.</summary>
/// <param name="Sequence">Sequence of the record behind it.</param>
/// <param name="Block">Its first block, counted from the journal's first one on, without going round.</param>
internal readonly record struct JournalPosition(ulong Sequence, long Block);

/// <summary>What a record carries besides its redo.</summary>
/// <param name="Kind">Commit or intent.</param>
/// <param name="Confirmed">Last commit whose sync returned.</param>
/// <param name="DataIsDurable">The data was synced before (J8).</param>
/// <param name="Revokes">Freed ranges.</param>
/// <param name="Checks">What must be there for the record to count.</param>
internal readonly record struct JournalContent(
    JournalRecordKind Kind, ulong Confirmed, bool DataIsDurable, IReadOnlyList<JournalRange> Revokes, IReadOnlyList<JournalCheck> Checks);

/// <summary>Sees bytes of the file that a record gives new values.</summary>
internal delegate void RedoVisitor(long offset, ReadOnlySpan<byte> bytes);

/// <summary>The ring of a journal in use. Not thread-safe.</summary>
internal sealed class JournalRing
{
    private readonly IStorage _file;
    private readonly JournalArea _area;
    private readonly long _blocks;
    private JournalSuperblock _superblock;
    private byte[] _buffer = new byte[JournalLayout.BlockSize];
    private JournalPosition _tail;
    private JournalRecordHeader? _open;

    /// <summary>Begins with an empty ring.</summary>
    /// <param name="file">The image file.</param>
    /// <param name="area">The journal's place.</param>
    /// <param name="superblock">What the journal begins with: tail at the ring's start.</param>
    public JournalRing(IStorage file, JournalArea area, JournalSuperblock superblock)
    {
        _file = file;
        _area = area;
        _superblock = superblock;
        _blocks = area.RingBytes / JournalLayout.BlockSize;
        Head = _tail = new JournalPosition(superblock.TailSequence, 0);
    }

    /// <summary>Where the next record goes.</summary>
    public JournalPosition Head { get; private set; }

    public long FreeBlocks => _blocks - (Head.Block - _tail.Block);

    public long UsedBlocks => Head.Block - _tail.Block;

    public long Blocks => _blocks;

    public int MaxRecordBytes => JournalLayout.MaxRecordBytes(_area.RingBytes);

    /// <summary>Makes the place into an empty journal: zeros, so that nothing there is a record or slow to write, and both superblocks;
    /// durable.</summary>
    public static JournalRing Format(IStorage file, JournalArea area, JournalSuperblock superblock)
    {
        byte[] zeros = new byte[(int)Math.Min(1 << 20, area.Length)];
        for (long at = area.Offset, end = area.Offset + area.Length; at < end;)
        {
            int part = (int)Math.Min(zeros.Length, end - at);
            file.Write(at, zeros.AsSpan(0, part));
            at += part;
        }

        superblock = superblock with { Generation = 1, FileLength = area.Offset + area.Length };
        WriteSuperblock(file, area, superblock);
        superblock = superblock with { Generation = 2 };
        WriteSuperblock(file, area, superblock);
        file.Sync();
        return new JournalRing(file, area, superblock);
    }

    /// <summary>Writes the copy whose turn it is. Durable after the next sync.</summary>
    public static void WriteSuperblock(IStorage file, JournalArea area, in JournalSuperblock superblock)
    {
        Span<byte> sector = stackalloc byte[JournalLayout.SuperblockSize];
        superblock.WriteTo(sector);
        file.Write(area.Start + ((long)(superblock.Generation % JournalLayout.SuperblockCopies) * JournalLayout.BlockSize), sector);
    }

    /// <summary>Blocks that a record needs at most.</summary>
    public static int BlocksFor(in JournalContent content, RedoBuffer redo) => JournalLayout.BlocksFor(SizeOf(content, redo.Length));

    /// <summary>Writes a record, in place of the open one where both fit its block (G2). It takes at most the free blocks. Nothing has
    /// changed where this throws, and it may be called again with the same redo in front.</summary>
    /// <returns>The record's sequence.</returns>
    public ulong Append(in JournalContent content, RedoBuffer redo)
    {
        if (_open is { } open && content.Revokes.Count == 0 && open.Revokes == 0
            && SizeOf(content, open.RedoBytes + redo.Length) <= JournalLayout.BlockSize)
        {
            Write(content, open, redo, Head.Block - 1);
            return open.Sequence;
        }

        _open = null;
        int blocks = BlocksFor(content, redo);
        Invariant.Require(blocks <= FreeBlocks, "G1: a record fits the free part of the ring");
        ulong sequence = Head.Sequence;
        Write(content, default(JournalRecordHeader) with { Sequence = sequence }, redo, Head.Block);
        Head = new JournalPosition(sequence + 1, Head.Block + blocks);
        return sequence;
    }

    /// <summary>Says that a sync may have covered the open record (G1).</summary>
    public void Close() => _open = null;

    /// <summary>Writes a superblock with this tail. The space before it is free when the superblock is durable: then
    /// <see cref="Release"/>.</summary>
    public void WriteTail(JournalPosition tail, ulong confirmed, long fileLength)
    {
        _superblock = _superblock with
        {
            Generation = _superblock.Generation + 1,
            TailSequence = tail.Sequence,
            TailOffset = tail.Block % _blocks * JournalLayout.BlockSize,
            Confirmed = confirmed,
            FileLength = fileLength,
        };
        WriteSuperblock(_file, _area, _superblock);
    }

    /// <summary>Writes a superblock that confirms, with the tail where it is.</summary>
    public void WriteConfirmed(ulong confirmed, long fileLength) => WriteTail(_tail, confirmed, fileLength);

    /// <summary>Gives the space before a tail free, whose superblock is durable.</summary>
    public void Release(JournalPosition tail) => _tail = tail;

    /// <summary>Shows the redo of all records from a place on, as they were written.</summary>
    public void ReadRedo(JournalPosition from, RedoVisitor visit)
    {
        byte[] record = new byte[JournalLayout.BlockSize];
        while (from != Head)
        {
            ReadRound(record.AsSpan(0, JournalLayout.BlockSize), from.Block);
            bool isRecord = JournalRecordHeader.TryParse(record, _superblock.Id, from.Sequence, MaxRecordBytes, out JournalRecordHeader header);
            Invariant.Require(isRecord, "a record of this session is where it was written");
            int blocks = JournalLayout.BlocksFor(header.Length);
            if (record.Length < blocks * JournalLayout.BlockSize)
                record = new byte[blocks * JournalLayout.BlockSize];
            ReadRound(record.AsSpan(0, blocks * JournalLayout.BlockSize), from.Block);
            JournalRecord whole = new(header, record.AsSpan(0, header.Length));
            int cursor = 0;
            while (whole.TryNextRedo(ref cursor, out long offset, out ReadOnlySpan<byte> bytes))
                visit(offset, bytes);
            from = new JournalPosition(from.Sequence + 1, from.Block + blocks);
        }
    }

    private static long SizeOf(in JournalContent content, int redoBytes) =>
        JournalRecordHeader.Size + ((long)content.Revokes.Count * JournalRecordHeader.RevokeSize) + redoBytes
        + ((long)content.Checks.Count * JournalRecordHeader.CheckSize);

    private void Write(in JournalContent content, JournalRecordHeader before, RedoBuffer redo, long block)
    {
        JournalRecordHeader header = new(
            content.Kind, content.DataIsDurable, _superblock.Id, before.Sequence, content.Confirmed,
            (int)SizeOf(content, before.RedoBytes + redo.Length), content.Revokes.Count,
            before.RedoBytes + redo.Length, before.RedoCount + redo.Count, content.Checks.Count);
        int size = JournalLayout.BlocksFor(header.Length) * JournalLayout.BlockSize;
        if (_buffer.Length < size)
            _buffer = new byte[size];
        Span<byte> record = _buffer.AsSpan(0, size);

        // The redo of the open record is in the buffer already, where it stays: it had no revokes.
        int at = JournalRecordHeader.Size;
        foreach (JournalRange revoke in content.Revokes)
        {
            System.Buffers.Binary.BinaryPrimitives.WriteInt64BigEndian(record[at..], revoke.Offset);
            System.Buffers.Binary.BinaryPrimitives.WriteInt64BigEndian(record[(at + 8)..], revoke.Length);
            at += JournalRecordHeader.RevokeSize;
        }

        at += before.RedoBytes;
        redo.Bytes.CopyTo(record[at..]);
        at += redo.Length;
        foreach (JournalCheck check in content.Checks)
        {
            System.Buffers.Binary.BinaryPrimitives.WriteInt64BigEndian(record[at..], check.Offset);
            System.Buffers.Binary.BinaryPrimitives.WriteInt32BigEndian(record[(at + 8)..], check.Length);
            System.Buffers.Binary.BinaryPrimitives.WriteUInt32BigEndian(record[(at + 12)..], check.Checksum);
            at += JournalRecordHeader.CheckSize;
        }

        record[at..].Clear();
        header.Seal(record);
        WriteRound(record, block);
        _open = content.Kind == JournalRecordKind.Intent && size == JournalLayout.BlockSize ? header : null;
    }

    private void ReadRound(Span<byte> blocks, long block)
    {
        long offset = block % _blocks * JournalLayout.BlockSize;
        int first = (int)Math.Min(blocks.Length, _area.RingBytes - offset);
        _file.Read(_area.RingOffset + offset, blocks[..first]);
        _file.Read(_area.RingOffset, blocks[first..]);
    }

    private void WriteRound(ReadOnlySpan<byte> record, long block)
    {
        long offset = block % _blocks * JournalLayout.BlockSize;
        int first = (int)Math.Min(record.Length, _area.RingBytes - offset);
        _file.Write(_area.RingOffset + offset, record[..first]);
        if (first < record.Length)
            _file.Write(_area.RingOffset, record[first..]);
    }
}
