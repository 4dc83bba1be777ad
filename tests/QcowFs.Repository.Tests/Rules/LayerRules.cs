// Layering inside a project, where no project reference enforces it: DESIGN.md section 3.
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp.Syntax;

namespace QcowFs.Repository.Tests.Rules;

internal static class LayerRules
{
    private const string Images = "src/QcowFs.Images";

    /// <summary>Folders of QcowFs.Images that serve every format and know none. Each other folder is a format.</summary>
    private static readonly string[] SharedFolders = ["Engine", "Metadata", "Checking", "Dedup"];

    /// <summary>Folders that know the formats, because they choose among them.</summary>
    private static readonly string[] ChoosingFolders = ["Opening", "Creating"];

    /// <summary>Formats that need no folder of their own yet are listed too, so that no name slips through.</summary>
    private static readonly string[] KnownFormats = ["Raw", "Qcow2", "AddCow", "Vhdx", "Vhd", "Vmdk", "Vdi", "Qed", "Qcow1", "Parallels"];

    private static readonly Lazy<string[]> Formats = new(() =>
    [
        .. Directory.EnumerateDirectories(Repository.Absolute(Images))
            .Select(path => Path.GetFileName(path))
            .Where(name => !SharedFolders.Contains(name) && !ChoosingFolders.Contains(name) && name is not ("bin" or "obj"))
            .Union(KnownFormats),
    ]);

    public static IEnumerable<Rule> All =>
    [
        new("a namespace is the file's folder or one above, in a format's folder exactly that", NamespaceIsFolder)
        {
            Broken = [new($"{Images}/Qcow2/A.cs", "namespace QcowFs.Images;"), new("src/QcowFs.Storage/A.cs", "class A;"),
                new("src/QcowFs.Storage/A.cs", "namespace QcowFs;"), new("src/QcowFs.Fuse/Wire/A.cs", "namespace QcowFs.FuseWire;")],
            Kept = [new($"{Images}/Qcow2/A.cs", "namespace QcowFs.Images.Qcow2;"), new("src/QcowFs/Commands/A.cs", "namespace QcowFs.Commands;"),
                new("src/QcowFs.Fuse/Wire/A.cs", "namespace QcowFs.Fuse;")],
        },
        new("no format refers to another, and shared code to none", FormatsApart)
        {
            Broken =
            [
                new($"{Images}/Raw/A.cs", "using QcowFs.Images.Qcow2;"),
                new($"{Images}/Raw/A.cs", "class A { Qcow2.Header h; }"),
                new($"{Images}/Engine/A.cs", "using QcowFs.Images.Vhdx;"),
                new($"{Images}/Metadata/A.cs", "class A { object o = new QcowFs.Images.AddCow.Map(); }"),
            ],
            Kept =
            [
                new($"{Images}/Raw/A.cs", "using QcowFs.Images.Raw; using QcowFs.Images.Engine; class A { int Qcow2 => 2; }"),
                new($"{Images}/ImageFormats.cs", "using QcowFs.Images.Qcow2;"),
                new($"{Images}/Opening/ImageFormats.cs", "using QcowFs.Images.Qcow2;"),
            ],
        },
        new("no global using hides a layer", NoGlobalUsing)
        {
            Broken = [new("src/QcowFs.Images/A.cs", "global using QcowFs.Images.Qcow2;")],
            Kept = [new("src/QcowFs.Images/A.cs", "using QcowFs.Images.Qcow2;")],
        },
        new("the FUSE library has no word about disks", FuseKnowsNoDisk)
        {
            Broken = [new("src/QcowFs.Fuse/A.cs", "class DiskNode;"), new("src/QcowFs.Fuse/A.cs", "class A { int clusterBits; }")],
            Kept = [new("src/QcowFs.Fuse/A.cs", "namespace QcowFs.Fuse; class Node { int block; }"), new("src/QcowFs.FileSystem/A.cs", "class DiskNode;")],
        },
        new("native code is called only from QcowFs.Native", NativeCallsInNative)
        {
            Broken = [new("src/QcowFs.Fuse/A.cs", "partial class A { [LibraryImport(\"libc\")] static partial int f(); }"),
                new("src/QcowFs.Storage/A.cs", "class A { [DllImport(\"c\")] static extern int f(); }")],
            Kept = [new("src/QcowFs.Native/A.cs", "partial class A { [LibraryImport(\"libc\")] static partial int f(); }")],
        },
    ];

    private static IEnumerable<string> NamespaceIsFolder(SourceFile file)
    {
        if (!file.IsIn("src") || Path.GetFileName(file.Path) == "AssemblyAttributes.cs")
        {
            yield break;
        }

        string[] parts = file.Path.Split('/');
        string folder = string.Join('.', parts[1..^1]);
        string found = file.Nodes<BaseNamespaceDeclarationSyntax>().FirstOrDefault()?.Name.ToString() ?? "none";
        string shortest = file.IsIn(Images) && Formats.Value.Contains(parts[2]) ? folder : parts[1];
        if (!$"{folder}.".StartsWith($"{found}.", StringComparison.Ordinal) || !$"{found}.".StartsWith($"{shortest}.", StringComparison.Ordinal))
        {
            yield return $"{file.Path}: namespace {found}, expected {folder}";
        }
    }

    private static IEnumerable<string> FormatsApart(SourceFile file)
    {
        string[] parts = file.Path.Split('/');
        if (!file.IsIn(Images) || parts.Length < 4 || ChoosingFolders.Contains(parts[2]))
        {
            return [];
        }

        string own = parts[2];
        return from name in file.Names()
               let text = name.Identifier.Text
               where text != own && Formats.Value.Contains(text) && NamesNamespace(name)
               select file.At(name, $"{own} refers to {text}");
    }

    // A namespace is named by a using, or to the left or in the middle of a dotted name.
    private static bool NamesNamespace(SimpleNameSyntax name) => name.Parent switch
    {
        UsingDirectiveSyntax => true,
        QualifiedNameSyntax qualified => qualified.Left == name || qualified.Parent is QualifiedNameSyntax or UsingDirectiveSyntax or MemberAccessExpressionSyntax,
        MemberAccessExpressionSyntax access => access.Expression == name || access.Expression.ToString() is "Images" or "QcowFs.Images",
        _ => false,
    };

    private static IEnumerable<string> NoGlobalUsing(SourceFile file) =>
        from directive in file.Nodes<UsingDirectiveSyntax>()
        where file.IsIn("src") && directive.GlobalKeyword != default
        select file.At(directive, "global using");

    private static IEnumerable<string> FuseKnowsNoDisk(SourceFile file)
    {
        string[] words = ["disk", "image", "qcow", "vhdx", "cluster", "partition", "guest"];
        return from token in file.Syntax.DescendantTokens()
               where file.IsIn("src/QcowFs.Fuse") && token.Parent is not null && token.Text != "QcowFs"
               where char.IsLetter(token.Text.FirstOrDefault()) || token.Text.StartsWith('_')
               let word = words.FirstOrDefault(word => token.Text.Contains(word, StringComparison.OrdinalIgnoreCase))
               where word is not null
               select file.At(token, $"'{token.Text}' speaks of what is served");
    }

    private static IEnumerable<string> NativeCallsInNative(SourceFile file) =>
        from attribute in file.Nodes<AttributeSyntax>()
        where file.IsIn("src") && !file.IsIn("src/QcowFs.Native") && attribute.Name.ToString() is "LibraryImport" or "DllImport"
        select file.At(attribute, "native import");
}
