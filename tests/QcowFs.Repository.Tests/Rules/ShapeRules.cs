// Size, names and opening comments: what keeps a file readable.
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.CSharp.Syntax;

namespace QcowFs.Repository.Tests.Rules;

internal static class ShapeRules
{
    private const int FileLines = 800;
    private const int MethodLines = 70;

    private static readonly string[] EmptyNames = ["Manager", "Helper", "Helpers", "Util", "Utils", "Utility", "Utilities"];

    public static IEnumerable<Rule> All =>
    [
        new($"a file has fewer than {FileLines} lines", ShortFile)
        {
            Broken = [new("src/A/A.cs", string.Concat(Enumerable.Repeat("// line\n", FileLines)))],
            Kept = [new("src/A/A.cs", string.Concat(Enumerable.Repeat("// line\n", FileLines - 1)))],
        },
        new($"a method has at most {MethodLines} lines", ShortMethods)
        {
            Broken = [Method(MethodLines - 2), new("src/A/A.cs", $"class A {{ int P {{ get {{ {new string('\n', MethodLines)} return 1; }} }} }}")],
            Kept = [Method(MethodLines - 3)],
        },
        new("a file opens with a comment that says what it is for", OpeningComment)
        {
            Broken = [new("src/A/A.cs", "using System;\n// Too late."), new("src/A/A.cs", "namespace A;"), new("src/A/A.cs", "//\nnamespace A;")],
            Kept = [new("src/A/A.cs", "// Says what it is for.\nusing System;")],
        },
        new("a type's name says what it is", TellingNames)
        {
            Broken = [new("src/A/A.cs", "class CacheManager;"), new("src/A/A.cs", "static class StringUtils;"), new("src/A/IoHelper.cs", "enum B;")],
            Kept = [new("src/A/A.cs", "class Utilization; class Managerial;")],
        },
    ];

    private static Snippet Method(int emptyLines) =>
        new("src/A/A.cs", $"class A\n{{\n    void B()\n    {{\n{new string('\n', emptyLines)}    }}\n}}\n");

    private static IEnumerable<string> ShortFile(SourceFile file)
    {
        int lines = file.Text.Count(character => character == '\n');
        return lines < FileLines ? [] : [$"{file.Path}: {lines} lines"];
    }

    private static IEnumerable<string> ShortMethods(SourceFile file) =>
        from node in file.Syntax.DescendantNodes()
        where node is BaseMethodDeclarationSyntax or AccessorDeclarationSyntax or LocalFunctionStatementSyntax or PropertyDeclarationSyntax { ExpressionBody: not null }
        let span = node.SyntaxTree.GetLineSpan(node.Span)
        let lines = span.EndLinePosition.Line - span.StartLinePosition.Line + 1
        where lines > MethodLines
        select file.At(node, $"{lines} lines");

    private static IEnumerable<string> OpeningComment(SourceFile file)
    {
        bool says = file.Syntax.GetFirstToken(includeZeroWidth: true).LeadingTrivia is [var first, ..]
            && first.IsKind(SyntaxKind.SingleLineCommentTrivia) && first.ToString().Length > "// A.".Length;
        return says ? [] : [$"{file.Path}: no opening comment"];
    }

    private static IEnumerable<string> TellingNames(SourceFile file)
    {
        IEnumerable<string> names = file.Nodes<BaseTypeDeclarationSyntax>().Select(type => type.Identifier.Text)
            .Append(Path.GetFileNameWithoutExtension(file.Path).Split('.')[0]);
        return from name in names
               where EmptyNames.Any(empty => name.EndsWith(empty, StringComparison.Ordinal))
               select $"{file.Path}: {name}";
    }
}
