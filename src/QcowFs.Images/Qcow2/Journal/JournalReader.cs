// Finds the journal of an image and walks its records. Reads only; believes nothing that is not checked.
//
// A record is one iff its magic, id, sequence, lengths and checksum are right; the first place where one is not is the end of the
// chain. What a record with a right checksum says was written by a journal with this id: if it is impossible all the same, the image
// is damaged or hostile, and refused.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>Sees one record.</summary>
/// <param name="record">The record, valid during the call.</param>
/// <param name="offset">Where it begins, from the ring's start on.</param>
/// <returns>Whether to go on.</returns>
internal delegate bool JournalVisitor(JournalRecord record, long offset);

/// <summary>Reads the journal of one image. Used by one thread; the file must not change meanwhile.</summary>
internal sealed class JournalReader
{
    internal const string Structure = "journal";
    internal const string LostAdvice = "data can be lost: copy the file before anything else, then restore it from a backup";

    // The ring is read in windows of so many bytes.
    private const int WindowBytes = 1 << 20;

    private readonly IStorage _file;
    private readonly JournalArea _area;
    private readonly int _clusterSize;
    private byte[] _window = [];
    private long _windowStart;
    private int _windowLength;
    private byte[] _record = []; // one that does not fit the window, or goes round the ring's end

    private JournalReader(IStorage file, Qcow2Header header)
    {
        _file = file;
        _area = header.Journal!.Value;
        _clusterSize = header.ClusterSize;
    }

    /// <summary>The superblock that counts.</summary>
    public JournalSuperblock Superblock { get; private set; }

    public JournalArea Area => _area;

    /// <summary>Opens the journal of an image whose header has one. Faults: <see cref="ImageFormatException"/>.</summary>
    public static JournalReader Open(Qcow2Header header, IStorage file)
    {
        JournalReader reader = new(file, header);
        reader.ReadSuperblocks(header);
        return reader;
    }

    /// <summary>Shows every record from the tail on. Faults: <see cref="ImageFormatException"/>.</summary>
    public void Walk(JournalVisitor visit) => Walk(Superblock.TailOffset, Superblock.TailSequence, visit);

    /// <summary>Shows every record from one on that an earlier walk showed.</summary>
    /// <param name="offset">Where it begins, from the ring's start on.</param>
    /// <param name="sequence">Its sequence.</param>
    /// <param name="visit">Sees the records.</param>
    public void Walk(long offset, ulong sequence, JournalVisitor visit)
    {
        long left = Superblock.RingBytes - ((offset - Superblock.TailOffset + Superblock.RingBytes) % Superblock.RingBytes);
        for (; left > 0 && sequence <= JournalLayout.MaxSequence; sequence++)
        {
            if (!TryRead(offset, sequence, left, out JournalRecordHeader header, out ReadOnlySpan<byte> bytes))
                return;
            JournalRecord record = new(header, bytes);
            RequireSound(record, offset);
            if (!visit(record, offset))
                return;
            long taken = (long)JournalLayout.BlocksFor(header.Length) * JournalLayout.BlockSize;
            left -= taken;
            offset = (offset + taken) % Superblock.RingBytes;
        }
    }

    /// <summary>The highest commit that any record of this journal confirms that is not in the chain: one behind the chain's end tells that
    /// the chain was longer.</summary>
    /// <param name="chainBytes">Bytes of the ring from the tail on that the chain takes.</param>
    public ulong FindConfirmed(long chainBytes)
    {
        ulong confirmed = 0;
        long budget = 2 * Superblock.RingBytes; // of bytes to checksum, whatever the blocks say
        for (long left = Superblock.RingBytes - chainBytes; left > 0 && budget > 0; left -= JournalLayout.BlockSize)
        {
            long at = (Superblock.TailOffset + Superblock.RingBytes - left) % Superblock.RingBytes;
            ReadOnlySpan<byte> head = View(at, JournalRecordHeader.Size);
            ulong sequence = JournalRecordHeader.SequenceOf(head);
            int most = JournalLayout.MaxRecordBytes(Superblock.RingBytes);
            if (!JournalRecordHeader.TryParse(head, Superblock.Id, sequence, most, out JournalRecordHeader header) || header.Confirmed <= confirmed)
                continue;
            budget -= header.Length;
            if (JournalRecordHeader.IsIntact(View(at, header.Length)))
                confirmed = header.Confirmed;
        }

        return confirmed;
    }

    /// <summary>The fault of this journal at a byte of the file.</summary>
    public ImageFormatException Bad(long offset, string problem, string advice = LostAdvice) =>
        new(_file.Name, Structure, offset, problem, advice);

