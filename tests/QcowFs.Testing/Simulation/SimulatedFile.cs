// The state of one storage of a simulated disk: what is on the medium, what the running system sees, and the changes in between.
using System.Diagnostics;

namespace QcowFs.Testing;

/// <summary>Guarded by its disk's lock. Bytes at and past the length are zero in both contents.</summary>
internal sealed class SimulatedFile(string name)
{
    public const int SectorSize = 512;
    public const int HostBlockSize = 4096;

    private byte[] _content = [];
    private byte[] _durable = [];
    private readonly List<Change> _pending = [];
    private readonly List<bool> _allocated = []; // per host block

    public string Name => name;

    public CallCounts Calls { get; } = new();

    public long Length { get; private set; }

    public long DurableLength { get; private set; }

    public int AllocatedBlocks { get; private set; }

    public IReadOnlyList<Change> Pending => _pending;

    /// <summary>The content as the running system sees it.</summary>
    public ReadOnlySpan<byte> Content => _content.AsSpan(0, (int)Length);

    /// <summary>The content that the last sync left on the medium.</summary>
    public ReadOnlySpan<byte> Durable => _durable.AsSpan(0, (int)DurableLength);

    public void Read(long offset, Span<byte> destination)
    {
        int available = (int)Math.Clamp(Length - offset, 0, destination.Length);
        if (available > 0)
            _content.AsSpan((int)offset, available).CopyTo(destination);
        destination[available..].Clear();
    }

    public void Write(long sequence, long offset, ReadOnlySpan<byte> source)
    {
        if (source.IsEmpty)
            return;
        long end = offset + source.Length;
        long? newLength = Extend(end);
        source.CopyTo(_content.AsSpan((int)offset));
        AddChange(sequence, StorageCalls.Write, offset, end, newLength);
    }

    public void Zero(long sequence, StorageCalls kind, long offset, long end)
    {
        if (end <= offset)
            return;
        long? newLength = Extend(end);
        _content.AsSpan((int)offset, (int)(end - offset)).Clear();
        AddChange(sequence, kind, offset, end, newLength);
    }

    public void ExtendOnly(long sequence, StorageCalls kind, long end)
    {
        long? newLength = Extend(end);
        if (newLength != null)
            AddChange(sequence, kind, 0, 0, newLength);
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
        long oldLength = Length;
        _content.AsSpan((int)length, (int)(oldLength - length)).Clear();
        Length = length;
        AddChange(sequence, StorageCalls.SetLength, length, oldLength, length);
        for (long block = (length + HostBlockSize - 1) / HostBlockSize; block < _allocated.Count; block++)
            SetAllocated(block, false);
    }

    public void Sync()
    {
        Fit(ref _durable, Math.Max(Length, DurableLength));
        foreach (Change change in _pending)
        {
            int start = (int)change.FirstSector * SectorSize;
            int length = change.SectorCount * SectorSize;
            // The content array may end short of a cut file's old sectors; what is not there is zero.
            int there = Math.Clamp(_content.Length - start, 0, length);
            Fit(ref _durable, start + length);
            _content.AsSpan(Math.Min(start, _content.Length), there).CopyTo(_durable.AsSpan(start));
            _durable.AsSpan(start + there, length - there).Clear();
        }
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
        byte[] content = new byte[Math.Max(_durable.Length, _content.Length)];
        _durable.CopyTo(content, 0);
        long length = DurableLength;
        foreach (Change change in _pending)
        {
            PendingChange description = describe(change);
            for (int i = 0; i < change.SectorCount; i++)
            {
                if (choice.Survives(description, change.FirstSector + i))
                    change.Content.AsSpan(i * SectorSize, SectorSize).CopyTo(content.AsSpan((int)(change.FirstSector + i) * SectorSize));
            }
            if (change.NewLength is { } newLength && choice.Survives(description, CrashChoice.LengthAtom))
                length = newLength;
        }
        content.AsSpan((int)length).Clear();
        var crashed = new SimulatedFile(name) { _content = content, Length = length, DurableLength = length };
        crashed._durable = (byte[])content.Clone();
        crashed.CopyAllocation(this);
        return crashed;
    }

    /// <summary>An independent copy, unsynced changes included.</summary>
    public SimulatedFile Clone()
    {
        var clone = new SimulatedFile(name)
        {
            _content = (byte[])_content.Clone(),
            _durable = (byte[])_durable.Clone(),
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
        Fit(ref _content, end);
        Length = end;
        return end;
    }

    // Every version is of whole sectors, as they were right after the change.
    private void AddChange(long sequence, StorageCalls kind, long offset, long end, long? newLength)
    {
        long first = offset / SectorSize;
        int count = end > offset ? (int)((end + SectorSize - 1) / SectorSize - first) : 0;
        byte[] content = count == 0 ? [] : _content.AsSpan((int)first * SectorSize, count * SectorSize).ToArray();
        Debug.Assert(_pending.Count == 0 || _pending[^1].Sequence <= sequence, "Changes come in order of time.");
        _pending.Add(new Change(sequence, kind, first, count, content, newLength));
    }

    private static void Fit(ref byte[] array, long length)
    {
        long whole = (length + SectorSize - 1) / SectorSize * SectorSize;
        if (whole > array.Length)
            Array.Resize(ref array, (int)Math.Max(whole, Math.Min(2L * array.Length, SimulatedDisk.LargestLength)));
    }

    /// <summary>An unsynced change: new versions of consecutive sectors, and maybe a new length.</summary>
    internal readonly record struct Change(
        long Sequence, StorageCalls Kind, long FirstSector, int SectorCount, byte[] Content, long? NewLength);
}
