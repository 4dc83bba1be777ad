// Finds the log entries that must be replayed (fact sheet, section 6).
//
// R1. An entry counts only with a right signature, checksum over all its sectors, the header's log GUID, a sequence number that is not
//     zero, and its descriptors' and data sectors' own signatures and sequence numbers.
// R2. A run is entries that lie behind one another in the ring with rising numbers, no more of them than the ring holds. It is active if
//     its newest entry's tail is the start of one of its entries; of several the one with the highest number is.
// R3. Only entries from the newest one's tail on are replayed: older ones may be whole, but were applied long ago, and what they wrote
//     may have changed since.
// R4. A log that is in use and has no active run is damaged: the file is refused, since entries that count are lost.
// R5. Nothing is replayed into the file identifier, the headers, the log, or past the end that the entries themselves state.
using System.Diagnostics.CodeAnalysis;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>Reads one log. Used by one thread.</summary>
internal sealed class VhdxLogReader
{
    private const int ChunkSize = 256 << 10;
    private const int Attempts = 3;
    private const string Structure = "log";
    private const string Advice = "restore the file from a copy";

    /// <summary>Ours: as many changes as a log of the largest size, 4 GiB, has room for pages.</summary>
    private const int MaxOperations = 1 << 20;

    private readonly IStorage _file;
    private readonly Guid _guid;
    private readonly long _offset;
    private readonly long _length;
    private readonly byte[] _chunk;
    private long _checksummed;

    private VhdxLogReader(IStorage file, VhdxHeader header)
    {
        _file = file;
        _guid = header.LogGuid;
        _offset = (long)header.LogOffset;
        _length = header.LogLength;
        _chunk = new byte[Math.Min(ChunkSize, _length)];
    }

    /// <summary>The active entries of a log that is in use. Faults: <see cref="ImageFormatException"/>.</summary>
    public static ActiveLog Find(IStorage file, VhdxHeader header) => new VhdxLogReader(file, header).Find();

    private ActiveLog Find()
    {
        for (int attempt = 1; ; attempt++)
        {
            // Facts are read also of a file that somebody writes, whose ring turns meanwhile.
            List<Entry>? run = FindRun();
            if (run is not null && TryReadOperations(run, out ActiveLog? log))
                return log;
            if (attempt == Attempts)
                throw Bad(0, "the headers say that it is in use, but no run of entries is whole", Advice); // R4
        }
    }

    private bool TryReadOperations(List<Entry> run, [NotNullWhen(true)] out ActiveLog? log)
    {
        log = null;
        int first = run.FindIndex(entry => entry.Position == run[^1].Header.Tail);
        long length = CheckFileLength(run, first, run[^1].Header);
        List<LogOperation> operations = [];
        for (int i = first; i < run.Count; i++) // R3
        {
            int before = operations.Count;
            if (!TryRead(run[i].Position, operations, out _))
                return false;
            for (int j = before; j < operations.Count; j++)
                CheckTarget(run[i], operations[j], length);
        }

        log = new ActiveLog(operations, run.Count - first, length);
        return true;
    }

    // R2
    private List<Entry>? FindRun()
    {
        List<Entry>? found = null;
        for (long start = 0; start < _length;)
        {
            List<Entry> run = CollectRun(start, out long total);
            if (run.Count > 0 && run.Exists(entry => entry.Position == run[^1].Header.Tail)
                && (found is null || run[^1].Header.Sequence > found[^1].Header.Sequence))
            {
                found = run;
            }

            start += Math.Max(total, VhdxLimits.SectorSize);
        }

        return found;
    }

    private List<Entry> CollectRun(long start, out long total)
    {
        List<Entry> run = [];
        total = 0;
        while (total < _length && TryRead((start + total) % _length, null, out Entry entry) && total + entry.Header.Length <= _length
            && (run.Count == 0 || run[^1].Header.Sequence + 1UL == entry.Header.Sequence))
        {
            run.Add(entry);
            total += entry.Header.Length;
            if (entry.Header.Sequence == ulong.MaxValue)
                break;
        }

        return run;
    }

    /// <summary>Reads the entry at a place of the ring where there is a valid one (R1).</summary>
    private bool TryRead(long position, List<LogOperation>? operations, out Entry entry)
    {
        entry = default;
        Span<byte> head = stackalloc byte[VhdxLimits.SectorSize];
        _file.Read(_offset + position, head);
        if (!LogEntryHeader.TryParse(head, _length, out LogEntryHeader header) || header.LogGuid != _guid)
            return false;
        entry = new Entry(position, header);
        _checksummed += header.Length;
        if (_checksummed > VhdxLimits.MaxChecksummedBytes + 4 * _length)
            throw Bad(position, "it is made so that finding its entries would not end soon", Advice);
        return IsWhole(entry, operations ?? []);
    }