    /// <summary>Host byte offset of a place in the ring.</summary>
    public long HostOffset(long ringOffset) => _area.RingOffset + ringOffset;

    private void ReadSuperblocks(Qcow2Header header)
    {
        if (_area.Offset + _area.Length > _file.Length)
        {
            throw Bad(_area.Offset, $"it reaches to byte {_area.Offset + _area.Length}, but the file ends at byte {_file.Length}: the "
                + "image is cut short");
        }

        Span<byte> sector = stackalloc byte[JournalLayout.SuperblockSize];
        bool found = false;
        for (int copy = 0; copy < JournalLayout.SuperblockCopies; copy++)
        {
            _file.Read(_area.Start + (copy * JournalLayout.BlockSize), sector);
            if (!JournalSuperblock.TryParse(sector, out JournalSuperblock superblock))
                continue;
            if (superblock.FindProblem(header, _area) is { } problem)
                throw Bad(_area.Start + (copy * JournalLayout.BlockSize), $"superblock copy {copy}: {problem}");
            if (found && superblock.Generation == Superblock.Generation && superblock != Superblock)
                throw Bad(_area.Start, "the two copies of its superblock disagree");
            if (!found || superblock.Generation > Superblock.Generation)
                Superblock = superblock;
            found = true;
        }

        if (!found)
            throw Bad(_area.Start, "neither copy of its superblock is whole");
        if (Superblock.FileLength > _file.Length)
        {
            throw Bad(_file.Length, $"the file ends at byte {_file.Length}, but was {Superblock.FileLength} bytes long: the image is cut "
                + "short");
        }
    }

    private bool TryRead(long offset, ulong sequence, long left, out JournalRecordHeader header, out ReadOnlySpan<byte> record)
    {
        record = default;
        int most = (int)Math.Min(JournalLayout.MaxRecordBytes(Superblock.RingBytes), left);
        if (!JournalRecordHeader.TryParse(View(offset, JournalRecordHeader.Size), Superblock.Id, sequence, most, out header))
            return false;
        record = View(offset, header.Length);
        return JournalRecordHeader.IsIntact(record);
    }

    /// <summary>Bytes of the ring, which may go round its end; valid until the next call.</summary>
    private ReadOnlySpan<byte> View(long offset, int length)
    {
        long end = Math.Min(Superblock.RingBytes, offset + WindowBytes);
        if (offset + length > end)
        {
            if (_record.Length < length)
                _record = new byte[length];
            int first = (int)Math.Min(length, Superblock.RingBytes - offset);
            _file.Read(HostOffset(offset), _record.AsSpan(0, first));
            _file.Read(HostOffset(0), _record.AsSpan(first, length - first));
            return _record.AsSpan(0, length);
        }

        if (offset < _windowStart || offset + length > _windowStart + _windowLength)
        {
            if (_window.Length == 0)
                _window = new byte[(int)Math.Min(WindowBytes, Superblock.RingBytes)];
            (_windowStart, _windowLength) = (offset, 0);
            _file.Read(HostOffset(offset), _window.AsSpan(0, (int)(end - offset)));
            _windowLength = (int)(end - offset);
        }

        return _window.AsSpan((int)(offset - _windowStart), length);
    }

    private void RequireSound(JournalRecord record, long offset)
    {
        int cursor = 0;
        for (int i = 0; i < record.Header.RedoCount; i++)
        {
            if (!record.TryNextRedo(ref cursor, out long target, out ReadOnlySpan<byte> bytes))
                throw Bad(HostOffset(offset), $"the redo of record {record.Header.Sequence} is malformed");
            RequireTarget(record, offset, target, bytes.Length);
        }

        if (cursor != record.Header.RedoBytes)
            throw Bad(HostOffset(offset), $"the redo of record {record.Header.Sequence} is malformed");
        for (int i = 0; i < record.Header.Revokes; i++)
            RequireTarget(record, offset, record.Revoke(i).Offset, record.Revoke(i).Length);
        for (int i = 0; i < record.Header.Checks; i++)
            RequireTarget(record, offset, record.Check(i).Offset, record.Check(i).Length);
    }

    // The header, and the journal itself, are never logged.
    private void RequireTarget(JournalRecord record, long offset, long target, long length)
    {
        long end = _file.Length + JournalLayout.MaxGrowth;
        if (target >= _clusterSize && length > 0 && target < end && length <= end - target && !_area.Overlaps(target, length))
            return;
        throw Bad(HostOffset(offset), $"record {record.Header.Sequence} names {length} bytes at byte {target}, which no record can");
    }
}
