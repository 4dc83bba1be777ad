// Defects planted in deduplication.
namespace QcowFs.Simulation.Tests.Mutations;

internal static class SharingMutations
{
    private const string Commit = "Qcow2/Qcow2Commit.cs";

    public static Mutation[] All { get; } =
    [
        new Mutation(
            "I11 COPIED leaves the disk together with the second mapping",
            Commit,
            "int counts = WritePages(frozen.Pages, CommitStage.Counts) + WriteCleared(frozen.Cleared);",
            "int counts = WritePages(frozen.Pages, CommitStage.Counts);",
            nameof(Probes.CrashOfSharing)),
        new Mutation(
            "I11 COPIED is decided by the count, not by the entry",
            "Qcow2/Qcow2BlockMap.Sharing.cs",
            "            if (owned.Entry.Copied)\n                TakeCopied",
            "            if (owned.Entry.Copied && count == 1)\n                TakeCopied",
            nameof(Probes.CrashOfSharing)),
        new Mutation(
            "C1 a flag is forgotten when its commit fails",
            Commit,
            "            state.Shared.ThawCleared(frozen.Cleared);\n",
            "",
            nameof(Probes.FullHostOfSharing)),
        new Mutation(
            "I2 a second mapping is not counted",
            "Qcow2/Qcow2BlockMap.Sharing.cs",
            "_state.Refcounts.Set(counts, cluster, count + 1);",
            "",
            nameof(Probes.ModelOfSharing)),
        new Mutation(
            "C2 a mapping that is alone again does not get its flag back",
            "Engine/CowImage.Sharing.cs",
            "sharing.Sweep(_commits.Run, static () => false);",
            "",
            nameof(Probes.ModelOfSharing)),
        new Mutation(
            "I11 the sweep does not look at the count",
            "Qcow2/Qcow2BlockMap.Sharing.cs",
            "|| _state.Refcounts.Get(counts, cluster) != 1)",
            "|| _state.Refcounts.Get(counts, cluster) > 2)",
            nameof(Probes.ModelOfSharing)),
        new Mutation(
            "E1 the hash is believed",
            "Engine/CowImage.Sharing.cs",
            "return bytes.SequenceEqual(buffer.AsSpan(0, bytes.Length));",
            "return true;",
            nameof(Probes.ModelOfSharing)),
        new Mutation(
            "E2 the owner is not locked",
            "Engine/CowImage.Sharing.cs",
            "if (!_ranges.TryEnter(entry.Guest, entry.Guest + 1, exclusive: true, out RangeGate.Ticket ticket))",
            "if (!_ranges.TryEnter(long.MaxValue - 1, long.MaxValue, exclusive: false, out RangeGate.Ticket ticket))",
            nameof(Probes.RaceOfSharing)),
        new Mutation(
            "D8 the table bits of another state of the image are believed",
            "Dedup/DedupIndex.Regions.cs",
            "_superblock.Binding != now ||",
            "",
            nameof(Probes.StateOfIndex)),
        new Mutation(
            "D2 a torn page is a page",
            "Dedup/IndexPage.cs",
            "            && BinaryPrimitives.ReadUInt32LittleEndian(page[ChecksumAt..]) == Checksum(page, id);",
            "            && Checksum(page, id) != 1;",
            nameof(Probes.PageOfIndex)),
    ];
}
