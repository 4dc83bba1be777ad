// Every rule holds for every source file; every rule is shown to bite.
using QcowFs.Repository.Tests.Rules;
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed class SourceRuleTests
{
    private static readonly Dictionary<string, Rule> Rules =
        new[] { LayerRules.All, SeamRules.All, ShapeRules.All, FinishedRules.All }.SelectMany(rules => rules).ToDictionary(rule => rule.Name);

    public static TheoryData<string> Names => [.. Rules.Keys];

    [Fact]
    public void The_sources_are_found()
    {
        Assert.Contains(Repository.Sources, file => file.Path == "src/QcowFs/Program.cs");
        Assert.DoesNotContain(Repository.Sources, file => file.Path.Contains("/obj/", StringComparison.Ordinal));
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void The_sources_keep(string rule) =>
        Findings.AreNone(Repository.Sources.SelectMany(Rules[rule].Check));

    [Theory]
    [MemberData(nameof(Names))]
    public void A_break_is_found_of(string rule)
    {
        Assert.NotEmpty(Rules[rule].Broken);
        Assert.All(Rules[rule].Broken, snippet => Assert.NotEmpty(Rules[rule].Check(snippet.ToSource())));
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Near_misses_pass(string rule)
    {
        Assert.NotEmpty(Rules[rule].Kept);
        Assert.All(Rules[rule].Kept, snippet => Assert.Empty(Rules[rule].Check(snippet.ToSource())));
    }
}
