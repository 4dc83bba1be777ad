// Deduplication of writes: whole blocks are hashed on the writing thread, looked up together, and share the place of an equal block
// where one is found.
//
// E1. Nothing is shared on the word of the index: under the range locks of both blocks the owner's mapping is looked at and the bytes are
//     compared.
// E2. The owner's lock is taken only if it is free (busy: a miss), so no order between the locks of blocks arises.
// E3. Hashing and index access happen without any lock of the image. Whatever the index says or fails to say, the write goes on.
// E4. A block that becomes the owner of an index entry has been written, and its mapping published, before the entry is made.
using System.Buffers;
using System.Collections.Concurrent;
using QcowFs.Images.Dedup;
using QcowFs.Storage;

namespace QcowFs.Images.Engine;

/// <content>Sharing of equal blocks.</content>
internal sealed partial class CowImage
{
    // Freed blocks are read once more to take their hashes out of the index, as long as a commit frees no more than this.
    private const long ReadBackLimit = 8 << 20;

    private readonly AttachedIndex? _attached;
    private readonly RepeatRule _repeats = new();
    private readonly ConcurrentBag<WritePlan> _plans = [];
    private readonly Lock _sweeping = new(); // held by a sweep, so that the close comes after it
    private bool _sweepsEnded; // guarded by _sweeping
    private long _readBack;
    private long _changedAtTimer;

    private DedupIndex? Index => _attached?.Index;

    private int BlockSize => 1 << _blockBits;

    /// <summary>Takes an index into use. Called by the constructor.</summary>
    private AttachedIndex? Attach(AttachedIndex? attached)
    {
        if (attached is null || _map.Sharing is not { } sharing)
            return null;
        DedupIndex index = attached.Index;
        Statistics.Dedup = new DedupStatistics
        {
            Paused = () => index.Paused,
            IndexEntries = () => index.Entries,
            IndexMemory = () => index.Memory,
        };
        sharing.Freed = ForgetFreed;
        return attached;
    }

    /// <summary>Writes the whole blocks of a range with deduplication and the rest without. False, with nothing written, where there is no
    /// whole block or no index.</summary>
    private bool TryWriteDeduplicated(long offset, ReadOnlySpan<byte> source)
    {
        int head = (int)(-offset & _blockMask);
        int blocks = source.Length < head ? 0 : (source.Length - head) >> _blockBits;
        if (Index is not { Paused: null } || blocks == 0)
            return false;
        if (head > 0)
            WritePlain(offset, source[..head]);
        int whole = blocks << _blockBits;
        WriteBlocks(offset + head, source.Slice(head, whole));
        if (head + whole < source.Length)
            WritePlain(offset + head + whole, source[(head + whole)..]);
        return true;
    }

    private void WriteBlocks(long offset, ReadOnlySpan<byte> source)
    {
        if (!_plans.TryTake(out WritePlan? plan))
            plan = new WritePlan(this);
        plan.Begin(offset >> _blockBits, source.Length >> _blockBits);
        Hash(plan, source);
        Allocating(offset, source.Length, source, plan.Step);
        Settle(plan);
        _plans.Add(plan);
    }

    /// <summary>E3: hashes what is worth it and asks the index, for all blocks at once.</summary>
    private void Hash(WritePlan plan, ReadOnlySpan<byte> source)
    {
        for (int i = 0; i < plan.Count; i++)
        {
            ReadOnlySpan<byte> block = source.Slice(i << _blockBits, BlockSize);
            plan.Slots[i] = -1;
            if (!_repeats.Wants(block))
                plan.Bypassed++;
            else if (block.ContainsAnyExcept((byte)0)) // zeros need no block at all
                plan.AddHash(i, Index!.HashOf(block));
        }

        if (plan.Hashed > 0)
            Index!.Find(plan.Hashes.AsSpan(0, plan.Hashed), plan.Found);
    }

    /// <summary>Under the exclusive range lock: shares what is there already, writes the rest in runs. False: a commit must come first.</summary>
    private bool WritePlanned(WritePlan plan, long offset, ReadOnlySpan<byte> source)
    {
        plan.BeginWriting();
        int written = 0;
        for (int i = 0; i < plan.Count; i++)
        {
            ReadOnlySpan<byte> block = source.Slice(i << _blockBits, BlockSize);
            bool shared = false;
            if (plan.Slots[i] is >= 0 and int slot)
            {
                if (plan.Found[slot] is { } entry)
                    shared = TryShare(plan, i, block, entry);
                if (!shared && plan.TwinOf(i) is >= 0 and int twin && block.SequenceEqual(source.Slice(twin << _blockBits, BlockSize)))
                {
                    if (!WriteRun(plan, offset, source, written, i))
                        return false;
                    written = i;
                    shared = TryShareTwin(plan, twin, i);
                }
            }

            if (!shared)
                continue;
            if (!WriteRun(plan, offset, source, written, i))
                return false;
            written = i + 1;
        }

        return WriteRun(plan, offset, source, written, plan.Count);
    }

