// Proof that the suite can fail: for each invariant at least one defect, planted in the real sources, that a test catches.
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests.Mutations;

public sealed class MutationTests(ITestOutputHelper output)
{
    private const string Commit = "Qcow2/Qcow2Commit.cs";

    private static readonly Mutation[] Ordering =
    [
        new Mutation(
            "I1 a mapping is written before its data is synced",
            Commit,
            "if (counts > 0 || relocated || frozen.FileDirty || (dataDirty && !separateData))\n            state.File.Sync();",
            "",
            nameof(Probes.Crash)),
        new Mutation(
            "I1 the external data file is not synced",
            Commit,
            "if (separateData && dataDirty)\n            state.Data.Sync();",
            "",
            nameof(Probes.CrashOfExternalData)),
        new Mutation(
            "I1 the refcount table is linked without a sync",
            Commit,
            "state.File.Sync();\n            _headerTableOffset",
            "_headerTableOffset",
            nameof(Probes.CrashOfNewCountBlocks)),
        new Mutation(
            "I2 raised counts go with the links",
            "Qcow2/Refcounts.cs",
            "_cache.BeginChange(page, CommitStage.Counts);\n        try",
            "_cache.BeginChange(page, CommitStage.Links);\n        try",
            nameof(Probes.Crash)),
        new Mutation(
            "I3 references are given up before the removal is durable",
            Commit,
            "        // Stage 2.\n",
            "        GiveUp(frozen.Removals);\n",
            nameof(Probes.CrashOfCompressed)),
        new Mutation(
            "I3 a block is free before it is punched",
            Commit,
            "        List<ClusterRun> unused = _references.FindLast(page, first, end);\n        if (removal.Kind == RemovalKind.Data)\n            state.Shared.TellFreed(unused, _clusterBits);\n        unused = unused.ConvertAll(Punch);\n",
            """
                    List<ClusterRun> unused = _references.FindLast(page, first, end);
                    lock (_cache.Gate)
                    {
                        foreach (ClusterRun run in unused)
                        {
                            _cache.BeginChange(page, CommitStage.Counts);
                            for (long freed = run.First; freed < run.End; freed++)
                                counts.Set(page, freed, 0);
                            page.EndChange();
                            state.Allocator!.Free(run);
                        }
                    }

                    foreach (ClusterRun run in unused)
                        state.File.Discard(run.First << _clusterBits, run.Count << _clusterBits);
                    if (unused.Count > 0)
                        return removal with { Length = 0 };

            """,
            nameof(Probes.FreedBlock)),
    ];

    private static readonly Mutation[] SyncsAndData =
    [
        new Mutation(
            "I4 the last sync of a commit is missing",
            Commit,
            "if (links > 0 || frozen.L1Pieces.Count > 0)\n            state.File.Sync();",
            "",
            nameof(Probes.Crash)),
        new Mutation(
            "I4 a sync shares a commit that began before it",
            "Engine/GroupCommit.cs",
            "long needed = _started + 1;",
            "long needed = Math.Max(1, _started);",
            nameof(Probes.LateSync)),
        new Mutation(
            "I4 a sync does not wait for the commit that carries its data",
            "Engine/CowImage.cs",
            "if (IsDirty || _commits.IsRunning || IsDirty)",
            "if (IsDirty)",
            nameof(Probes.EarlySync)),
        new Mutation(
            "I5 a partial write leaves the head of its block as it was",
            "Engine/CowImage.Write.cs",
            "bool headNeeded = head > 0 &&",
            "bool headNeeded = head < 0 &&",
            nameof(Probes.Model)),
        new Mutation(
            "I6 a commit does not wait for readers",
            Commit,
            "state.Epoch.Synchronize(); // I6",
            "",
            nameof(Probes.Reader)),
        new Mutation(
            "I7 a write error does not latch the image",
            "Engine/LatchedStorage.cs",
            "if (!exception.IsOutOfSpace)",
            "if (exception.IsOutOfSpace && false)",
            nameof(Probes.Errors)),
        new Mutation(
            "I7 a commit that met a full host forgets its pages",
            Commit,
            "_cache.Thaw(frozen.Pages, written);",
            "_cache.Thaw(frozen.Pages, true);",
            nameof(Probes.FullHost)),
    ];

