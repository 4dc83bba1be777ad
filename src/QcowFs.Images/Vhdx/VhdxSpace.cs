// Which parts of the file are free, in units of 1 MiB. The format keeps no record of it: what nothing refers to is free, so an image that
// is opened for writing has its table read once.
//
// A1. Free space reads as zeros: a freed block is punched before it comes here, and space behind the end was never written. What a crash
//     left in free space is punched when it is first taken.
// A2. Two references to one place, or one to what the file has no room for, refuse the image for writing: the next write could damage
//     what is still whole.
// A3. Sector bitmap blocks are never freed while the image is open: the log may hold pages for them, and a replay would write those over
//     whatever came to live there.
// A4. No more than so many free runs are remembered; what is forgotten is found again at the next open.
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>The free space of one file. Thread-safe.</summary>
internal sealed class VhdxSpace
{
    private const int UnitBits = 20;
    private const int MaxRuns = 1 << 17;

    private readonly Lock _lock = new(); // held while the file is extended, so that no extension undoes another
    private readonly IStorage _file;
    private readonly SortedDictionary<long, Run> _byStart = [];
    private readonly SortedSet<(long Length, long Start)> _byLength = [];
    private readonly Dictionary<long, Run> _byEnd = [];
    private long _end; // in units; nothing at or past it was ever used

    private VhdxSpace(IStorage file, long end)
    {
        _file = file;
        _end = end;
    }

    /// <summary>Reads the table of a file that is to be written. Faults: <see cref="ImageFormatException"/> (A2).</summary>
    public static VhdxSpace Scan(VhdxLayout layout, IStorage file) => Scan(layout, file, problem => throw new ImageFormatException(
        file.Name, problem.Structure, problem.Offset, problem.Message, $"see qcowfs check {file.Name}, or mount it without -w"));

    /// <summary>The same for a repair, which knows what is wrong: whatever anything refers to is in use.</summary>
    public static VhdxSpace Scan(VhdxLayout layout, IStorage file, Action<SpaceProblem> report)
    {
        UsedSpace used = UsedSpace.Scan(layout, file, report);
        VhdxSpace space = new(file, Math.Max(used.EndUnit, (file.Length + VhdxLimits.Alignment - 1) >> UnitBits));
        foreach ((long start, long length) in used.FreeRuns(space._end))
            space.AddRun(start, length, clean: false);
        return space;
    }

    /// <summary>Takes space, which reads as zeros. Faults: <see cref="StorageException"/>, with ENOSPC where the host is full.</summary>
    /// <param name="length">Bytes, a multiple of 1 MiB.</param>
    /// <param name="grown">Whether the file became longer for it.</param>
    public long Take(long length, out bool grown)
    {
        long units = length >> UnitBits;
        lock (_lock)
        {
            if (_byLength.GetViewBetween((units, 0), (long.MaxValue, long.MaxValue)).Min is { Length: > 0 } found)
            {
                grown = false;
                return TakeFrom(_byStart[found.Start], units);
            }

            grown = true;
            long start = _end;
            if (start + units > VhdxLimits.MaxFileSize >> UnitBits)
                throw new StorageException(Native.Errno.ENOSPC, "extend", _file.Name, start << UnitBits, length);
            _file.SetLength((start + units) << UnitBits);
            _end = start + units;
            return start << UnitBits;
        }
    }

    /// <summary>Gives space back that has been punched.</summary>
    public void Free(long offset, long length)
    {
        lock (_lock)
            AddRun(offset >> UnitBits, length >> UnitBits, clean: true);
    }

    /// <summary>Free runs that are remembered (A4). For tests.</summary>
    internal int RememberedRuns
    {
        get
        {
            lock (_lock)
                return _byStart.Count;
        }
    }

    /// <summary>Where the last used byte ends.</summary>
    public long UsedEnd()
    {
        lock (_lock)
        {
            long end = _end;
            while (_byEnd.TryGetValue(end, out Run run))
                end = run.Start;
            return end << UnitBits;
        }
    }

    // A1
    private long TakeFrom(Run run, long units)
    {
        if (!run.IsClean)
            _file.Discard(run.Start << UnitBits, units << UnitBits);
        RemoveRun(run);
        if (run.Length > units)
            Insert(run with { Start = run.Start + units, Length = run.Length - units });
        return run.Start << UnitBits;
    }

    // Clean and other runs are not joined, so that each is punched once at most.
    private void AddRun(long start, long length, bool clean)
    {
        if (_byEnd.TryGetValue(start, out Run before) && before.IsClean == clean)
        {
            RemoveRun(before);
            (start, length) = (before.Start, before.Length + length);
        }

        if (_byStart.TryGetValue(start + length, out Run after) && after.IsClean == clean)
        {
            RemoveRun(after);
            length += after.Length;
        }

        Insert(new Run(start, length, clean));
    }

    private void Insert(Run run)
    {
        // A4
        if (_byStart.Count >= MaxRuns)
            return;
        _byStart.Add(run.Start, run);
        _byEnd.Add(run.Start + run.Length, run);
        _byLength.Add((run.Length, run.Start));
    }

    private void RemoveRun(Run run)
    {
        _byStart.Remove(run.Start);
        _byEnd.Remove(run.Start + run.Length);
        _byLength.Remove((run.Length, run.Start));
    }

    private readonly record struct Run(long Start, long Length, bool IsClean);
}
