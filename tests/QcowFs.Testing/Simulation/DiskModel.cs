// What a disk may hold: the other half of every simulation test, as simple as the promise it checks.
using System.Buffers;
using QcowFs.Native;
using QcowFs.Storage;
using Xunit;

namespace QcowFs.Testing;

/// <summary>
/// A disk as an array of bytes, with for each sector of 512 bytes the values it may have. The promise: what was acknowledged
/// before a sync began is there after it; every other sector is old or new, that is, has one of the values that it had since.
/// <para>
/// A running disk must hold the one current value (<see cref="CheckLive"/>), a disk after a crash and recovery any allowed one
/// (<see cref="CheckAfterCrash"/>, or <see cref="Adopt"/> to go on with what it holds). Call the model before the disk, so that a
/// crash in the middle finds both values allowed. Where the disk's call then fails, or may overlap with reads, call the Maybe form
/// first and the certain form once it succeeded.
/// </para>
/// <para>Thread-safe.</para>
/// </summary>
public sealed class DiskModel
{
    public const int SectorSize = 512;

    private readonly Lock _lock = new();
    private readonly Dictionary<long, Sector> _sectors = []; // those with more than one value to them
    private readonly List<(long Operation, long Length)> _lengths = []; // the last one is current
    private byte[] _current; // whole sectors; zero past the length
    private bool _sharesCurrent; // with a copy: it is copied before the first change
    private long _operations;

    /// <summary>A disk of zeros.</summary>
    public DiskModel(long length)
    {
        _current = new byte[RoundUp(length)];
        _lengths.Add((0, length));
    }

    /// <summary>A disk with this content, durable.</summary>
    public DiskModel(ReadOnlySpan<byte> content)
        : this((long)content.Length) => content.CopyTo(_current);

    private DiskModel(DiskModel other)
    {
        _current = other._current;
        _sharesCurrent = other._sharesCurrent = true;
        _lengths.AddRange(other._lengths);
        _operations = other._operations;
        foreach ((long number, Sector sector) in other._sectors)
            _sectors.Add(number, sector.Clone());
    }

    /// <summary>Current length in bytes.</summary>
    public long Length
    {
        get
        {
            lock (_lock)
                return _lengths[^1].Length;
        }
    }

    /// <summary>The current content; of a sector in doubt the value without the doubtful change.</summary>
    public byte[] Current
    {
        get
        {
            lock (_lock)
                return _current.AsSpan(0, (int)_lengths[^1].Length).ToArray();
        }
    }

    /// <summary>The moment now, for <see cref="Sync(long)"/>: taken before a sync begins.</summary>
    public long Mark
    {
        get
        {
            lock (_lock)
                return _operations;
        }
    }

    /// <summary>An independent copy.</summary>
    public DiskModel Clone()
    {
        lock (_lock)
            return new DiskModel(this);
    }

    /// <summary>The disk takes this write.</summary>
    public void Write(long offset, ReadOnlySpan<byte> source) => Change(offset, source.Length, source, isCertain: true);

    /// <summary>The disk takes this write or, for each sector, does not.</summary>
    public void MaybeWrite(long offset, ReadOnlySpan<byte> source) => Change(offset, source.Length, source, isCertain: false);

    /// <summary>The range becomes zero: by zeroing or by discard.</summary>
    public void Zero(long offset, long length) => Change(offset, (int)length, default, isCertain: true);

    /// <summary>The range becomes zero or, for each sector, does not.</summary>
    public void MaybeZero(long offset, long length) => Change(offset, (int)length, default, isCertain: false);

    /// <summary>The disk gets another length; new bytes are zero.</summary>
    public void SetLength(long length)
    {
        lock (_lock)
        {
            long old = _lengths[^1].Length;
            if (length < old)
                Change(length, (int)(old - length), default, isCertain: true);
            else if (RoundUp(length) > _current.Length)
                Array.Resize(ref _current, (int)RoundUp(length));
            _lengths.Add((++_operations, length));
        }
    }

    /// <summary>A sync has returned: all that was acknowledged so far is durable.</summary>
    public void Sync() => Sync(Mark);

    /// <summary>A sync has returned that began at <paramref name="mark"/>.</summary>
    public void Sync(long mark)
    {
        lock (_lock)
        {
            foreach ((long number, Sector sector) in _sectors)
            {
                if (sector.Sync(mark))
                    _sectors.Remove(number);
            }
            int last = _lengths.FindLastIndex(length => length.Operation <= mark);
            if (last > 0)
                _lengths.RemoveRange(0, last);
        }
    }

    /// <summary>Fails the test unless the disk holds the current content.</summary>
    public void CheckLive(IStorage disk)
    {
        lock (_lock)
        {
            if (disk.Length != _lengths[^1].Length)
                Assert.Fail($"The disk is {disk.Length} bytes long instead of {_lengths[^1].Length}.");
            Check(disk, afterCrash: false);
        }
    }

    /// <summary>Fails the test unless the disk holds what it may hold after a crash.</summary>
    public void CheckAfterCrash(IStorage disk)
    {
        lock (_lock)
        {
            if (_lengths.TrueForAll(length => length.Length != disk.Length))
                Assert.Fail($"After the crash the disk is {disk.Length} bytes long, which it never was since the last sync.");
            Check(disk, afterCrash: true);
        }
    }

    /// <summary>As <see cref="CheckAfterCrash"/>, and what the disk holds is from now on the one durable content.</summary>
    public void Adopt(IStorage disk)
    {
        CheckAfterCrash(disk);
        lock (_lock)
        {
            long length = disk.Length;
            _current = new byte[RoundUp(length)];
            _sharesCurrent = false;
            disk.Read(0, _current.AsSpan(0, (int)length));
            _sectors.Clear();
            _lengths.Clear();
            _lengths.Add((_operations, length));
        }
    }

