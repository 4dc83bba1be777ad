// The device model that referees crash safety: several storages that lose power together, under one plan of faults.
//   S1. A change (write, zeroing, discard, reservation, length) is unsynced until a Sync of that storage, begun after it, returns.
//   S2. A sector of 512 bytes reaches the medium whole or not at all. Sectors get there in any order, those of one change too.
//   S3. A sector changed more than once since the sync may hold any of its versions, the synced one included. A version is the
//       whole sector as it was after a change.
//   S4. After a crash the length is any that the file had since the sync. Bytes past it are gone; were it longer, they are zero.
//       Cutting a file is a change to zero of the sectors cut off.
//   S5. A killed process loses its memory and nothing else: all changes are there, and still unsynced.
//   S6. The running system reads its own changes, synced or not.
//   S7. A failed sync makes nothing durable, may have brought any part to the medium, and is final for that open storage.
// Not modelled: names (a created storage is there), sectors that go bad, writes that go astray.
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Testing;

/// <summary>
/// A machine's disk with named storages, one clock and one plan of faults. Deterministic. Thread-safe: calls of all its storages
/// take one lock. As <see cref="IHostFiles"/> it opens its storages by name; it knows no locks of images.
/// </summary>
public sealed class SimulatedDisk : IHostFiles
{
    /// <summary>The longest a storage may be; beyond it EFBIG.</summary>
    public const long LargestLength = 256L << 20;

    private readonly Dictionary<string, SimulatedFile> _files = []; // guarded by Gate, as all below
    private readonly List<PlannedFault> _faults = [];
    private readonly List<StorageCall> _calls = [];
    private long _crashAt = long.MaxValue;
    private bool _isOff;

    internal Lock Gate { get; } = new();

    /// <summary>Ticks once for each change or sync that was called, so far.</summary>
    public long Clock { get; private set; }

    /// <summary>Another one after every power failure.</summary>
    public UInt128 BootId { get; private init; } = 1;

    /// <summary>Space in bytes for all storages, in blocks of 4096. What does not fit is ENOSPC, after as much as fits. May be
    /// changed at any time.</summary>
    public long SpaceLimit { get; set; } = long.MaxValue;

    /// <summary>Space in use, in bytes.</summary>
    public long UsedSpace
    {
        get
        {
            lock (Gate)
                return _files.Values.Sum(file => (long)file.AllocatedBlocks) * SimulatedFile.HostBlockSize;
        }
    }

    /// <summary>Whether calls are kept in <see cref="Calls"/>. Counting is always on.</summary>
    public bool KeepsCalls { get; set; }

    /// <summary>The calls in order of time, if kept. Calls that failed are among them.</summary>
    public IReadOnlyList<StorageCall> Calls
    {
        get
        {
            lock (Gate)
                return [.. _calls];
        }
    }

    /// <summary>Is told of each call before it takes effect and before its fault strikes, on the caller's thread and outside the
    /// lock. It may look at the disk, crash copies of it, block, or throw. The sequence is what the call will get if no other
    /// thread comes first.</summary>
    public Action<StorageCall>? BeforeCall { get; set; }

    /// <summary>The unsynced changes of all storages in order of time.</summary>
    public IReadOnlyList<PendingChange> Pending
    {
        get
        {
            lock (Gate)
                return DescribePending();
        }
    }

    /// <summary>Names of the storages.</summary>
    public IReadOnlyList<string> Names
    {
        get
        {
            lock (Gate)
                return [.. _files.Keys];
        }
    }

    /// <summary>Makes a storage, empty or of zeros, durable from the start.</summary>
    public SimulatedStorage Create(string name, long length = 0) => Add(name, file => file.SetLength(0, length));

    /// <summary>Makes a storage with this content, durable from the start.</summary>
    public SimulatedStorage Create(string name, byte[] content) => Add(name, file =>
    {
        long free = long.MaxValue;
        file.Write(0, 0, content);
        _ = file.Allocate(0, content.Length, ref free);
    });

    /// <summary>Opens a storage; ENOENT where there is none of that name.</summary>
    public SimulatedStorage Open(string name, bool readOnly = false)
    {
        lock (Gate)
        {
            RequireOn();
            return _files.TryGetValue(name, out SimulatedFile? file)
                ? new SimulatedStorage(this, file, readOnly)
                : throw new StorageException(Errno.ENOENT, "open", name);
        }
    }

