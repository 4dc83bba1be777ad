// Defects planted in add-cow: one for each rule of order between its three files.
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests.Mutations;

public sealed class AddCowMutationTests(ITestOutputHelper output)
{
    private const string Commit = "AddCow/AddCowCommit.cs";
    private const string Resize = "AddCow/AddCowResize.cs";

    private static readonly Mutation[] Commits =
    [
        new Mutation(
            "A1 bits are durable before their clusters",
            Commit,
            "if (takeDataDirty())\n                _data.Sync();\n            if (hasPages)\n            {\n                WritePages(pages);\n                _file.Sync(); // A2\n            }\n",
            "if (hasPages)\n            {\n                WritePages(pages);\n                _file.Sync();\n            }\n\n            if (takeDataDirty())\n                _data.Sync();\n",
            nameof(Probes.AddCowCrash)),
        new Mutation(
            "A1 the image file is not synced through its own driver",
            Commit,
            "if (takeDataDirty())\n                _data.Sync();",
            "if (takeDataDirty() && _data is QcowFs.Images.Engine.LatchedStorage { Inner: not IDiskImage })\n                _data.Sync();",
            nameof(Probes.AddCowCrashInQcow2)),
        new Mutation(
            "A2 bits are not synced",
            Commit,
            "_file.Sync(); // A2",
            "",
            nameof(Probes.AddCowCrash)),
        new Mutation(
            "A3 ALL_ALLOCATED is durable before the bitmap is full",
            Commit,
            "            if (takeDataDirty())",
            """
                        if (!_isComplete && IsEveryBitSet() && _bitmap.Geometry.Header.Layout == AddCowLayout.Final)
                            WriteFeatures(_file, _bitmap.Geometry.Header with { CompatFeatures = _bitmap.Geometry.Header.CompatFeatures | AddCowFeatures.AllAllocated });
                        if (takeDataDirty())
            """,
            nameof(Probes.AddCowCrash)),
        new Mutation(
            "I1 a cluster is published without its bytes being known to be unsynced",
            "Engine/CowImage.Write.cs",
            "_dataDirty = true; // I1: before a commit can see the mapping\n        _map.Publish(new Reservation(",
            "_map.Publish(new Reservation(",
            nameof(Probes.AddCowDiscard)),
        new Mutation(
            "I5 stale bytes of the image file are taken for zeros",
            "AddCow/AddCowBlockMap.cs",
            "ReadsAsZero: isHole",
            "ReadsAsZero: isPartial",
            nameof(Probes.AddCowModel)),
        new Mutation(
            "I8 bits are trusted without a sync",
            "AddCow/AddCowImage.cs",
            "parts.Data.Sync();\n            parts.File.Sync();",
            "",
            nameof(Probes.AddCowCrash)),
        new Mutation(
            "writers of one cluster do not wait for each other",
            "Engine/CowImage.Write.cs",
            "_ranges.Enter(offset >> _blockBits, ((offset + length + _blockMask) >> _blockBits), exclusive);",
            "_ranges.Enter(offset, offset + length, exclusive);",
            nameof(Probes.AddCowWriters)),
    ];

    private static readonly Mutation[] Sizes =
    [
        new Mutation(
            "Z1 the mark is not set",
            Resize,
            "AddCowCommit.WriteFeatures(file, marked); // Z1",
            "",
            nameof(Probes.AddCowResize)),
        new Mutation(
            "Z2 the image file grows before its bits are written",
            Resize,
            "            if (size > old.DiskSize)\n                WriteNewBits",
            "            data.SetLength(Math.Max(size, old.DiskSize));\n            data.Sync();\n            if (size > old.DiskSize)\n                WriteNewBits",
            nameof(Probes.AddCowResize)),
        new Mutation(
            "Z2 bits of new clusters are not cleared",
            Resize,
            "long firstClear = Math.Max(old.Clusters, covered >> header.ClusterBits);",
            "long firstClear = old.Clusters;",
            nameof(Probes.AddCowResize)),
        new Mutation(
            "Z2 the cut cluster is not copied",
            Resize,
            "covered > old.DiskSize && CopyCutCluster",
            "covered < 0 && CopyCutCluster",
            nameof(Probes.AddCowResize)),
        new Mutation(
            "Z3 what lies past the end is not cleared",
            Resize,
            "BitmapFile.CutToSize(file, geometry);",
            "",
            nameof(Probes.AddCowResize)),
    ];

    public static TheoryData<Mutation> Mutations => [.. Commits, .. Sizes];

    [Theory]
    [MemberData(nameof(Mutations))]
    public void Is_caught(Mutation mutation) => Mutant.MustBeCaught(mutation, output);
}