    private bool WriteRun(WritePlan plan, long offset, ReadOnlySpan<byte> source, int first, int end)
    {
        if (first == end)
            return true;
        if (!WriteExclusive(offset + ((long)first << _blockBits), source[(first << _blockBits)..(end << _blockBits)]))
            return false;
        for (int i = first; i < end; i++)
        {
            if (plan.Slots[i] is >= 0 and int slot && HostBlockOf(plan.FirstBlock + i) is >= 0 and long host)
                plan.Written[slot] = host;
        }

        return true;
    }

    /// <summary>E1, E2: shares the place of the block that the index names, if all is as it says.</summary>
    private bool TryShare(WritePlan plan, int i, ReadOnlySpan<byte> bytes, in IndexEntry entry)
    {
        long block = plan.FirstBlock + i;
        DedupStatistics statistics = Statistics.Dedup!;
        if (entry.Guest > (Length >> _blockBits) - 1)
            return plan.Drop(entry, statistics.AddStale);
        if (entry.Guest != block)
        {
            // A block of this very write is locked by us already; its bytes are about to change.
            if (entry.Guest >= plan.FirstBlock && entry.Guest < plan.FirstBlock + plan.Count)
                return Busy(statistics);
            if (!_ranges.TryEnter(entry.Guest, entry.Guest + 1, exclusive: true, out RangeGate.Ticket ticket))
                return Busy(statistics);
            using (ticket)
                return TryShareLocked(plan, block, bytes, entry);
        }

        return TryShareLocked(plan, block, bytes, entry);
    }

    private bool TryShareLocked(WritePlan plan, long block, ReadOnlySpan<byte> bytes, in IndexEntry entry)
    {
        DedupStatistics statistics = Statistics.Dedup!;
        if (HostBlockOf(entry.Guest) != entry.Host || !HoldsBytes(entry.Host, bytes))
            return plan.Drop(entry, statistics.AddStale);
        if (HostBlockOf(block) == entry.Host)
        {
            statistics.AddUnchanged();
            plan.Hits++;
            return true;
        }

        if (!_map.Sharing!.TryShare(block << _blockBits, entry.Guest << _blockBits, entry.Host << _blockBits))
            return plan.Drop(entry, statistics.AddFull);
        NoteShared(plan);
        return true;
    }

    /// <summary>Shares the place of an equal block that was written earlier in the same step. Both are locked.</summary>
    private bool TryShareTwin(WritePlan plan, int twin, int i)
    {
        long host = HostBlockOf(plan.FirstBlock + twin);
        if (host < 0 || !_map.Sharing!.TryShare((plan.FirstBlock + i) << _blockBits, (plan.FirstBlock + twin) << _blockBits, host << _blockBits))
            return false;
        NoteShared(plan);
        return true;
    }

    private void NoteShared(WritePlan plan)
    {
        _dataDirty = true; // I1: the owner's bytes may not be durable yet
        plan.Hits++;
        plan.Shared++;
        Statistics.AddShared(BlockSize);
        Statistics.Dedup!.AddShared();
    }

    private static bool Busy(DedupStatistics statistics)
    {
        statistics.AddBusy();
        return false;
    }

    /// <summary>The host block that holds all of a guest block as plain data, or -1.</summary>
    private long HostBlockOf(long block)
    {
        Extent extent = _map.Lookup(block << _blockBits, BlockSize);
        return extent.Kind == ExtentKind.Data && extent.Length == BlockSize && (extent.Host & _blockMask) == 0 ? extent.Host >> _blockBits : -1;
    }

