// The redo of a record while it is gathered: ranges of the file with their new bytes, as they stand in the record.
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>Gathers redo ranges. Not thread-safe; keeps its memory from record to record.</summary>
internal sealed class RedoBuffer
{
    // One equal word between two changed ones costs less than another range's head.
    private const int JoinGap = 1;

    private byte[] _bytes = new byte[JournalLayout.BlockSize];

    public int Length { get; private set; }

    /// <summary>Number of ranges.</summary>
    public int Count { get; private set; }

    public ReadOnlySpan<byte> Bytes => _bytes.AsSpan(0, Length);

    public void Clear() => (Length, Count) = (0, 0);

    /// <summary>Adds a range.</summary>
    public void Add(long offset, ReadOnlySpan<byte> bytes)
    {
        int needed = Length + JournalRecordHeader.RedoHeadSize + bytes.Length;
        if (needed > _bytes.Length)
            Array.Resize(ref _bytes, Math.Max(needed, checked(2 * _bytes.Length)));
        Span<byte> head = _bytes.AsSpan(Length);
        BinaryPrimitives.WriteInt64BigEndian(head, offset);
        BinaryPrimitives.WriteInt32BigEndian(head[8..], bytes.Length);
        bytes.CopyTo(head[JournalRecordHeader.RedoHeadSize..]);
        Length = needed;
        Count++;
    }

    /// <summary>Adds what already stands as redo.</summary>
    public void Append(RedoBuffer other)
    {
        int needed = Length + other.Length;
        if (needed > _bytes.Length)
            Array.Resize(ref _bytes, Math.Max(needed, checked(2 * _bytes.Length)));
        other.Bytes.CopyTo(_bytes.AsSpan(Length));
        Length = needed;
        Count += other.Count;
    }

    /// <summary>Adds the 64-bit words of a page that differ from what was logged, and makes them equal.</summary>
    public void AddChanges(long offset, ReadOnlySpan<byte> now, Span<byte> logged)
    {
        ReadOnlySpan<ulong> words = System.Runtime.InteropServices.MemoryMarshal.Cast<byte, ulong>(now);
        ReadOnlySpan<ulong> old = System.Runtime.InteropServices.MemoryMarshal.Cast<byte, ulong>(logged);
        int at = 0;
        while (at < words.Length)
        {
            at += words[at..].CommonPrefixLength(old[at..]);
            if (at == words.Length)
                return;
            int end = at + 1;
            for (int next = end; next < words.Length && next <= end + JoinGap; next++)
            {
                if (words[next] != old[next])
                    end = next + 1;
            }

            ReadOnlySpan<byte> changed = now[(8 * at)..(8 * end)];
            Add(offset + (8L * at), changed);
            changed.CopyTo(logged[(8 * at)..]);
            at = end;
        }
    }
}