    private bool IsWhole(in Entry entry, List<LogOperation> operations)
    {
        LogEntryHeader header = entry.Header;
        long descriptorSectors = LogEntryHeader.DescriptorSectors(header.DescriptorCount);
        long descriptors = 0;
        int firstOperation = operations.Count;
        int nextData = firstOperation;
        Crc32C crc = new();
        long sectors = header.Length / VhdxLimits.SectorSize;
        for (long sector = 0; sector < sectors; sector++)
        {
            ReadOnlySpan<byte> bytes = Sector(entry, sector, sectors, out long at);
            if (sector == 0)
                crc.AddStructure(bytes, LogEntryHeader.ChecksumAt);
            else
                crc.Add(bytes);
            if (sector < descriptorSectors)
            {
                if (!TryReadDescriptors(bytes, sector == 0, header, ref descriptors, operations))
                    return false;
                continue;
            }

            while (nextData < operations.Count && operations[nextData].DataAt < 0)
                nextData++;
            if (nextData == operations.Count)
                continue;
            if (!LogDataSector.IsValid(bytes, header.Sequence))
                return false;
            operations[nextData] = operations[nextData] with { DataAt = at };
            nextData++;
        }

        while (nextData < operations.Count && operations[nextData].DataAt < 0)
            nextData++;
        return nextData == operations.Count && crc.Value == header.Checksum;
    }

    private bool TryReadDescriptors(ReadOnlySpan<byte> sector, bool isFirst, LogEntryHeader header, ref long count, List<LogOperation> operations)
    {
        for (int at = isFirst ? LogEntryHeader.Size : 0; at < sector.Length && count < header.DescriptorCount; at += LogDescriptor.Size, count++)
        {
            if (!LogDescriptor.TryParse(sector[at..], header.Sequence, out LogDescriptor descriptor))
                return false;
            if (operations.Count == MaxOperations)
                throw Bad(-1, $"it makes more than {MaxOperations} changes", Advice);
            // Places are judged later; here they only must not overflow.
            ulong length = descriptor.IsData ? VhdxLimits.SectorSize : descriptor.ZeroLength;
            if (descriptor.FileOffset > long.MaxValue || length > (ulong)long.MaxValue - descriptor.FileOffset)
                throw Bad(-1, $"an entry changes {length} bytes at byte {descriptor.FileOffset}", Advice);
            operations.Add(new LogOperation((long)descriptor.FileOffset, (long)(descriptor.FileOffset + length),
                descriptor.IsData ? 0 : -1, descriptor.Leading, descriptor.Trailing));
        }

        return true;
    }

    /// <summary>A sector of an entry, read with those behind it, and where it is in the file.</summary>
    private ReadOnlySpan<byte> Sector(in Entry entry, long sector, long sectors, out long at)
    {
        long position = (entry.Position + sector * VhdxLimits.SectorSize) % _length;
        at = _offset + position;
        int perChunk = _chunk.Length / VhdxLimits.SectorSize;
        int place = (int)(sector % perChunk);
        if (place == 0)
        {
            int wanted = (int)Math.Min(perChunk, sectors - sector) * VhdxLimits.SectorSize;
            int beforeEnd = (int)Math.Min(wanted, _length - position);
            _file.Read(at, _chunk.AsSpan(0, beforeEnd));
            _file.Read(_offset, _chunk.AsSpan(beforeEnd, wanted - beforeEnd));
        }

        return _chunk.AsSpan(place * VhdxLimits.SectorSize, VhdxLimits.SectorSize);
    }

    private long CheckFileLength(List<Entry> run, int first, LogEntryHeader newest)
    {
        if (newest.FlushedFileOffset > (ulong)_file.Length)
        {
            throw Bad(run[^1].Position, $"when it was written the file had {newest.FlushedFileOffset} bytes, now it has {_file.Length}",
                "the file is cut short; restore it from a copy");
        }

        ulong length = run.Skip(first).Max(entry => entry.Header.LastFileOffset);
        return length <= VhdxLimits.MaxFileSize ? (long)length
            : throw Bad(run[^1].Position, $"it states a file of {length} bytes, at most {VhdxLimits.MaxFileSize} are possible", Advice);
    }

    // R5
    private void CheckTarget(in Entry entry, in LogOperation operation, long length)
    {
        string? problem = operation.Start < RegionTable.FirstOffset ? "the file identifier or the headers"
            : operation.End > Math.Max(length, _file.Length) ? "what lies past the end of the file"
            : operation.Start < _offset + _length && _offset < operation.End ? "the log itself" : null;
        if (problem is not null)
            throw Bad(entry.Position, $"an entry changes {operation.End - operation.Start} bytes at byte {operation.Start}, {problem}", Advice);
    }

    private ImageFormatException Bad(long position, string problem, string advice) =>
        new(_file.Name, Structure, position < 0 ? _offset : _offset + position, problem, advice);

    private readonly record struct Entry(long Position, LogEntryHeader Header);
}