    private bool HoldsBytes(long hostBlock, ReadOnlySpan<byte> bytes)
    {
        byte[] buffer = ArrayPool<byte>.Shared.Rent(bytes.Length);
        try
        {
            _data.Read(hostBlock << _blockBits, buffer.AsSpan(0, bytes.Length));
            return bytes.SequenceEqual(buffer.AsSpan(0, bytes.Length));
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <summary>E4: after the step, without locks, tells the index and the counters what happened.</summary>
    private void Settle(WritePlan plan)
    {
        DedupStatistics statistics = Statistics.Dedup!;
        foreach (IndexEntry dropped in plan.Dropped)
            Index!.Remove(dropped);
        for (int i = 0; i < plan.Count; i++)
        {
            if (plan.Slots[i] is >= 0 and int slot && plan.Written[slot] >= 0)
                Index!.Insert(new IndexEntry(plan.Hashes[slot], plan.FirstBlock + i, plan.Written[slot]));
        }

        statistics.AddHashed(plan.Hashed);
        statistics.AddBypassed(plan.Bypassed);
        Index!.Count(plan.Hashed, plan.Hits, (long)plan.Shared << _blockBits);
        _repeats.Note(plan.Hashed, plan.Hits);
        statistics.IsBypassing = _repeats.IsSampling;
    }

    /// <summary>Takes the hashes of blocks that are about to be freed out of the index, where reading them is cheap.</summary>
    private void ForgetFreed(long offset, long length)
    {
        if (Index is not { Paused: null } index)
            return;
        byte[] buffer = ArrayPool<byte>.Shared.Rent(BlockSize);
        try
        {
            for (long at = offset; at < offset + length && (_readBack += BlockSize) <= ReadBackLimit; at += BlockSize)
            {
                _data.Read(at, buffer.AsSpan(0, BlockSize));
                index.Remove(new IndexEntry(index.HashOf(buffer.AsSpan(0, BlockSize)), 0, at >> _blockBits));
            }
        }
        catch (StorageException exception)
        {
            _log?.Invoke($"{exception.Message}; the hashes of freed blocks stay in the index");
            _readBack = ReadBackLimit;
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <summary>Returns when no sweep of the timer runs, and none begins any more.</summary>
    private void EndIdleSweeps()
    {
        lock (_sweeping)
            _sweepsEnded = true;
    }

    /// <summary>Gives mappings that are alone again their right to be written in place, and makes that durable.</summary>
    private void SweepAndCommit()
    {
        if (_map.Sharing is not { NeedsSweep: true } sharing)
            return;
        lock (_sweeping)
        {
            BeginChange();
            CommitAll();
            sharing.Sweep(_commits.Run, static () => false);
            CommitAll();
        }
    }

    /// <summary>On the commit timer: sweeps where nothing was changed since it last fired, and stops as soon as something is.</summary>
    private void SweepWhenIdle()
    {
        if (_attached is null || _map.Sharing is not { NeedsSweep: true } sharing)
            return;
        lock (_sweeping)
        {
            long changed = BytesChanged;
            if (!_sweepsEnded && _inUse && changed == _changedAtTimer)
            {
                sharing.Sweep(_commits.Run, () => _closed || BytesChanged != changed);
                _commits.Run();
            }

            _changedAtTimer = changed;
        }

        if (!_closed && sharing.NeedsSweep)
            ArmCommitTimer();
    }

    private long BytesChanged => Statistics.BytesWritten + Statistics.BytesDiscarded;

    /// <summary>A commit may leave lowered counts for the next one (I3); each has less to do than the one before.</summary>
    private void CommitAll()
    {
        do
            _commits.Run();
        while (_map.IsDirty);
    }

    /// <summary>Writes what the index holds in memory, for tests that want it on disk before the data.</summary>
    internal void FlushIndexEarly() => Index?.NoteScan(0);

    /// <summary>Puts an entry into the index that need not be true, for tests.</summary>
    internal void LieToIndex(ReadOnlySpan<byte> block, long guest, long host) => Index!.Insert(new IndexEntry(Index.HashOf(block), guest, host));

    /// <summary>Before the end of use: index and table bits durable, else no mark.</summary>
    private void SealIndex()
    {
        if (_map.Sharing is { } sharing && Index is { } index)
            sharing.LeavesMark = index.TryFlush(sharing.Tables);
    }

    /// <summary>What is known about one write, and room for it: one for each write under way, reused.</summary>
    private sealed class WritePlan
    {
        private readonly short[] _twins = new short[StepBlocks * 2]; // open addressing over the blocks of this write by hash

        public WritePlan(CowImage image) => Step = (_, offset, source) => image.WritePlanned(this, offset, source);

        public ExclusiveStep Step { get; }

        public long FirstBlock { get; private set; }

        public int Count { get; private set; }

        /// <summary>For each block the place of its hash, or -1.</summary>
        public int[] Slots { get; } = new int[StepBlocks];

        public UInt128[] Hashes { get; } = new UInt128[StepBlocks];

        public IndexEntry?[] Found { get; } = new IndexEntry?[StepBlocks];

        /// <summary>For each hash the host block that was written, or -1.</summary>
        public long[] Written { get; } = new long[StepBlocks];

        public List<IndexEntry> Dropped { get; } = [];

        public int Hashed { get; private set; }

        public int Bypassed { get; set; }

        public int Hits { get; set; }

        public int Shared { get; set; }

        public void Begin(long firstBlock, int count)
        {
            FirstBlock = firstBlock;
            Count = count;
            Hashed = 0;
            Bypassed = 0;
            Shared = 0;
        }

        public void AddHash(int block, UInt128 hash)
        {
            Slots[block] = Hashed;
            Hashes[Hashed++] = hash;
        }

        /// <summary>A step may run twice; what the first run found counts no more. What it shared stays shared: the second run finds that
        /// unchanged.</summary>
        public void BeginWriting()
        {
            Array.Fill(Written, -1, 0, Hashed);
            Array.Fill(_twins, (short)-1);
            Dropped.Clear();
            Hits = 0;
        }

        /// <summary>An earlier block of this write with the same hash, or -1. The first one is remembered.</summary>
        public int TwinOf(int block)
        {
            UInt128 hash = Hashes[Slots[block]];
            for (int at = (int)((ulong)(hash >> 64) % (ulong)_twins.Length); ; at = (at + 1) % _twins.Length)
            {
                if (_twins[at] < 0)
                {
                    _twins[at] = (short)block;
                    return -1;
                }

                if (Hashes[Slots[_twins[at]]] == hash)
                    return _twins[at];
            }
        }

        /// <summary>Notes an entry that is of no use, and gives false.</summary>
        public bool Drop(in IndexEntry entry, Action count)
        {
            count();
            Dropped.Add(entry);
            return false;
        }
    }
}
