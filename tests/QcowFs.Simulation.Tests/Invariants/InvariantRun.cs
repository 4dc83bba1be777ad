// One long seeded run of operations on one image, judged after every step and before every change of the file by SpecView:
// V1. Each host cluster has one role, in memory and on disk; within one disk nothing is referred to twice.
// V2. In memory a count is the number of references plus the removals that wait for their commit; on disk it is never below the
//     references there.
// V3. COPIED is set exactly where one reference is counted, and on disk never where there are two. Where the run takes flags away, as a
//     crash may have left it, they may be missing.
// V4. What the allocator has free is referred to by nothing, on disk or in memory, is counted zero, reads as zeros where it says so,
//     and no cluster is lost.
// V5. A change of a structure's cluster writes what memory holds of that structure, and nothing else.
// V6. A change of guest data hits a cluster that this disk alone refers to, or sectors that no committed stream names. What is referred to on disk only is not changed (I3).
// V7. The header's cluster changes in its first sector, in the refcount table's place and the auto-clear bits, nowhere else.
// V8. A clean cached page is what the file holds.
// V9. The guest reads what the model holds; so do the snapshots.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Images.Qcow2;
using QcowFs.Storage;

namespace QcowFs.Simulation.Tests.Invariants;

internal sealed class InvariantException(string message, Exception? inner = null) : Exception(message, inner);

internal sealed class InvariantRun : IDisposable
{
    private readonly Geometry _geometry;
    private readonly PreparedImage _prepared;
    private readonly ulong _seed;
    private readonly Random _random;
    private readonly WatchedFile _file;
    private readonly WatchedFile? _data;
    private readonly MemoryView _memory;
    private readonly SpecView _inMemory = new();
    private readonly SpecView _onDisk = new();
    private readonly byte[] _model;
    private readonly byte[] _backing;
    private readonly byte[] _read;
    private readonly Dictionary<string, byte[]> _snapshots = [];
    private int[] _removals = [];
    private bool[] _free = [];
    private CowImage? _image;
    private int _step;
    private int _names;
    private ulong _print;
    private long _diskLength;
    private bool _diskChanged;

    public InvariantRun(Geometry geometry, ulong seed)
    {
        _geometry = geometry;
        _prepared = SimulatedImages.Prepare(geometry);
        _seed = seed;
        _random = new Random(unchecked((int)seed));
        _file = new WatchedFile("image", _prepared.File);
        _data = _prepared.Data is null ? null : new WatchedFile("data", _prepared.Data);
        _memory = new MemoryView(_file);
        _model = [.. _prepared.Guest];
        _read = new byte[_model.Length];
        _backing = _prepared.Backing is null ? [] : _prepared.Guest;
        if (geometry.Content == InitialContent.Snapshot)
            _snapshots.Add("before", [.. _model]);
    }

    /// <summary>How much of the disk is written before the first step.</summary>
    public int Prefilled { get; init; }

    /// <summary>Pages of metadata that the image keeps.</summary>
    public int CachePages { get; init; } = 2;

    /// <summary>Whether COPIED flags vanish between sessions, which costs copies and nothing else.</summary>
    public bool LosesFlags { get; init; }

    private Qcow2State State => ((Qcow2BlockMap)_image!.Map).State;

    private bool CanCrash => !_geometry.Options.Contains("0.10", StringComparison.Ordinal);

    private bool CanSnapshot => _data is null && _backing.Length == 0 && !_geometry.Options.Contains("refcount_bits=1,", StringComparison.Ordinal)
        && !_geometry.Options.EndsWith("refcount_bits=1", StringComparison.Ordinal);

    /// <summary>The image's bytes at the end.</summary>
    public byte[] File => _file.Content;

    /// <summary>The external data file's bytes at the end.</summary>
    public byte[]? Data => _data?.Content;

    /// <summary>What the guest's disk holds.</summary>
    public byte[] Model => _model;

    /// <summary>Runs so many steps and closes the image.</summary>
    public void Run(int steps)
    {
        try
        {
            Open();
            if (Prefilled > 0)
                Fill();
            for (_step = 1; _step <= steps; _step++)
            {
                Step();
                Judge();
            }

            Close();
        }
        catch (Exception exception)
        {
            throw new InvariantException($"{_geometry} seed {_seed} step {_step}: {exception.Message}", exception);
        }
    }

