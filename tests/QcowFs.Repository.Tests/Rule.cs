// A rule about one source file. Each carries snippets that break it and snippets that come close without breaking it, so that
// the tests show of every rule that it bites, and that it bites nothing else.
using Xunit;

namespace QcowFs.Repository.Tests;

/// <summary>A snippet and the path it is judged under.</summary>
internal sealed record Snippet(string Path, string Text)
{
    public SourceFile ToSource() => new(Path, Text);
}

internal static class Findings
{
    /// <summary>Fails with every finding on a line of its own.</summary>
    public static void AreNone(IEnumerable<string> findings)
    {
        string[] all = [.. findings];
        Assert.True(all.Length == 0, string.Join('\n', all));
    }
}

/// <summary>A named rule. <paramref name="Check"/> gives a line for each finding.</summary>
internal sealed record Rule(string Name, Func<SourceFile, IEnumerable<string>> Check)
{
    public IReadOnlyList<Snippet> Broken { get; init; } = [];

    public IReadOnlyList<Snippet> Kept { get; init; } = [];
}
