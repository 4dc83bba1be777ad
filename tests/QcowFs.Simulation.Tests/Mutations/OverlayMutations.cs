// Defects planted in overlays and their commit.
namespace QcowFs.Simulation.Tests.Mutations;

internal static class OverlayMutations
{
    private const string Commit = "Opening/OverlayCommit.cs";
    private const string Overlay = "Qcow2/Qcow2Overlay.cs";

    public static Mutation[] All { get; } =
    [
        new Mutation(
            "W2 the overlay is emptied before the base is durable",
            Commit,
            "to.Sync(); // W2\n        to.Close();",
            "",
            nameof(Probes.CommitOfOverlay)),
        new Mutation(
            "W2 zeros are not committed",
            Commit,
            "to.Discard(offset, extent.Length);",
            "",
            nameof(Probes.CommitOfOverlay)),
        new Mutation(
            "W4 an interrupted commit is not known for one",
            Commit,
            "overlay.Remember(normal with { IsCommitting = true }); // W4",
            "_written = 0;",
            nameof(Probes.CommitOfOverlay)),
        new Mutation(
            "V1 what is remembered counts while it is being rewritten",
            Overlay,
            "(identity with { IsCommitting = true }).WriteTo(bytes);",
            "identity.WriteTo(bytes);",
            nameof(Probes.CommitOfMovedExtension)),
        new Mutation(
            "V2 counts are lowered before the mappings are durably gone",
            Overlay,
            "file.Sync(); // V2",
            "",
            nameof(Probes.CommitOfOverlay)),
    ];
}
