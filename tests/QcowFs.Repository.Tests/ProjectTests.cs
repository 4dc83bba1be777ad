// The arrows between the projects, the packages each may use, and what lies at the top of the repository.
using System.Xml.Linq;
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed class ProjectTests
{
    /// <summary>Project -> the projects and packages it may refer to: DESIGN.md section 3.</summary>
    private static readonly Dictionary<string, (string[] Projects, string[] Packages)> Source = new()
    {
        ["QcowFs.Native"] = ([], ["Mono.Posix.NETStandard"]),
        ["QcowFs.Storage"] = (["QcowFs.Native"], []),
        ["QcowFs.Images"] = (["QcowFs.Storage"], []),
        ["QcowFs.Fuse"] = (["QcowFs.Native"], []),
        ["QcowFs.FileSystem"] = (["QcowFs.Fuse", "QcowFs.Images"], []),
        ["QcowFs"] = (["QcowFs.FileSystem"],
        [
            "Microsoft.Extensions.Configuration", "Microsoft.Extensions.Configuration.Binder", "Microsoft.Extensions.Configuration.EnvironmentVariables",
            "Microsoft.Extensions.Configuration.Json", "Microsoft.Extensions.Logging", "Microsoft.Extensions.Logging.Console", "Spectre.Console",
            "System.CommandLine",
        ]),
    };

    /// <summary>Those that hand buffers to the kernel.</summary>
    private static readonly string[] UnsafeProjects = ["QcowFs.Fuse", "QcowFs.Native"];

    private static readonly string[] TopLevel =
    [
        ".ci", ".editorconfig", ".gitattributes", ".gitignore", "CHANGELOG.md", "Directory.Build.props", "Directory.Packages.props", "LICENSE", "Makefile",
        "QcowFs.sln", "README.md", "packaging", "src", "tests",
    ];

    private static readonly string[] NotOurs = [".git", "build", ".vs", ".idea", ".vscode"];

    [Fact]
    public void The_source_projects_are_those_of_the_design() =>
        Assert.Equal(Source.Keys.Order(StringComparer.Ordinal), Projects("src").Select(Path.GetFileNameWithoutExtension));

    [Fact]
    public void Project_references_are_exactly_the_arrows_of_the_design() => Assert.All(Projects("src"), path =>
        Assert.Equal(Source[Name(path)].Projects, Included(path, "ProjectReference").Select(Name).Order(StringComparer.Ordinal)));

    [Fact]
    public void Source_projects_use_only_the_packages_agreed_on() => Assert.All(Projects("src"), path =>
        Assert.Empty(Included(path, "PackageReference").Except(Source[Name(path)].Packages)));

    [Fact]
    public void Unsafe_code_is_confined() => Assert.Equal(
        UnsafeProjects,
        Projects("src").Where(path => Load(path).Descendants("AllowUnsafeBlocks").Any(element => element.Value == "true")).Select(Name));

    [Fact]
    public void Package_versions_are_exact() => Assert.All(
        Load("Directory.Packages.props").Descendants("PackageVersion"),
        element => Assert.Matches(@"^[0-9]+(\.[0-9]+){1,3}$", element.Attribute("Version")?.Value));

    [Fact]
    public void No_project_sets_a_version_of_its_own() => Assert.All(
        Repository.Files("*.csproj"),
        path => Assert.All(Load(path).Descendants("PackageReference"), element => Assert.Null(element.Attribute("Version"))));

    [Fact]
    public void Every_project_is_in_the_solution()
    {
        string solution = File.ReadAllText(Repository.Absolute("QcowFs.sln")).Replace('\\', '/');
        Assert.All(Repository.Files("*.csproj"), path => Assert.Contains($"\"{path}\"", solution, StringComparison.Ordinal));
    }

    [Fact]
    public void The_top_holds_nothing_else() => Assert.Equal(
        TopLevel,
        Directory.EnumerateFileSystemEntries(Repository.Root).Select(path => Path.GetFileName(path)!).Except(NotOurs).Order(StringComparer.Ordinal));

    private static IEnumerable<string> Projects(string folder) =>
        Repository.Files("*.csproj").Where(path => path.StartsWith(folder + "/", StringComparison.Ordinal)).OrderBy(Name, StringComparer.Ordinal);

    private static string Name(string path) => Path.GetFileNameWithoutExtension(path);

    private static XDocument Load(string path) => XDocument.Load(Repository.Absolute(path));

    private static IEnumerable<string> Included(string path, string item) =>
        Load(path).Descendants(item).Select(element => element.Attribute("Include")?.Value ?? "");
}