    IStorage IHostFiles.Open(string path, HostAccess access, bool directIo) =>
        access == HostAccess.Create ? Create(path) : Open(path, readOnly: access != HostAccess.Write);

    IStorage IHostFiles.OpenBeneath(string directory, string relativePath, HostAccess access, bool directIo) =>
        ((IHostFiles)this).Open(directory == "." ? relativePath : Path.Join(directory, relativePath), access, directIo);

    long? IHostFiles.TryGetLength(string directory, string relativePath)
    {
        string name = directory == "." ? relativePath : Path.Join(directory, relativePath);
        lock (Gate)
            return _files.TryGetValue(name, out SimulatedFile? file) ? file.Length : null;
    }

    // Names are not modelled: a created storage is there.
    void IHostFiles.SyncName(string path) => RequireOn();

    void IHostFiles.Delete(string path)
    {
        lock (Gate)
            _files.Remove(path);
    }

    /// <summary>The content of a storage as the running system sees it, without a call being counted.</summary>
    public byte[] Content(string name)
    {
        lock (Gate)
            return _files[name].Content;
    }

    /// <summary>The content of a storage that its last sync left on the medium.</summary>
    public byte[] DurableContent(string name)
    {
        lock (Gate)
            return _files[name].Durable;
    }

    /// <summary>Number of calls of these kinds so far, of one storage or of all. Calls that failed count.</summary>
    public long Count(StorageCalls kinds, string? storage = null)
    {
        lock (Gate)
            return _files.Values.Where(file => storage == null || file.Name == storage).Sum(file => file.Calls.Count(kinds));
    }

