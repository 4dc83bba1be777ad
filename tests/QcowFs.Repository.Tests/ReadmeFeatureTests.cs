// The README's table of qcow2 features names a test in each row; each of them is there.
using System.Text.RegularExpressions;
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed partial class ReadmeFeatureTests
{
    private const string Heading = "### qcow2, feature by feature";

    [GeneratedRegex(@"^\|.*\| `(?<class>\w+)\.(?<method>\w+)` \|$", RegexOptions.ExplicitCapture)]
    private static partial Regex Row { get; }

    [Fact]
    public void Every_row_names_a_test_that_is_there()
    {
        string[] rows = Rows(File.ReadAllLines(Repository.Absolute("README.md")));
        Assert.InRange(rows.Length, 20, 100);
        Assert.All(rows, row =>
        {
            Match match = Row.Match(row);
            Assert.True(match.Success, $"the last column names no test: {row}");
            Assert.True(IsTest(Repository.Sources, match.Groups["class"].Value, match.Groups["method"].Value), $"there is no such test: {row}");
        });
    }

    [Fact]
    public void Rows_are_those_behind_the_line_under_the_tables_head() => Assert.Equal(
        ["| a | `A.B` |", "| c |"],
        Rows(["| x |", "|---|", "| y |", Heading, "text", "| feature | test |", "|---|---|", "| a | `A.B` |", "| c |", "", "| z |"]));

    [Fact]
    public void A_test_has_an_attribute_and_stands_in_its_class()
    {
        SourceFile source = new("tests/X/ATests.cs", "class ATests\n{\n    [Theory]\n    [MemberData(nameof(Cases))]\n    public void Is(int x)\n    {\n    }\n\n    public void Other()\n    {\n    }\n}\n");
        Assert.True(IsTest([source], "ATests", "Is"));
        Assert.False(IsTest([source], "ATests", "Other"));
        Assert.False(IsTest([source], "ATests", "I"));
        Assert.False(IsTest([source], "BTests", "Is"));
    }

    private static string[] Rows(string[] readme) =>
    [
        .. readme.SkipWhile(line => line != Heading)
            .SkipWhile(line => !line.StartsWith("|---", StringComparison.Ordinal))
            .Skip(1)
            .TakeWhile(line => line.StartsWith('|')),
    ];

    private static bool IsTest(IEnumerable<SourceFile> sources, string type, string method) => sources.Any(source =>
        source.Path.StartsWith("tests/", StringComparison.Ordinal)
        && Regex.IsMatch(source.Text, $@"\bclass {type}\b", RegexOptions.None, TimeSpan.FromSeconds(10))
        && Regex.IsMatch(source.Text, $@"\[(Skippable)?(Fact|Theory)[^;{{]*\bpublic (async )?\w+ {method}\(", RegexOptions.None, TimeSpan.FromSeconds(10)));
}