    public void Dispose()
    {
        _image?.Dispose();
        _file.Dispose();
        _data?.Dispose();
    }

    private void Step()
    {
        switch (_random.Next(1000))
        {
            case < 450:
                Change(_random.Next(5) == 0 ? OperationKind.WriteZeroes : OperationKind.Write, zeros: _random.Next(8) == 0);
                break;
            case < 650:
                Change(OperationKind.Discard, zeros: true);
                break;
            case < 750:
                Change(OperationKind.WriteZeroes, zeros: true);
                break;
            case < 800:
                Change(OperationKind.Reserve, zeros: false);
                break;
            case < 970:
                _image!.Sync();
                break;
            case < 985:
                Close();
                if (LosesFlags)
                    LoseFlags();
                Open();
                break;
            case < 990 when CanCrash:
                Crash();
                break;
            case < 998 when CanSnapshot:
                Close();
                EditSnapshots();
                Open();
                break;
            default:
                MeetFullHost();
                break;
        }
    }

    private void Change(OperationKind kind, bool zeros)
    {
        // Mostly a few clusters, now and then a good part of the disk.
        int length = _random.Next(12) == 0 ? _random.Next(1, _model.Length / 2) : _random.Next(1, 2500);
        int offset = _random.Next(0, _model.Length - length);
        if (_random.Next(2) == 0)
            (offset, length) = (offset & ~511, Math.Max(512, length & ~511));
        byte[] bytes = new byte[length];
        if (!zeros)
            FillBytes(bytes);
        switch (kind)
        {
            case OperationKind.Write:
                _image!.Write(offset, bytes);
                break;
            case OperationKind.WriteZeroes:
                _image!.WriteZeroes(offset, length);
                bytes.AsSpan().Clear();
                break;
            case OperationKind.Discard:
                _image!.Discard(offset, length);
                break;
            default:
                _image!.Reserve(offset, length);
                return;
        }

        bytes.CopyTo(_model, offset);
    }

    // Half of it can be compressed.
    private void FillBytes(Span<byte> bytes)
    {
        if (!_geometry.Compress || _random.Next(2) == 0)
        {
            _random.NextBytes(bytes);
            return;
        }

        for (int i = 0; i < bytes.Length; i += 64)
            bytes[i..Math.Min(i + 64, bytes.Length)].Fill((byte)_random.Next(256));
    }

    private void Fill()
    {
        _file.Watch = null;
        _random.NextBytes(_model.AsSpan(0, Prefilled));
        _image!.Write(0, _model.AsSpan(0, Prefilled));
        Close();
        Open();
    }

    /// <summary>The process dies and the next one gives back what it leaked.</summary>
    private void Crash()
    {
        _file.Watch = null;
        _image!.Dispose();
        if (_random.Next(4) != 0)
            CutReservedSpace();
        Open();
        if (_image!.Map.Recovery is LeakCollector collector)
            _image.Recover(commit => collector.Run(commit, windowClusters: 1 + _random.Next(64)));

        // A process that dies loses no write, but what it had not committed.
        _image.Read(0, _model);
        _image.Sync();
    }

    // What was reserved and not used: whether it is still there after a crash is the host's choice.
    private void CutReservedSpace()
    {
        _onDisk.Load(_file);
        int end = _onDisk.Clusters;
        while (_onDisk.Counts[end - 1] == 0 && _onDisk.References[end - 1] == 0)
            end--;
        _file.SetLength((long)end * _onDisk.ClusterSize);
    }

    /// <summary>A write for which there is not space enough: each sector is as before or as after.</summary>
    private void MeetFullHost()
    {
        if (_random.Next(2) == 0)
            _file.ReservationsLeft = _random.Next(2);
        else
            _file.WritesLeft = _random.Next(6);
        int length = _random.Next(1, _model.Length / 2);
        int offset = _random.Next(0, _model.Length - length);
        byte[] bytes = new byte[length];
        FillBytes(bytes);
        try
        {
            _image!.Write(offset, bytes);
            bytes.CopyTo(_model, offset);
        }
        catch (StorageException full) when (full.IsOutOfSpace)
        {
            _image!.Read(0, _read);
            for (int i = 0; i < _model.Length; i++)
            {
                bool isNew = i >= offset && i < offset + length && _read[i] == bytes[i - offset];
                Require(_read[i] == _model[i] || isNew, $"V9: byte {i} is neither old nor new after a full host");
            }

            _read.CopyTo(_model, 0);
        }
        finally
        {
            _file.ReservationsLeft = int.MaxValue;
            _file.WritesLeft = int.MaxValue;
        }
    }