    private static readonly Mutation[] SessionsAndSharing =
    [
        new Mutation(
            "I8 an image is trusted without a sync",
            "Qcow2/Qcow2Image.cs",
            "given.File.Sync();\n",
            "\n",
            nameof(Probes.Crash)),
        new Mutation(
            "I9 the in-use mark is not durable before the first change",
            Commit,
            "WriteHeaderField(Qcow2HeaderLayout.AutoclearFeaturesAt, (ulong)features);\n        state.File.Sync();",
            "WriteHeaderField(Qcow2HeaderLayout.AutoclearFeaturesAt, (ulong)features);",
            nameof(Probes.Crash)),
        new Mutation(
            "I10 unknown auto-clear bits stay",
            Commit,
            "WriteAutoclear(KeptAutoclear | AutoclearFeatures.InUse);",
            "WriteAutoclear(state.Header.AutoclearFeatures | AutoclearFeatures.InUse);",
            nameof(Probes.Autoclear)),
        new Mutation(
            "I11 a cluster shared with a snapshot is written in place",
            "Qcow2/Qcow2BlockMap.cs",
            "extent = new Extent(kind, 0, kind == ExtentKind.Data ? host - covered : -1, kind == ExtentKind.Data && entry.Copied);\n            }\n            else if (kind != extent.Kind\n                || (kind == ExtentKind.Data && (host != extent.Host + covered || entry.Copied != extent.Writable)))\n            {\n                break;\n            }\n        }",
            "extent = new Extent(kind, 0, kind == ExtentKind.Data ? host - covered : -1, kind == ExtentKind.Data);\n            }\n            else if (kind != extent.Kind\n                || (kind == ExtentKind.Data && (host != extent.Host + covered)))\n            {\n                break;\n            }\n        }",
            nameof(Probes.Model)),
        new Mutation(
            "I11 an L2 table shared with a snapshot is changed",
            "Qcow2/Qcow2Space.cs",
            "return entry.IsAllocated && entry.Copied;",
            "return entry.IsAllocated;",
            nameof(Probes.Model)),
        new Mutation(
            "M4 an overwritten block is never given up",
            "Qcow2/Qcow2BlockMap.Change.cs",
            "_state.Remove(new Removal(old.Entry.HostOffset.Value, _clusterMask + 1, RemovalKind.Data));",
            "",
            nameof(Probes.Model)),
        new Mutation(
            "A3 the tail ignores counts past the end of the file",
            "Qcow2/HostAllocator.cs",
            "long end = _source.EndOfReferences(_tail);",
            "long end = _tail;",
            nameof(Probes.Crash)),
    ];

