// The banned symbols are read by an analyser that ignores what it cannot resolve. These tests show that every entry means
// something, and that each source project gets its lists.
using System.Xml.Linq;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed class BannedSymbolTests
{
    public static TheoryData<string> Lists => [.. Directory.GetFiles(Repository.Absolute("src"), "BannedSymbols*.txt").Select(path => Path.GetFileName(path)!)];

    [Theory]
    [MemberData(nameof(Lists))]
    public void Every_entry_names_something_and_says_why(string list)
    {
        var entries = File.ReadLines(Repository.Absolute($"src/{list}")).Where(line => !line.StartsWith("//", StringComparison.Ordinal)).ToList();

        Assert.NotEmpty(entries);
        Findings.AreNone(entries.Where(entry => !IsSound(entry)));
    }

    [Fact]
    public void A_misspelt_entry_is_found()
    {
        Assert.True(IsSound("T:System.IO.File; because"));
        Assert.False(IsSound("T:System.IO.Fil; because"));
        Assert.False(IsSound("M:System.Threading.Thread.Sleep(System.Int64); because"));
        Assert.False(IsSound("T:System.IO.File"));
    }

    [Theory]
    [MemberData(nameof(Lists))]
    public void Every_list_reaches_source_projects(string list) => Assert.Contains(
        XDocument.Load(Repository.Absolute("Directory.Build.props")).Descendants("AdditionalFiles"),
        element => element.Attribute("Include")?.Value.EndsWith($"src/{list}", StringComparison.Ordinal) == true);

    private static readonly Lazy<CSharpCompilation> Framework = new(() => CSharpCompilation.Create(
        "Framework",
        references: ((string)AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES")!).Split(Path.PathSeparator)
            .Where(path => Path.GetFileName(path).StartsWith("System.", StringComparison.Ordinal))
            .Select(path => MetadataReference.CreateFromFile(path))));

    private static bool IsSound(string entry) =>
        entry.Split(';') is [var id, { Length: > 1 }] && DocumentationCommentId.GetFirstSymbolForDeclarationId(id, Framework.Value) is not null;
}