    private void LoseFlags()
    {
        foreach (long at in _onDisk.FlagsAt)
        {
            if (_random.Next(3) != 0)
                continue;
            byte[] first = new byte[1];
            _file.Read(at, first);
            first[0] &= 0x7F;
            _file.Write(at, first);
        }
    }

    private void EditSnapshots()
    {
        string[] names = [.. _snapshots.Keys.Order(StringComparer.Ordinal)];
        Qcow2SnapshotEdit edit = new(Qcow2HeaderReader.Read(_file), _file);
        try
        {
            if (names.Length < 2 || (names.Length < 4 && _random.Next(2) == 0))
            {
                string name = $"s{_names++}";
                edit.Create(name, DateTimeOffset.UnixEpoch);
                _snapshots.Add(name, [.. _model]);
            }
            else if (_random.Next(2) == 0)
            {
                string name = names[_random.Next(names.Length)];
                edit.Apply(name);
                _snapshots[name].CopyTo(_model, 0);
            }
            else
            {
                string name = names[_random.Next(names.Length)];
                edit.Delete(name);
                _snapshots.Remove(name);
            }
        }
        catch (ImageFormatException refused) when (refused.Message.Contains("bits can count", StringComparison.Ordinal))
        {
            // Narrow counts: nothing has changed.
        }

        JudgeClosed();
    }

    private void Open()
    {
        IDiskImage? backing = _prepared.Backing is null ? null : SimulatedImages.OpenBacking(_prepared.Backing);
        OpenOptions options = new()
        {
            Writable = true,
            Compress = _geometry.Compress,
            CommitInterval = TimeSpan.Zero,
            BackgroundRecovery = false,
            CacheSize = CachePages * Math.Min(4096, Qcow2HeaderReader.Read(_file).ClusterSize),
        };
        _image = (CowImage)Qcow2Image.Open(new Qcow2Parts(Qcow2HeaderReader.Read(_file), _file, _data, backing, options));
        _file.Watch = JudgeChange;
        _print = 0;
        _diskChanged = true;
    }

    private void Close()
    {
        _image!.Close();
        _file.Watch = null;
        _image = null;
        JudgeClosed();
    }

    /// <summary>Nobody has the image open: no leak, no flag missing, all disks as they should be.</summary>
    private void JudgeClosed()
    {
        _onDisk.Load(_file);
        Require(_onDisk.Problem is null, $"V1 closed: {_onDisk.Problem}");
        for (int cluster = 0; cluster < _onDisk.Clusters; cluster++)
        {
            Require(_onDisk.Counts[cluster] == (ulong)_onDisk.References[cluster],
                $"V2 closed: cluster {cluster} ({_onDisk.Roles[cluster]}) is counted {_onDisk.Counts[cluster]}, referred to {_onDisk.References[cluster]} times");
            RequireFlag(_onDisk, cluster, _onDisk.Counts[cluster]);
        }

        Require(_onDisk.Snapshots.Count == _snapshots.Count, "V9: a snapshot is gone or too many");
        foreach ((string name, long l1, int size, long bytes) in _onDisk.Snapshots)
        {
            byte[] content = new byte[bytes];
            _onDisk.ReadGuest(l1, size, content, []);
            Require(content.AsSpan().SequenceEqual(_snapshots[name]), $"V9: snapshot {name} changed");
        }

        SoilFreeClusters();
        if (_data is null)
            Require(_onDisk.ReadActive(_backing).AsSpan().SequenceEqual(_model), "V9 closed: the disk differs from the model");
    }

    // What is free may hold anything: the next session must not take it for zeros.
    private void SoilFreeClusters()
    {
        byte[] dirt = new byte[_onDisk.ClusterSize];
        for (int cluster = 0; cluster < _onDisk.Clusters; cluster++)
        {
            if (_onDisk.Counts[cluster] != 0)
                continue;
            _random.NextBytes(dirt);
            _file.Write((long)cluster * dirt.Length, dirt);
        }
    }