    private void Change(long offset, int length, ReadOnlySpan<byte> source, bool isCertain)
    {
        lock (_lock)
        {
            Assert.True(offset + length <= _lengths[^1].Length, "The test writes past the end of its model.");
            _operations++;
            if (_sharesCurrent)
                _current = (byte[])_current.Clone();
            _sharesCurrent = false;
            for (long at = offset; at < offset + length;)
            {
                long number = at / SectorSize;
                int from = (int)(at % SectorSize);
                int count = (int)Math.Min(SectorSize - from, offset + length - at);
                ReadOnlySpan<byte> piece = source.IsEmpty ? default : source.Slice((int)(at - offset), count);
                if (!_sectors.TryGetValue(number, out Sector? sector))
                    _sectors.Add(number, sector = new Sector(CurrentSector(number)));
                sector.Change(_operations, from, count, piece, isCertain);
                sector.First.CopyTo(CurrentSector(number));
                at += count;
            }
        }
    }

    private Span<byte> CurrentSector(long number) => _current.AsSpan((int)number * SectorSize, SectorSize);

    private void Check(IStorage disk, bool afterCrash)
    {
        long length = Math.Min(disk.Length, _current.Length);
        byte[] rented = ArrayPool<byte>.Shared.Rent((int)RoundUp(length));
        try
        {
            Span<byte> buffer = rented.AsSpan(0, (int)RoundUp(length));
            buffer[(int)length..].Clear();
            disk.Read(0, buffer[..(int)length]);
            Check(buffer, length, afterCrash);
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(rented);
        }
    }

    private void Check(ReadOnlySpan<byte> buffer, long length, bool afterCrash)
    {
        // Where nothing is in doubt, one comparison does.
        if (_sectors.Count == 0 && length == _lengths[^1].Length && buffer.SequenceEqual(_current.AsSpan(0, buffer.Length)))
            return;
        for (long number = 0; number * SectorSize < length; number++)
        {
            ReadOnlySpan<byte> found = buffer.Slice((int)number * SectorSize, SectorSize);
            // The last sector of a file that came out shorter is judged where it is whole.
            bool isCut = (number + 1) * SectorSize > length && length != _lengths[^1].Length;
            if (isCut || found.SequenceEqual(CurrentSector(number)))
                continue;
            if (!_sectors.TryGetValue(number, out Sector? sector))
                Assert.Fail(Describe(number, found, CurrentSector(number), "and nothing else is allowed"));
            else if (!sector.Allows(found, afterCrash))
                Assert.Fail(Describe(number, found, CurrentSector(number), sector.Describe(afterCrash)));
        }
    }

    private static string Describe(long number, ReadOnlySpan<byte> found, ReadOnlySpan<byte> expected, string allowed)
    {
        int at = found.CommonPrefixLength(expected);
        return $"Sector {number} (byte {number * SectorSize}) holds {Hex(found, at)} at its byte {at}, the current value is "
            + $"{Hex(expected, at)}, {allowed}.";
    }

    private static string Hex(ReadOnlySpan<byte> sector, int at) =>
        sector.ContainsAnyExcept((byte)0) ? Convert.ToHexString(sector.Slice(at, Math.Min(8, SectorSize - at))) : "only zeros";

    private static long RoundUp(long length) => (length + SectorSize - 1) / SectorSize * SectorSize;

    /// <summary>The values of one sector: those it may have now, and the hashes of those it may fall back to.</summary>
    private sealed class Sector
    {
        private readonly List<(long Operation, UInt128 Hash)> _earlier;
        private List<byte[]> _now;
        private long _operation;

        public Sector(ReadOnlySpan<byte> content)
        {
            _earlier = [];
            _now = [content.ToArray()];
        }

        private Sector(Sector other)
        {
            _earlier = [.. other._earlier];
            _now = other._now; // never changed in place
            _operation = other._operation;
        }

        /// <summary>The value that is there if no doubtful change was made.</summary>
        public byte[] First => _now[0];

        public Sector Clone() => new(this);

        public void Change(long operation, int from, int count, ReadOnlySpan<byte> source, bool isCertain)
        {
            List<byte[]> next = isCertain ? [] : [.. _now];
            foreach (byte[] value in _now)
            {
                _earlier.Add((_operation, XxHash.Hash128(value)));
                byte[] changed = (byte[])value.Clone();
                if (source.IsEmpty)
                    changed.AsSpan(from, count).Clear();
                else
                    source.CopyTo(changed.AsSpan(from));
                if (!next.Exists(other => other.AsSpan().SequenceEqual(changed)))
                    next.Add(changed);
            }
            _now = next;
            _operation = operation;
        }

        /// <summary>Forgets what the sync made impossible. Gives whether one value is left.</summary>
        public bool Sync(long mark)
        {
            long durable = _operation <= mark ? long.MaxValue : _earlier.FindLast(value => value.Operation <= mark).Operation;
            _earlier.RemoveAll(value => value.Operation < durable);
            return _earlier.Count == 0 && _now.Count == 1;
        }

        public bool Allows(ReadOnlySpan<byte> found, bool afterCrash)
        {
            foreach (byte[] value in _now)
            {
                if (found.SequenceEqual(value))
                    return true;
            }
            UInt128 hash = XxHash.Hash128(found);
            return afterCrash && _earlier.Exists(value => value.Hash == hash);
        }

        public string Describe(bool afterCrash) =>
            $"and {(afterCrash ? _earlier.Count : 0) + _now.Count - 1} others are allowed (last changed by operation {_operation})";
    }
}