    private static readonly Mutation[] SpaceAndCache =
    [
        new Mutation(
            "A1 what is left of a free run begins with what was handed out",
            "Qcow2/HostAllocator.cs",
            "Add(run with { First = run.First + wanted, Count = run.Count - wanted });",
            "Add(run with { First = run.First + wanted - 1, Count = run.Count - wanted });",
            nameof(Probes.Invariants)),
        new Mutation(
            "A1 a cluster freed ahead of the scan is found again by it",
            "Qcow2/HostAllocator.cs",
            "if (run.First < _scanned)\n                Insert(run with { Count = Math.Min(run.End, _scanned) - run.First });",
            "if (run.First < _scanLimit)\n                Insert(run with { Count = Math.Min(run.End, _scanLimit) - run.First });",
            nameof(Probes.Invariants)),
        new Mutation(
            "A1 a reservation that was given up is lost",
            "Qcow2/Qcow2BlockMap.Change.cs",
            "Allocator.Free(new ClusterRun(at.HostCluster, at.Count, ReadsAsZero: false));",
            "Allocator.Free(new ClusterRun(at.HostCluster, at.Count - 1, ReadsAsZero: false));",
            nameof(Probes.Invariants)),
        new Mutation(
            "A2 free clusters from before are taken for zeros",
            "Qcow2/Refcounts.cs",
            "runs.Add(new ClusterRun(cluster, 1, ReadsAsZero: false));",
            "runs.Add(new ClusterRun(cluster, 1, ReadsAsZero: true));",
            nameof(Probes.Invariants)),
        new Mutation(
            "I2 a compressed stream gives up only its first cluster",
            "Qcow2/Qcow2BlockMap.Change.cs",
            "_state.Remove(new Removal(from, ((end + _clusterMask) & ~_clusterMask) - from, RemovalKind.Compressed));",
            "_state.Remove(new Removal(from, _clusterMask + 1, RemovalKind.Compressed));",
            nameof(Probes.Invariants)),
        new Mutation(
            "I3 a shared block is punched",
            "Qcow2/ReferenceRelease.cs",
            "if (count != 1)\n                    continue;",
            "if (count is 0 or > 2)\n                    continue;",
            nameof(Probes.Invariants)),
        new Mutation(
            "I3 pages of a freed table stay in the cache",
            Commit,
            "_cache.Drop(run.First << _clusterBits, run.Count << _clusterBits);",
            "{ }",
            nameof(Probes.Invariants)),
        new Mutation(
            "A4 the end of use cuts a cluster that is in use",
            "Qcow2/Qcow2Commit.cs",
            "long end = state.Allocator!.UsedEnd() << _clusterBits;",
            "long end = (state.Allocator!.UsedEnd() - 1) << _clusterBits;",
            nameof(Probes.Invariants)),
        new Mutation(
            "P3 a dirty page is given to another offset",
            "Metadata/MetadataCache.cs",
            "if (page.Unwritten != Unwritten.Nothing || page.Loading || page.Pins > 0)",
            "if (page.Loading || page.Pins > 0)",
            nameof(Probes.Invariants)),
        new Mutation(
            "narrow counts spill into their neighbours",
            "Qcow2/RefcountEncoding.cs",
            "packed = (byte)((packed & ~mask) | ((int)count << shift));",
            "packed = (byte)(packed | ((int)count << shift));",
            nameof(Probes.Invariants)),
    ];

    private static readonly Mutation[] Compression =
    [
        new Mutation(
            "K1 a stream begins in a committed sector",
            "Qcow2/CompressedSpace.cs",
            "_next = (_next + SectorSize - 1) & -SectorSize;",
            "",
            nameof(Probes.CommittedSector)),
        new Mutation(
            "K1 a commit freezes while a stream is under way",
            Commit,
            "state.CompressedSpace?.WithoutStreams(Freeze) ?? Freeze()",
            "Freeze()",
            nameof(Probes.StreamUnderWay)),
        new Mutation(
            "K2 a stream counts in its first host cluster only",
            "Qcow2/CompressedSpace.cs",
            "for (int i = 0; i < count; i++)",
            "for (int i = 0; i < 1; i++)",
            nameof(Probes.ModelOfCompressing)),
        new Mutation(
            "K2 an abandoned stream stays counted",
            "Qcow2/Qcow2BlockMap.Change.cs",
            "RemoveStream(reservation.Host, reservation.Host + reservation.Length);",
            "_ = reservation.Host;",
            nameof(Probes.FullHostOfCompressing)),
        new Mutation(
            "K3 a cluster that is being given up takes another stream",
            "Qcow2/ReferenceRelease.cs",
            "state.CompressedSpace?.Leave(cluster);",
            "",
            nameof(Probes.GivenUpCluster)),
        new Mutation(
            "K4 streams share a cluster beyond the ceiling of its count",
            "Qcow2/CompressedSpace.cs",
            "_inCluster >= state.Refcounts.Max",
            "_inCluster > state.Refcounts.Max",
            nameof(Probes.Ceiling)),
    ];

