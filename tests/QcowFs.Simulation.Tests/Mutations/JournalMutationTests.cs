// Defects of the journal, planted in the real sources: each rule of its design note that can be broken by one line is missed by a test.
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests.Mutations;

public sealed class JournalMutationTests(ITestOutputHelper output)
{
    private const string Guard = "Qcow2/Journal/WriteGuard.cs";
    private const string Commit = "Qcow2/Journal/JournalCommit.cs";
    private const string Replay = "Qcow2/Journal/JournalReplay.cs";
    private const string Extensions = "Qcow2/HeaderExtensionEdit.cs";

    private static readonly Mutation[] Writing =
    [
        new Mutation(
            "J5 a listed range is overwritten before it is confirmed",
            Guard,
            "if (!_guards)\n            return true;",
            "if (host >= 0)\n            return true;",
            nameof(Probes.JournalOverwrite)),
        new Mutation(
            "J4 new data is not listed",
            Guard,
            "if (!_active)\n            return;",
            "if (length >= 0)\n            return;",
            nameof(Probes.JournalNewBlock)),
        new Mutation(
            "J4 what is copied around a write is not listed",
            "Engine/CowImage.Write.cs",
            "_dataGuard?.NoteFresh(host, bytes.Length);",
            "_dataGuard?.NoteFresh(host, Math.Min(bytes.Length, 512));",
            nameof(Probes.JournalNewBlock)),
        new Mutation(
            "J4 a block counts as zero before its punch is synced",
            "Qcow2/Journal/JournalReclaim.cs",
            "waits |= cluster < run.End && !_zeroed.Contains(cluster);",
            "",
            nameof(Probes.JournalReuse)),
        new Mutation(
            "J4 the target of a hit is not listed",
            "Qcow2/Qcow2BlockMap.Sharing.cs",
            "_state.Guard?.NoteFresh(host, _clusterMask + 1);",
            "",
            nameof(Probes.JournalHit)),
        new Mutation(
            "J7 counts fall when the record of the removal is written, not when it is durable",
            Commit,
            "        if (syncs)\n            Sync(epoch);",
            """
                    lock (_cache.Gate)
                        _state.AddPending(epoch.Frozen.Removals, 0);
                    _reclaim.AfterSync(_confirmed);
                    if (syncs)
                        Sync(epoch);
            """,
            nameof(Probes.JournalEarlyCount)),
        new Mutation(
            "W3 checksums are taken while writers are on their way",
            Commit,
            "_state.Epoch.Synchronize(); // W3",
            "",
            nameof(Probes.JournalWriterUnderWay)),
        new Mutation(
            "W3 data that is not listed is synced while writers are on their way",
            Commit,
            "_state.Epoch.Synchronize(); // W3",
            "if (!noted.IsLarge)\n            _state.Epoch.Synchronize();",
            nameof(Probes.JournalLargeWriterUnderWay)),
        new Mutation(
            "J11 an ordered commit leaves older intents where a kill replays them",
            Commit,
            "            CommitIntents(content with { Revokes = [] });",
            "            content.GetHashCode();",
            nameof(Probes.JournalKillInOrdered)),
        new Mutation(
            "A6 space is handed out while zeros are being written to it",
            "Qcow2/Journal/SpaceAhead.cs",
            "            WriteZeros(run.First",
            "            _allocator.AddReady(run);\n            WriteZeros(run.First",
            nameof(Probes.JournalSpaceAhead)),
        new Mutation(
            "J3 a commit does not confirm the one before",
            Commit,
            "JournalRecordKind.Commit, _synced,",
            "JournalRecordKind.Commit, 0,",
            nameof(Probes.JournalOverwriteConfirmed)),
    ];

    private static readonly Mutation[] Replaying =
    [
        new Mutation(
            "J10 confirmed commits are verified again",
            Replay,
            "LastMatching(Math.Max(confirmed, first - 1))",
            "LastMatching(first - 1)",
            nameof(Probes.JournalOverwriteConfirmed)),
        new Mutation(
            "J10 a chain that ends too early is replayed in part",
            Replay,
            "if (end < confirmed)",
            "if (end > confirmed && end < 0)",
            nameof(Probes.JournalGap)),
        new Mutation(
            "J10 records of another journal are believed",
            "Qcow2/Journal/JournalRecord.cs",
            "header.Id == id && header.Sequence == sequence",
            "header.Sequence == sequence",
            nameof(Probes.JournalStale)),
        new Mutation(
            "J9 a revoked range is written all the same",
            Replay,
            "patches.Drop(record.Revoke(i).Offset, record.Revoke(i).Length);",
            "record.Revoke(i).GetHashCode();",
            nameof(Probes.JournalRevoke)),
        new Mutation(
            "J9 later changes are written home",
            Commit,
            "changed.CommitContent.CopyTo(page);",
            "changed.Bytes.CopyTo(page);",
            nameof(Probes.JournalLater)),
        new Mutation(
            "J11 changes are acknowledged without an intent",
            Commit,
            "_ = _ring.Append(intent, _redo);",
            "",
            nameof(Probes.JournalKill)),
        new Mutation(
            "Y5 a replay writes pages before its decision is durable",
            Replay,
            "WriteAdopted();\n        WriteHome",
            "WriteHome",
            nameof(Probes.JournalReplayCrash)),
    ];

    private static readonly Mutation[] Header =
    [
        new Mutation(
            "X3 the header names the backing file's new place before the name is there",
            Extensions,
            "        file.Write(place, name);\n        file.Sync();\n",
            "        file.Write(place, name);\n",
            nameof(Probes.HeaderEdits)),
        new Mutation(
            "X1 an extension counts before its data is durable",
            Extensions,
            "        file.Write(at + HeadLength, bytes[HeadLength..]);\n        file.Sync();\n",
            "        file.Write(at + HeadLength, bytes[HeadLength..]);\n",
            nameof(Probes.HeaderEdits)),
        new Mutation(
            "X4 a list is written anew where it is read",
            Extensions,
            "        WriteHead(file, first.Offset, cover);\n",
            "",
            nameof(Probes.HeaderEdits)),
        new Mutation(
            "X4 the old list is covered before its copy is durable",
            Extensions,
            "        file.Write(copy, list); // X1, X4\n        file.Sync();\n",
            "        file.Write(copy, list); // X1, X4\n",
            nameof(Probes.HeaderEdits)),
    ];

    public static TheoryData<Mutation> Mutations => [.. Writing, .. Replaying, .. Header];

    [Theory]
    [MemberData(nameof(Mutations))]
    public void Is_caught(Mutation mutation) => Mutant.MustBeCaught(mutation, output);
}
