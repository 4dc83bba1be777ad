// The state of one storage of a simulated disk: what is on the medium, what the running system sees, and the changes in between.
using System.Diagnostics;

namespace QcowFs.Testing;

/// <summary>Guarded by its disk's lock. Bytes at and past the length are zero in both contents.</summary>
internal sealed class SimulatedFile(string name)
{
    public const int SectorSize = 512;
    public const int HostBlockSize = 4096;

    private PagedBytes _content = new();
    private readonly List<Change> _pending = [];
    private readonly List<bool> _allocated = []; // per host block

    public string Name => name;

    public CallCounts Calls { get; } = new();

    public long Length { get; private set; }

    public long DurableLength { get; private set; }

    public int AllocatedBlocks { get; private set; }

    public IReadOnlyList<Change> Pending => _pending;

    /// <summary>The content as the running system sees it.</summary>
    public byte[] Content => _content.ToArray(0, Length);

    /// <summary>The content that the last sync left on the medium.</summary>
    public byte[] Durable => CopyDurable().ToArray(0, DurableLength);

    /// <summary>A hash of <see cref="Content"/> and the length.</summary>
    public UInt128 Fingerprint(ulong seed) => _content.Hash(Length, unchecked(seed + (ulong)Length));

    public void Read(long offset, Span<byte> destination)
    {
        int available = (int)Math.Clamp(Length - offset, 0, destination.Length);
        if (available > 0)
            _content.Read(offset, destination[..available]);
        destination[available..].Clear();
    }

    public void Write(long sequence, long offset, ReadOnlySpan<byte> source)
    {
        if (source.IsEmpty)
            return;
        long end = offset + source.Length;
        long? newLength = Extend(end);
        byte[] before = Sectors(offset, end);
        _content.Write(offset, source);
        AddChange(sequence, StorageCalls.Write, offset, end, before, newLength);
    }

    public void Zero(long sequence, StorageCalls kind, long offset, long end)
    {
        if (end <= offset)
            return;
        long? newLength = Extend(end);
        byte[] before = Sectors(offset, end);
        _content.Clear(offset, end);
        AddChange(sequence, kind, offset, end, before, newLength);
    }

    public void ExtendOnly(long sequence, StorageCalls kind, long end)
    {
        long? newLength = Extend(end);
        if (newLength != null)
            AddChange(sequence, kind, 0, 0, [], newLength);
    }

    public void SetLength(long sequence, long length)
    {
        if (length == Length)
            return;
        if (length > Length)
        {
            ExtendOnly(sequence, StorageCalls.SetLength, length);
            return;
        }
        byte[] before = Sectors(length, Length);
        _content.Clear(length, Length);
        AddChange(sequence, StorageCalls.SetLength, length, Length, before, length);
        Length = length;
        for (long block = (length + HostBlockSize - 1) / HostBlockSize; block < _allocated.Count; block++)
            SetAllocated(block, false);
    }

    public void Sync()
    {
        DurableLength = Length;
        _pending.Clear();
    }

    /// <summary>Allocates the host blocks of a range as far as <paramref name="freeBlocks"/> goes. Gives where the allocated part
    /// ends: <paramref name="end"/> if all of it is.</summary>
    public long Allocate(long offset, long end, ref long freeBlocks)
    {
        for (long block = offset / HostBlockSize; block * HostBlockSize < end; block++)
        {
            if (IsAllocated(block))
                continue;
            if (freeBlocks <= 0)
                return Math.Max(offset, block * HostBlockSize);
            freeBlocks--;
            SetAllocated(block, true);
        }
        return end;
    }

    public void FreeWholeBlocks(long offset, long end)
    {
        for (long block = (offset + HostBlockSize - 1) / HostBlockSize; (block + 1) * HostBlockSize <= end; block++)
        {
            if (IsAllocated(block))
                SetAllocated(block, false);
        }
    }

    /// <summary>The file as a crash leaves it.</summary>
    /// <param name="choice">What survives.</param>
    /// <param name="describe">Gives the public description of a pending change of this file.</param>
    public SimulatedFile Crash(CrashChoice choice, Func<Change, PendingChange> describe)
    {
        PagedBytes content = CopyDurable();
        long length = DurableLength, longest = Math.Max(length, Length);
        foreach (Change change in _pending)
        {
            PendingChange description = describe(change);
            for (int i = 0; i < change.SectorCount; i++)
            {
                if (choice.Survives(description, change.FirstSector + i))
                    content.Write((change.FirstSector + i) * SectorSize, change.After.AsSpan(i * SectorSize, SectorSize));
            }
            longest = Math.Max(longest, (change.FirstSector + change.SectorCount) * SectorSize);
            if (change.NewLength is { } newLength && choice.Survives(description, CrashChoice.LengthAtom))
                length = newLength;
        }
        content.Clear(length, longest);
        var crashed = new SimulatedFile(name) { _content = content, Length = length, DurableLength = length };
        crashed.CopyAllocation(this);
        return crashed;
    }

    /// <summary>An independent copy, unsynced changes included.</summary>
    public SimulatedFile Clone()
    {
        var clone = new SimulatedFile(name)
        {
            _content = _content.Clone(),
            Length = Length,
            DurableLength = DurableLength,
        };
        clone._pending.AddRange(_pending);
        clone.CopyAllocation(this);
        return clone;
    }

    private void CopyAllocation(SimulatedFile other)
    {
        for (int block = 0; block < other._allocated.Count && (long)block * HostBlockSize < Length; block++)
            SetAllocated(block, other._allocated[block]);
    }

    private bool IsAllocated(long block) => block < _allocated.Count && _allocated[(int)block];

    private void SetAllocated(long block, bool allocated)
    {
        while (_allocated.Count <= block)
            _allocated.Add(false);
        if (_allocated[(int)block] == allocated)
            return;
        _allocated[(int)block] = allocated;
        AllocatedBlocks += allocated ? 1 : -1;
    }

    private long? Extend(long end)
    {
        if (end <= Length)
            return null;
        Length = end;
        return end;
    }

    private void AddChange(long sequence, StorageCalls kind, long offset, long end, byte[] before, long? newLength)
    {
        Debug.Assert(_pending.Count == 0 || _pending[^1].Sequence <= sequence, "Changes come in order of time.");
        _pending.Add(new Change(sequence, kind, offset / SectorSize, before, Sectors(offset, end), newLength));
    }

    // The whole sectors that a range touches: every version is of whole sectors.
    private byte[] Sectors(long offset, long end)
    {
        int start = (int)(offset / SectorSize * SectorSize);
        int stop = (int)((end + SectorSize - 1) / SectorSize * SectorSize);
        return end > offset ? _content.ToArray(start, stop - start) : [];
    }

    // What is on the medium for certain is the content with all pending changes taken back, the latest first.
    private PagedBytes CopyDurable()
    {
        PagedBytes content = _content.Clone();
        for (int i = _pending.Count - 1; i >= 0; i--)
            content.Write(_pending[i].FirstSector * SectorSize, _pending[i].Before);
        return content;
    }

    /// <summary>An unsynced change: the versions of consecutive sectors before and after it, and maybe a new length.</summary>
    internal readonly record struct Change(
        long Sequence, StorageCalls Kind, long FirstSector, byte[] Before, byte[] After, long? NewLength)
    {
        public int SectorCount => After.Length / SectorSize;
    }
}
