// No stubs, nothing swallowed, nothing silenced.
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.CSharp.Syntax;

namespace QcowFs.Repository.Tests.Rules;

internal static class FinishedRules
{
    // Split, so that this file does not break its own rule.
    private static readonly string[] Markers = ["TO" + "DO", "FIX" + "ME", "HA" + "CK", "XX" + "X"];

    public static IEnumerable<Rule> All =>
    [
        new("nothing is left to do", NothingLeft)
        {
            Broken = [new("src/A/A.cs", $"// {Markers[0]}: later"), new("src/A/A.cs", $"class A {{ /* {Markers[1]} */ }}"),
                new("src/A/A.cs", "class A { void B() => throw new NotImplementedException(); }")],
            Kept = [new("src/A/A.cs", "// All is done.\nclass A { string b = \"" + Markers[0] + "\"; }")],
        },
        new("no exception is swallowed", NoEmptyCatch)
        {
            Broken = [new("src/A/A.cs", "class A { void B() { try { C(); } catch { } } }"), new("src/A/A.cs", "class A { void B() { try { C(); } catch (Exception) { /* ignored */ } } }"),
                new("src/A/A.cs", "class A { void B() { try { C(); } catch (IOException) { } } }")],
            Kept = [new("src/A/A.cs", "class A { void B() { try { C(); } catch (Exception e) { Log(e); } } }"),
                new("src/A/A.cs", "class A { void B() { try { C(); } catch (Exception e) when (e.IsFull) { /* falls through to the commit */ } } }"),
                new("tests/A/A.cs", "class A { void B() { try { C(); } catch (CrashException) { /* the crash that was asked for */ } } }")],
        },
        new("a warning is silenced only with a reason beside it", ReasonedSilence)
        {
            Broken = [new("src/A/A.cs", "#pragma warning disable CA1000\nclass A;\n#pragma warning restore CA1000"),
                new("src/A/A.cs", "[SuppressMessage(\"Design\", \"CA1000\")] class A;")],
            Kept = [new("src/A/A.cs", "#pragma warning disable CA1000 // because\nclass A;"),
                new("src/A/A.cs", "[SuppressMessage(\"Design\", \"CA1000\", Justification = \"because\")] class A;")],
        },
        new("a test is skipped only by what it finds missing", NoStaticSkip)
        {
            Broken = [new("tests/A/A.cs", "class A { [Fact(Skip = \"slow\")] void B() { } }")],
            Kept = [new("tests/A/A.cs", "class A { [SkippableFact] void B() { } }")],
        },
    ];

    private static IEnumerable<string> NothingLeft(SourceFile file)
    {
        var comments = from trivia in file.Syntax.DescendantTrivia(descendIntoTrivia: false)
                       where IsComment(trivia) || trivia.HasStructure
                       let marker = Markers.FirstOrDefault(marker => trivia.ToFullString().Contains(marker, StringComparison.Ordinal))
                       where marker is not null
                       select file.At(trivia.SpanStart, marker);
        var stubs = from name in file.Names()
                    where name.Identifier.Text == "NotImplementedException"
                    select file.At(name, name.Identifier.Text);
        return comments.Concat(stubs);
    }

    // One expected outcome, told apart by its type or a filter and explained, may lead on to what follows the try.
    private static IEnumerable<string> NoEmptyCatch(SourceFile file) =>
        from clause in file.Nodes<CatchClauseSyntax>()
        where clause.Block.Statements.Count == 0
        where (clause.Filter is null && clause.Declaration?.Type.ToString().Split('.')[^1] is null or "Exception" or "SystemException")
            || !clause.Block.DescendantTrivia().Any(IsComment)
        select file.At(clause, "empty catch");

    private static bool IsComment(SyntaxTrivia trivia) =>
        trivia.IsKind(SyntaxKind.SingleLineCommentTrivia) || trivia.IsKind(SyntaxKind.MultiLineCommentTrivia);

    private static IEnumerable<string> ReasonedSilence(SourceFile file)
    {
        var pragmas = from trivia in file.Syntax.DescendantTrivia()
                      where trivia.GetStructure() is PragmaWarningDirectiveTriviaSyntax pragma
                          && pragma.DisableOrRestoreKeyword.IsKind(SyntaxKind.DisableKeyword)
                          && !pragma.EndOfDirectiveToken.LeadingTrivia.Any(SyntaxKind.SingleLineCommentTrivia)
                          && !pragma.ToFullString().Contains("//", StringComparison.Ordinal)
                      select file.At(trivia.SpanStart, "silenced without a reason");
        var attributes = from attribute in file.Nodes<AttributeSyntax>()
                         where attribute.Name.ToString() is "SuppressMessage" or "UnconditionalSuppressMessage"
                             && !attribute.ToString().Contains("Justification", StringComparison.Ordinal)
                         select file.At(attribute, "silenced without a reason");
        return pragmas.Concat(attributes);
    }

    private static IEnumerable<string> NoStaticSkip(SourceFile file) =>
        from argument in file.Nodes<AttributeArgumentSyntax>()
        where file.IsIn("tests") && argument.NameEquals?.Name.Identifier.Text == "Skip"
        select file.At(argument, argument.ToString());
}
