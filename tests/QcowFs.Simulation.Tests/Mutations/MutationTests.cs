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
            "        foreach (ClusterRun run in unused)\n            state.File.Discard(run.First << _clusterBits, run.Count << _clusterBits);\n",
            """
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
            "state.File.Write(0, _headerSector);\n        state.File.Sync();",
            "state.File.Write(0, _headerSector);",
            nameof(Probes.Crash)),
        new Mutation(
            "I10 unknown auto-clear bits stay",
            Commit,
            "WriteAutoclear((state.Header.AutoclearFeatures & AutoclearFeatures.RawExternalData) | AutoclearFeatures.InUse);",
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

    public static TheoryData<Mutation> Mutations => [.. Ordering, .. SyncsAndData, .. SessionsAndSharing];

    [Theory]
    [MemberData(nameof(Mutations))]
    public void Is_caught(Mutation mutation)
    {
        Exception? failure = Mutant.Run(mutation);
        Assert.True(failure is not null, $"{mutation.Rule}: the probe {mutation.Probe} does not notice");
        output.WriteLine($"{mutation.Rule}: caught by {mutation.Probe}: {failure.Message}");
    }
}
