// An open storage of a simulated disk.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Testing;

/// <summary>
/// A storage of a <see cref="SimulatedDisk"/>, as a process has it open. Like a file's, its content outlives it, and a failed
/// <see cref="Sync"/> makes all later ones fail. After <see cref="Dispose"/> every use is a bug and throws
/// <see cref="ObjectDisposedException"/>.
/// </summary>
public sealed class SimulatedStorage : IIdentifiedStorage
{
    private readonly SimulatedFile _file;
    private Errno _syncFailure; // guarded by the disk's lock
    private volatile bool _disposed;

    internal SimulatedStorage(SimulatedDisk disk, SimulatedFile file, bool isReadOnly)
    {
        Disk = disk;
        _file = file;
        IsReadOnly = isReadOnly;
    }

    public SimulatedDisk Disk { get; }

    public string Name => _file.Name;

    public bool IsReadOnly { get; }

    /// <summary>A machine that was off and on again has another boot id.</summary>
    public StorageIdentity Identity => new(Disk.BootId, 1, unchecked((ulong)Name.GetHashCode(StringComparison.Ordinal)));

    public long Length
    {
        get
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            lock (Disk.Gate)
                return _file.Length;
        }
    }

    public void Read(long offset, Span<byte> destination)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        StorageCall call = Begin(StorageCalls.Read, offset, destination.Length);
        lock (Disk.Gate)
        {
            if (Disk.Strike(_file, ref call) is { } fault)
                throw Failure(fault.Errno, call);
            _file.Read(offset, destination);
        }
    }

    public void Write(long offset, ReadOnlySpan<byte> source)
    {
        StorageCall call = BeginChange(StorageCalls.Write, offset, source.Length);
        lock (Disk.Gate)
        {
            PlannedFault? fault = Disk.Strike(_file, ref call);
            long stop = Stop(fault, offset, offset + source.Length);
            long end = Disk.Allocate(_file, offset, stop, out bool isFull);
            _file.Write(call.Sequence, offset, source[..(int)(end - offset)]);
            Finish(fault, isFull, call);
        }
    }

    public void WriteZeroes(long offset, long length)
    {
        StorageCall call = BeginChange(StorageCalls.WriteZeroes, offset, length);
        lock (Disk.Gate)
        {
            PlannedFault? fault = Disk.Strike(_file, ref call);
            long stop = Stop(fault, offset, offset + length);
            long end = Disk.Allocate(_file, offset, stop, out bool isFull);
            _file.Zero(call.Sequence, StorageCalls.WriteZeroes, offset, end);
            Finish(fault, isFull, call);
        }
    }

    public void Discard(long offset, long length)
    {
        StorageCall call = BeginChange(StorageCalls.Discard, offset, length);
        lock (Disk.Gate)
        {
            PlannedFault? fault = Disk.Strike(_file, ref call);
            long end = Math.Min(Stop(fault, offset, offset + length), _file.Length);
            _file.Zero(call.Sequence, StorageCalls.Discard, offset, end);
            // The block that holds the end of the file is free when all of the file in it is.
            _file.FreeWholeBlocks(offset, end == _file.Length ? SimulatedDisk.WholeBlocks(end) : end);
            Finish(fault, isFull: false, call);
        }
    }

    public void Reserve(long offset, long length)
    {
        StorageCall call = BeginChange(StorageCalls.Reserve, offset, length);
        lock (Disk.Gate)
        {
            PlannedFault? fault = Disk.Strike(_file, ref call);
            bool isFull = false;
            if (length > 0 && fault is null or { Effect: FaultEffect.Whole })
            {
                _ = Disk.Allocate(_file, offset, offset + length, out isFull);
                if (!isFull)
                    _file.ExtendOnly(call.Sequence, StorageCalls.Reserve, offset + length);
            }
            Finish(fault, isFull, call);
        }
    }

    public void SetLength(long length)
    {
        StorageCall call = BeginChange(StorageCalls.SetLength, length, 0);
        lock (Disk.Gate)
        {
            PlannedFault? fault = Disk.Strike(_file, ref call);
            if (fault is null or { Effect: FaultEffect.Whole })
                _file.SetLength(call.Sequence, length);
            Finish(fault, isFull: false, call);
        }
    }

    public void Sync()
    {
        StorageCall call = Begin(StorageCalls.Sync, 0, 0);
        lock (Disk.Gate)
        {
            PlannedFault? fault = Disk.Strike(_file, ref call);
            if (fault != null && _syncFailure == Errno.None)
                _syncFailure = fault.Errno;
            if (_syncFailure != Errno.None)
                throw new StorageException(_syncFailure, "sync", Name);
            _file.Sync();
        }
    }

    public void Dispose() => _disposed = true;

    // What is before the lock is what the disk does not need to see: bugs of the caller, and the hook.
    private StorageCall Begin(StorageCalls kind, long offset, long length)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        return Disk.Announce(new StorageCall(0, Name, kind, offset, length));
    }

    private StorageCall BeginChange(StorageCalls kind, long offset, long length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        StorageCall call = Begin(kind, offset, length);
        if (IsReadOnly)
            throw Failure(Errno.EROFS, call);
        if (kind != StorageCalls.Discard && offset > SimulatedDisk.LargestLength - length)
            throw Failure(Errno.EFBIG, call);
        return call;
    }

    private static long Stop(PlannedFault? fault, long offset, long end) => fault?.Effect switch
    {
        null or FaultEffect.Whole => end,
        FaultEffect.None => offset,
        _ => Math.Clamp((offset + (end - offset) / 2) / SimulatedFile.SectorSize * SimulatedFile.SectorSize, offset, end),
    };

    private static void Finish(PlannedFault? fault, bool isFull, StorageCall call)
    {
        if (fault != null)
            throw Failure(fault.Errno, call);
        if (isFull)
            throw Failure(Errno.ENOSPC, call);
    }

    private static StorageException Failure(Errno errno, StorageCall call) =>
        new(errno, call.Kind.ToString(), call.Storage, call.Offset, call.Length);
}
