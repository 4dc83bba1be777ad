// The vocabulary of the simulated disk: kinds of calls, what was called, what is unsynced.
using System.Numerics;
using QcowFs.Native;

namespace QcowFs.Testing;

/// <summary>Kinds of calls on a storage, combinable where a fault or a count is about several.</summary>
[Flags]
public enum StorageCalls
{
    None = 0,
    Read = 1,
    Write = 2,
    WriteZeroes = 4,
    Discard = 8,
    Reserve = 16,
    SetLength = 32,
    Sync = 64,
    /// <summary>Everything that changes the storage.</summary>
    Changes = Write | WriteZeroes | Discard | Reserve | SetLength,
    Any = Read | Changes | Sync,
}

/// <summary>What a call that fails on purpose has done before it failed.</summary>
public enum FaultEffect
{
    /// <summary>Nothing.</summary>
    None,
    /// <summary>Of a write or zeroing the first half of its sectors, as after a short transfer; of others nothing.</summary>
    Half,
    /// <summary>All, and only the answer was lost.</summary>
    Whole,
}

/// <summary>One call as the log keeps it and as the hook sees it.</summary>
/// <param name="Sequence">The disk's clock: it ticks for changes and syncs, and a read carries the tick of the call before it.</param>
/// <param name="Storage">Name of the storage.</param>
/// <param name="Kind">The one kind.</param>
/// <param name="Offset">Bytes; 0 for Sync; the new length for SetLength.</param>
/// <param name="Length">Bytes; 0 for Sync and SetLength.</param>
public readonly record struct StorageCall(long Sequence, string Storage, StorageCalls Kind, long Offset, long Length)
{
    public override string ToString() => $"#{Sequence} {Storage} {Kind} {Offset}+{Length}";
}

/// <summary>A change that no sync of its storage has made durable yet.</summary>
/// <param name="Index">Place in <see cref="SimulatedDisk.Pending"/>, in order of time over all storages.</param>
/// <param name="Sequence">The disk's clock when it was made.</param>
/// <param name="Storage">Name of the storage.</param>
/// <param name="Kind">The one kind.</param>
/// <param name="FirstSector">First sector with a new version.</param>
/// <param name="SectorCount">Sectors with a new version; 0 where only the length changed.</param>
/// <param name="NewLength">The length after it where it changed the length, else null.</param>
public readonly record struct PendingChange(
    int Index, long Sequence, string Storage, StorageCalls Kind, long FirstSector, int SectorCount, long? NewLength)
{
    public override string ToString() =>
        $"#{Sequence} {Storage} {Kind} sectors {FirstSector}+{SectorCount}{(NewLength is { } length ? $" length {length}" : "")}";
}

/// <summary>The simulated machine is off: every call throws this from the chosen moment on. Not a <see cref="Storage.StorageException"/>,
/// so that no error handling of the code under test takes it for a fault to be handled.</summary>
public sealed class SimulatedCrashException(long sequence) : Exception($"Simulated crash before call #{sequence}.")
{
    public long Sequence { get; } = sequence;
}

/// <summary>One planned fault.</summary>
internal sealed class PlannedFault
{
    public required StorageCalls Kinds { get; init; }
    public required Errno Errno { get; init; }
    public required string? Storage { get; init; }
    public required FaultEffect Effect { get; init; }
    public long CallsBefore { get; set; }
    public long Times { get; set; }

    public bool Strikes(StorageCalls kind, string storage)
    {
        if ((Kinds & kind) == StorageCalls.None || (Storage != null && Storage != storage) || Times == 0)
            return false;
        if (CallsBefore > 0)
        {
            CallsBefore--;
            return false;
        }
        Times--;
        return true;
    }
}

/// <summary>How many calls of each kind there were.</summary>
internal sealed class CallCounts
{
    private readonly long[] _counts = new long[8];

    public void Add(StorageCalls kind) => _counts[BitOperations.Log2((uint)kind)]++;

    public long Count(StorageCalls kinds) =>
        Enumerable.Range(0, _counts.Length).Where(bit => (((int)kinds >> bit) & 1) != 0).Sum(bit => _counts[bit]);
}
