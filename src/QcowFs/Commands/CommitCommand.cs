// qcowfs commit.
using QcowFs.CommandLine;
using QcowFs.Images;

namespace QcowFs.Commands;

/// <summary>Writes an overlay into its base.</summary>
internal static class CommitCommand
{
    public static Command Table { get; } = new(
        "commit", "write what an overlay holds into the image below it, and empty the overlay", ["OVERLAY"],
        [ImageOptions.Format, ImageOptions.References], Run)
    {
        Notes =
            """
            Nobody may have either image open. If the command is interrupted, however it ends, the overlay still shows
            the same disk; run it again to finish. A base that is smaller than the overlay grows.
            """,
    };

    private static int Run(ParsedLine line)
    {
        OpenOptions options = new() { Format = ImageOptions.FormatOf(line), References = ImageOptions.ReferencesOf(line) };
        string path = line.Operands[0];
        using ProgressLine? progress = ProgressLine.OnTerminal(Output.Safe(path));
        CommitResult result = new ImageEditor(HostFileSystem.Instance, TimeProvider.System)
            .Commit(path, options, (done, all) => progress?.Report(done, all));
        progress?.Dispose();
        string grown = result.GrownTo is { } size ? $", which grew to {Sizes.Describe(size)}" : "";
        Console.Out.WriteLine(
            $"{Output.Safe(path)}: {Sizes.Describe(result.Written)} written to {Output.Safe(result.BasePath)}{grown}, {Sizes.Describe(result.Zeroed)} made zero; the overlay is empty");
        return ExitCode.Done;
    }
}