    private void Judge()
    {
        LoadViews();
        Require(_inMemory.Problem is null, $"V1 in memory: {_inMemory.Problem}");
        Require(_onDisk.Problem is null, $"V1 on disk: {_onDisk.Problem}");
        JudgeCounts();
        JudgeFree();
        foreach (MetadataPage page in State.Cache.Pages)
        {
            if (page.Unwritten != Unwritten.Nothing)
                continue;
            Span<byte> bytes = _read.AsSpan(0, page.Bytes.Length);
            _file.Read(page.Offset, bytes);
            Require(bytes.SequenceEqual(page.Bytes), $"V8: the clean page at byte {page.Offset} differs from the file");
        }

        _image!.Read(0, _read);
        Require(_read.AsSpan().SequenceEqual(_model), $"V9: the guest reads something else at byte {_read.AsSpan().CommonPrefixLength(_model)}");
    }

    private void JudgeCounts()
    {
        Grow(_inMemory.Clusters);
        Array.Clear(_removals);
        foreach (Removal removal in State.Removals)
        {
            for (long cluster = removal.Offset / _inMemory.ClusterSize; cluster < (removal.Offset + removal.Length) / _inMemory.ClusterSize; cluster++)
                _removals[cluster]++;
        }

        for (int cluster = 0; cluster < _inMemory.Clusters; cluster++)
        {
            int references = _inMemory.References[cluster];
            ulong count = _inMemory.Counts[cluster];
            if (count != (ulong)(references + _removals[cluster]))
                Fail($"V2: cluster {cluster} ({_inMemory.Roles[cluster]}) is counted {count}, with {references} references and {_removals[cluster]} removals");
            if (_onDisk.Counts[cluster] < (ulong)_onDisk.References[cluster])
                Fail($"V2: on disk cluster {cluster} ({_onDisk.Roles[cluster]}) is counted {_onDisk.Counts[cluster]}, with {_onDisk.References[cluster]} references");
            RequireFlag(_inMemory, cluster, count);
            if (_onDisk.CopiedFlags[cluster] == true && _onDisk.References[cluster] > 1)
                Fail($"V3: on disk cluster {cluster} has {_onDisk.References[cluster]} references and COPIED");
        }
    }

    // A removal that waits keeps the count above one, and the flag where it is: nothing is written in place meanwhile that matters.
    private void RequireFlag(SpecView view, int cluster, ulong count)
    {
        if (view.CopiedFlags[cluster] is { } copied && copied != (view.References[cluster] == 1) && (copied || (count == 1 && !LosesFlags)))
            Fail($"V3: cluster {cluster} has {view.References[cluster]} references, a count of {count}, and COPIED {copied}");
    }

    private void JudgeFree()
    {
        HostAllocator allocator = State.Allocator!;
        Array.Clear(_free);
        foreach (ClusterRun run in allocator.FreeRuns)
        {
            Require(run.End <= allocator.Tail, $"V4: the free run at {run.First} reaches past the tail");
            for (long cluster = run.First; cluster < run.End; cluster++)
            {
                if (_free[cluster])
                    Fail($"V4: cluster {cluster} is free twice");
                _free[cluster] = true;
                if (_inMemory.IsReferred(cluster) || _onDisk.IsReferred(cluster) || (cluster < _inMemory.Clusters && _inMemory.Counts[cluster] != 0))
                    Fail($"V4: cluster {cluster} ({_inMemory.Roles[cluster]}, on disk {_onDisk.Roles[cluster]}) is free and in use");
            }

            if (run.ReadsAsZero)
                Require(_file.IsZero(run.First * _inMemory.ClusterSize, run.Count * _inMemory.ClusterSize), $"V4: the free run at {run.First} is not zero");
        }

        // What compressed clusters have in hand is neither free nor counted.
        if (State.CompressedSpace is { } space)
        {
            for (long cluster = (space.InHand.First + _inMemory.ClusterSize - 1) / _inMemory.ClusterSize; cluster < space.InHand.End / _inMemory.ClusterSize; cluster++)
                _free[cluster] = true;
        }

        (long first, long end) = allocator.NotScanned;
        for (long cluster = 0; cluster < Math.Min(allocator.Tail, _inMemory.Clusters); cluster++)
        {
            if (_inMemory.Counts[cluster] != 0)
                continue;
            bool ahead = cluster >= first && cluster < end;
            if (ahead == _free[cluster])
                Fail($"V4: cluster {cluster} is {(ahead ? "free before it was found" : "lost")}");
        }
    }

