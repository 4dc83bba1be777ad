// One C# file as the rules see it: its path, its text and its syntax tree.
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.CSharp.Syntax;

namespace QcowFs.Repository.Tests;

internal sealed class SourceFile
{
    private readonly Lazy<CompilationUnitSyntax> _syntax;

    public SourceFile(string path, string text)
    {
        Path = path;
        Text = text;
        _syntax = new(() => CSharpSyntaxTree.ParseText(
            text, new CSharpParseOptions(LanguageVersion.Preview, DocumentationMode.Parse, preprocessorSymbols: ["DEBUG"]))
            .GetCompilationUnitRoot());
    }

    /// <summary>Relative to the root, with '/'.</summary>
    public string Path { get; }

    public string Text { get; }

    public CompilationUnitSyntax Syntax => _syntax.Value;

    public IEnumerable<T> Nodes<T>()
        where T : SyntaxNode => Syntax.DescendantNodes().OfType<T>();

    /// <summary>Simple names used in code (not in documentation), as types, namespaces or values.</summary>
    public IEnumerable<SimpleNameSyntax> Names() => Nodes<SimpleNameSyntax>();

    /// <summary>Whether the file is below one of the folders.</summary>
    public bool IsIn(params ReadOnlySpan<string> folders)
    {
        foreach (string folder in folders)
        {
            if (Path.StartsWith(folder + "/", StringComparison.Ordinal))
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>A finding at a place of the file: its path, line and what is wrong.</summary>
    public string At(SyntaxNodeOrToken place, string message) => At(place.Span.Start, message);

    public string At(int position, string message) =>
        $"{Path}:{Syntax.SyntaxTree.GetText().Lines.GetLineFromPosition(position).LineNumber + 1}: {message}";
}