    /// <summary>Plans a fault: of the calls of these kinds from now on, the <paramref name="nth"/> and as many as
    /// <paramref name="times"/> says fail.</summary>
    public void Fail(
        StorageCalls kinds,
        Errno errno,
        long nth = 1,
        long times = 1,
        string? storage = null,
        FaultEffect effect = FaultEffect.None)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(nth, 1);
        lock (Gate)
        {
            _faults.Add(new PlannedFault
            {
                Kinds = kinds,
                Errno = errno,
                Storage = storage,
                Effect = effect,
                CallsBefore = nth - 1,
                Times = times,
            });
        }
    }

    /// <summary>Drops the faults planned so far.</summary>
    public void ClearFaults()
    {
        lock (Gate)
            _faults.Clear();
    }

    /// <summary>Turns the machine off when the clock is to tick to <paramref name="sequence"/>: that call and every later one, reads
    /// too, throws <see cref="SimulatedCrashException"/> and does nothing.</summary>
    public void CrashAt(long sequence)
    {
        lock (Gate)
            _crashAt = sequence;
    }

    /// <summary>Turns the machine off now.</summary>
    public void TurnOff()
    {
        lock (Gate)
            _isOff = true;
    }

    /// <summary>The disk after a power failure at this moment, running again, no faults planned. This disk stays as it is.</summary>
    public SimulatedDisk Crash(CrashChoice choice)
    {
        lock (Gate)
            return Crash(choice, DescribePending());
    }

    /// <summary>The disk after the process was killed at this moment (S5): all changes there, and unsynced.</summary>
    public SimulatedDisk Kill()
    {
        lock (Gate)
        {
            // The clock goes on, so that old changes stay older than new ones.
            var disk = new SimulatedDisk { SpaceLimit = SpaceLimit, Clock = Clock, BootId = BootId };
            foreach (SimulatedFile file in _files.Values)
                disk._files.Add(file.Name, file.Clone());
            return disk;
        }
    }

    /// <summary>
    /// Disks that a crash at this moment may leave, no two alike, at most <paramref name="limit"/>: the process kill; nothing; all
    /// prefixes; all subsets of up to six changes, beyond that each change alone and each alone missing; the storages apart; torn
    /// changes; then random parts by change and by sector. Where the limit is lower than that, a part chosen by the seed.
    /// </summary>
    public IEnumerable<(CrashChoice Choice, SimulatedDisk Disk)> EnumerateCrashes(int limit, ulong seed)
    {
        // Who enumerates may go on using this disk and what was given out.
        SimulatedDisk frozen = Kill();
        IReadOnlyList<PendingChange> pending = frozen.Pending;
        var seen = new HashSet<UInt128> { frozen.Fingerprint() };
        yield return (CrashChoice.ProcessKill, frozen.Kill());
        if (pending.Count == 0)
            yield break;
        foreach (CrashChoice choice in CrashEnumeration.Choices(pending, limit, seed))
        {
            if (seen.Count >= limit)
                yield break;
            SimulatedDisk disk = frozen.Crash(choice, pending);
            if (seen.Add(disk.Fingerprint()))
                yield return (choice, disk);
        }
    }

    /// <summary>A hash of all names and contents: equal disks have equal fingerprints.</summary>
    public UInt128 Fingerprint()
    {
        lock (Gate)
        {
            UInt128 sum = 0;
            foreach (SimulatedFile file in _files.Values)
            {
                ulong name = unchecked((ulong)XxHash.Hash128(System.Text.Encoding.UTF8.GetBytes(file.Name)));
                sum ^= file.Fingerprint(name);
            }
            return sum;
        }
    }

    internal static long WholeBlocks(long length) =>
        (length + SimulatedFile.HostBlockSize - 1) / SimulatedFile.HostBlockSize * SimulatedFile.HostBlockSize;

    /// <summary>Tells the hook of a call to come.</summary>
    internal StorageCall Announce(StorageCall call)
    {
        if (BeforeCall is { } hook)
        {
            long next;
            lock (Gate)
                next = call.Kind == StorageCalls.Read ? Clock : Clock + 1;
            hook(call with { Sequence = next });
        }
        return call;
    }

    /// <summary>Ticks, logs and counts a call, ends it if the machine is off, and gives the fault planned for it. Under the lock.</summary>
    internal PlannedFault? Strike(SimulatedFile file, ref StorageCall call)
    {
        bool ticks = call.Kind != StorageCalls.Read;
        if (ticks && Clock + 1 >= _crashAt)
            _isOff = true;
        RequireOn();
        if (ticks)
            Clock++;
        call = call with { Sequence = Clock };
        if (KeepsCalls)
            _calls.Add(call);
        file.Calls.Add(call.Kind);
        foreach (PlannedFault fault in _faults)
        {
            if (fault.Strikes(call.Kind, call.Storage))
                return fault;
        }
        return null;
    }

    /// <summary>Allocates space for a range. Gives where the part ends that there is space for. Under the lock.</summary>
    internal long Allocate(SimulatedFile file, long offset, long end, out bool isFull)
    {
        long free = SpaceLimit == long.MaxValue ? long.MaxValue : (SpaceLimit - UsedSpace) / SimulatedFile.HostBlockSize;
        long reached = file.Allocate(offset, end, ref free);
        isFull = reached < end;
        return reached;
    }

    private SimulatedStorage Add(string name, Action<SimulatedFile> fill)
    {
        lock (Gate)
        {
            RequireOn();
            if (_files.ContainsKey(name))
                throw new StorageException(Errno.EEXIST, "open", name);
            var file = new SimulatedFile(name);
            fill(file);
            file.Sync();
            _files.Add(name, file);
            return new SimulatedStorage(this, file, isReadOnly: false);
        }
    }

    private void RequireOn()
    {
        if (_isOff)
            throw new SimulatedCrashException(Clock + 1);
    }

    private SimulatedDisk Crash(CrashChoice choice, IReadOnlyList<PendingChange> pending)
    {
        var disk = new SimulatedDisk { SpaceLimit = SpaceLimit, BootId = BootId + 1 };
        foreach (SimulatedFile file in _files.Values)
        {
            // The descriptions of a file's changes stand in the common list in the same order.
            int next = -1;
            disk._files.Add(file.Name, file.Crash(choice, _ =>
            {
                do
                {
                    next++;
                }
                while (pending[next].Storage != file.Name);
                return pending[next];
            }));
        }
        return disk;
    }

    private List<PendingChange> DescribePending()
    {
        IEnumerable<PendingChange> changes = _files.Values
            .SelectMany(file => file.Pending.Select(change =>
                new PendingChange(0, change.Sequence, file.Name, change.Kind, change.FirstSector, change.SectorCount, change.NewLength)))
            .OrderBy(change => change.Sequence);
        return [.. changes.Select((change, index) => change with { Index = index })];
    }
}