    private static readonly Mutation[] Bitmaps =
    [
        new Mutation(
            "D1 a bitmap is not marked before the first change",
            "Qcow2/BitmapTracking.cs",
            "WriteFlags(bitmap, bitmap.Flags | BitmapFlags.InUse);",
            "WriteFlags(bitmap, bitmap.Flags);",
            nameof(Probes.CrashOfBitmaps)),
        new Mutation(
            "D2 the mark falls before the bits are durable",
            "Qcow2/BitmapTracking.cs",
            "bitmap.IsStored = true;",
            "WriteFlags(bitmap.Entry, bitmap.Entry.Flags);",
            nameof(Probes.CrashOfBitmaps)),
        new Mutation(
            "D5 bits are written over another structure",
            "Qcow2/BitmapTracking.cs",
            "&& !metadata.TryClaim(offset, _state.Header.ClusterSize, \"bitmap\")",
            "&& metadata.TryClaim(offset, _state.Header.ClusterSize, \"bitmap\") && false",
            nameof(Probes.SenselessBitmap)),
        new Mutation(
            "a discard is not recorded",
            "Engine/CowImage.Write.cs",
            "_parts.Changes?.Note(offset, length);\n        long end",
            "long end",
            nameof(Probes.ExactBitmaps)),
    ];

    private static readonly Mutation[] Space =
    [
        new Mutation(
            "R1 the rest of the last cluster comes up as it was",
            "Engine/CowImage.Grow.cs",
            "_data.WriteZeroes(tail.Host, tail.Length);",
            "",
            nameof(Probes.Grow)),
        new Mutation(
            "R1 the size may be durable before the zeros",
            "Engine/CowImage.Grow.cs",
            "_data.Sync(); // R1",
            "",
            nameof(Probes.Grow)),
        new Mutation(
            "R2 a sync leaves the new size behind",
            "Engine/CowImage.Grow.cs",
            "_dataDirty = true; // R2",
            "",
            nameof(Probes.Grow)),
        new Mutation(
            "I3 a block that could not be punched is taken for zeros",
            Commit,
            "return run with { ReadsAsZero = false };",
            "return run;",
            nameof(Probes.FailedPunch)),
        new Mutation(
            "A5 what only looks free is cut off",
            "Qcow2/HostAllocator.cs",
            "if (_byFirst[first].ReadsAsZero || first >= _scanLimit)",
            "if (first >= 0)",
            nameof(Probes.Undercounted)),
        new Mutation(
            "L6 the tail of an image with a broken structure is cut off",
            "Qcow2/LeakCollector.cs",
            "if (IsComplete)\n            state.Allocator!.KnowUnused",
            "if (_lastUsed >= 0)\n            state.Allocator!.KnowUnused",
            nameof(Probes.TailOfDamaged)),
        new Mutation(
            "L6 what is referred to without a count is cut off",
            "Qcow2/LeakCollector.cs",
            "                if (last >= 0)\n                    _lastUsed = Math.Max(_lastUsed, first + last);\n",
            "",
            nameof(Probes.TailOfUndercounted)),
        new Mutation(
            "L5 COPIED is set beside a snapshot's reference",
            "Qcow2/LeakCollector.cs",
            "window[cluster] == 1 && !touched.Contains(cluster) && state.Refcounts.Get(counts, cluster) == 1",
            "!touched.Contains(cluster)",
            nameof(Probes.MissingFlags)),
        new Mutation(
            "Z4 a table that a snapshot refers to is cut",
            "Qcow2/Qcow2Resize.cs",
            "if (_edit.Counts[l1[cut.Index].TableOffset >> _header.ClusterBits] > 1)",
            "if (_header.Version > 9)",
            nameof(Probes.ShrunkUnderSnapshot)),
        new Mutation(
            "G2 the directory names a table that is not durable",
            "Qcow2/Qcow2Resize.cs",
            "_bitmaps.WriteNew();\n        _edit.Counts.WriteRaised();\n        _bitmaps.Switch();",
            "_bitmaps.Switch();\n        _bitmaps.WriteNew();\n        _edit.Counts.WriteRaised();",
            nameof(Probes.CrashOfResizedBitmaps)),
    ];

    public static TheoryData<Mutation> Mutations =>
    [
        .. Ordering, .. SyncsAndData, .. SessionsAndSharing, .. SpaceAndCache, .. Compression, .. Bitmaps, .. Space,
        .. OverlayMutations.All, .. SharingMutations.All,
    ];

    [Theory]
    [MemberData(nameof(Mutations))]
    public void Is_caught(Mutation mutation) => Mutant.MustBeCaught(mutation, output);
}