    // Only what has changed since the last look is looked at again: the disk's view follows from its structures alone.
    private void LoadViews()
    {
        ulong print = MemoryView.Fingerprint(State, _file.Length);
        if (print != _print)
        {
            _print = print;
            _memory.Take(State);
            _inMemory.Load(_memory);
        }

        if (_diskChanged || _file.Length != _diskLength)
        {
            _diskLength = _file.Length;
            _diskChanged = false;
            _onDisk.Load(_file);
        }

        Grow(Math.Max(_inMemory.Clusters, (int)State.Allocator!.Tail));
    }

    private void JudgeChange(FileChange change)
    {
        if (change.Length == 0)
            return;
        LoadViews();
        int size = _inMemory.ClusterSize;
        long end = change.Offset + change.Length;
        if (change.Offset < size)
        {
            JudgeHeader(change);
            _diskChanged = true;
        }

        for (long cluster = Math.Max(1, change.Offset / size); cluster * size < end; cluster++)
        {
            if (_inMemory.IsMetadata(cluster) || _onDisk.IsMetadata(cluster))
            {
                JudgeStructure(change, cluster, size);
                _diskChanged = true;
            }
            else if (_inMemory.IsReferred(cluster) || _onDisk.IsReferred(cluster))
                JudgeData(change, cluster);
        }
    }

    private void JudgeStructure(FileChange change, long cluster, int size)
    {
        string what = $"V5: {change.Kind} of {change.Length} bytes at {change.Offset} hits cluster {cluster}, {_inMemory.Roles[cluster]} in memory, {_onDisk.Roles[cluster]} on disk";
        if (change.Kind != ChangeKind.Write)
            Fail(what);
        long from = Math.Max(change.Offset, cluster * size);
        int length = (int)(Math.Min(change.Offset + change.Length, (cluster + 1) * size) - from);
        Span<byte> held = stackalloc byte[length];
        _memory.Read(from, held);
        if (!held.SequenceEqual(change.Bytes.Slice((int)(from - change.Offset), length)))
            Fail($"{what}, with other bytes than memory holds");
    }

    private void JudgeData(FileChange change, long cluster)
    {
        if (change.Kind == ChangeKind.Write && _inMemory.Roles[cluster] == Role.Data && _inMemory.References[cluster] == 1
            && _inMemory.CopiedFlags[cluster] == true)
        {
            return;
        }

        // Streams that are packed together share clusters, never a sector of a committed one.
        if (change.Kind == ChangeKind.Write && _geometry.Compress && (_inMemory.Roles[cluster] is Role.Compressed or Role.Nothing)
            && (!_onDisk.IsReferred(cluster) || _onDisk.Roles[cluster] == Role.Compressed))
        {
            long start = change.Offset;
            long end = start + change.Length;
            if (!_onDisk.Streams.Exists(stream => stream.Start < end && stream.End > start))
                return;
        }

        Fail($"V6: {change.Kind} of {change.Length} bytes at {change.Offset} hits cluster {cluster}, {_inMemory.Roles[cluster]} with "
            + $"{_inMemory.References[cluster]} references in memory, {_onDisk.Roles[cluster]} with {_onDisk.References[cluster]} on disk");
    }

    private void JudgeHeader(FileChange change)
    {
        Require(change is { Kind: ChangeKind.Write, Offset: 0, Length: 512 }, $"V7: {change.Kind} of {change.Length} bytes at {change.Offset} hits the header");
        Span<byte> now = stackalloc byte[512];
        _file.Read(0, now);
        for (int i = 0; i < now.Length; i++)
            Require(now[i] == change.Bytes[i] || i is (>= 48 and < 60) or (>= 88 and < 96), $"V7: byte {i} of the header changes");
    }

    private void Grow(int clusters)
    {
        if (_removals.Length >= clusters)
            return;
        _removals = new int[clusters * 2];
        _free = new bool[clusters * 2];
    }

    private static void Require(bool condition, string otherwise)
    {
        if (!condition)
            Fail(otherwise);
    }

    private static void Fail(string problem) => throw new InvariantException(problem);
}
