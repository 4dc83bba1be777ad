// What memory holds of a log: for each entry a tag of 16 bits and its number, so that a lookup reads the log only where the
// hash probably is. 6 bytes a slot at a load of at most 3/4; segments come one by one as the log fills (D4).
namespace QcowFs.Images.Dedup;

/// <summary>The filter over one log. Not thread-safe.</summary>
/// <param name="capacity">Entries that the log can hold.</param>
internal sealed class LogFilter(long capacity)
{
    private const int Segments = 8;
    private const uint Free = 0;
    private const uint Deleted = uint.MaxValue;
    private const int SlotBytes = sizeof(uint) + sizeof(ushort);

    private readonly List<Segment> _segments = [];
    private readonly int _perSegment = SegmentEntries(capacity);

    /// <summary>Bytes of memory in use.</summary>
    public long Memory => _segments.Sum(segment => (long)segment.Slots.Length * SlotBytes);

    /// <summary>The most memory that a filter for so many entries takes.</summary>
    public static long BytesFor(long capacity) => (long)Segments * SlotsFor(SegmentEntries(capacity)) * SlotBytes;

    /// <summary>Forgets everything and gives the memory back.</summary>
    public void Clear() => _segments.Clear();

    /// <summary>Adds the entry with this number, counted from 0 in the log.</summary>
    public void Add(UInt128 hash, long number)
    {
        if (_segments.Count == 0 || _segments[^1].Count == _perSegment)
            _segments.Add(new Segment(SlotsFor(_perSegment)));
        Segment segment = _segments[^1];
        int slot = Home(hash, segment);
        while (segment.Slots[slot] != Free)
            slot = slot + 1 == segment.Slots.Length ? 0 : slot + 1;
        segment.Slots[slot] = (uint)number + 1;
        segment.Tags[slot] = IndexEntry.TagOf(hash);
        segment.Count++;
    }

    /// <summary>Writes the numbers of entries that may have this hash, the newest first, and returns how many: at most as many as fit.</summary>
    public int Find(UInt128 hash, Span<long> numbers)
    {
        ushort tag = IndexEntry.TagOf(hash);
        int found = 0;
        for (int i = _segments.Count - 1; i >= 0 && found < numbers.Length; i--)
        {
            Segment segment = _segments[i];
            int first = found;
            for (int slot = Home(hash, segment); segment.Slots[slot] != Free; slot = slot + 1 == segment.Slots.Length ? 0 : slot + 1)
            {
                if (segment.Tags[slot] != tag || segment.Slots[slot] == Deleted)
                    continue;

                // Insertion into the short sorted list; the oldest falls out where it is full.
                long number = segment.Slots[slot] - 1L;
                int at = found;
                while (at > first && numbers[at - 1] < number)
                    at--;
                if (at == numbers.Length)
                    continue;
                int kept = Math.Min(found, numbers.Length - 1);
                numbers[at..kept].CopyTo(numbers[(at + 1)..]);
                numbers[at] = number;
                found = kept + 1;
            }
        }

        return found;
    }

    /// <summary>Forgets one entry.</summary>
    public void Remove(UInt128 hash, long number)
    {
        foreach (Segment segment in _segments)
        {
            for (int slot = Home(hash, segment); segment.Slots[slot] != Free; slot = slot + 1 == segment.Slots.Length ? 0 : slot + 1)
            {
                if (segment.Slots[slot] != (uint)number + 1)
                    continue;
                segment.Slots[slot] = Deleted;
                return;
            }
        }
    }

    private static int SegmentEntries(long capacity) => checked((int)((capacity + Segments - 1) / Segments));

    private static int SlotsFor(int entries) => checked((int)(((entries * 4L) + 2) / 3) + 1);

    private static int Home(UInt128 hash, Segment segment) => IndexEntry.ScaleHigh(hash, segment.Slots.Length);

    private sealed class Segment(int slots)
    {
        public uint[] Slots { get; } = new uint[slots];

        public ushort[] Tags { get; } = new ushort[slots];

        public int Count { get; set; }
    }
}
