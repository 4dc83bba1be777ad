// Finds the repository that these tests belong to and its files. Build output is not part of it.
namespace QcowFs.Repository.Tests;

internal static class Repository
{
    private static readonly string[] NotSource = ["bin", "obj", "build", ".git", ".vs", "TestResults", "BenchmarkDotNet.Artifacts"];

    private static readonly Lazy<IReadOnlyList<SourceFile>> AllSources = new(() =>
        [.. Files("*.cs").Select(path => new SourceFile(path, File.ReadAllText(Absolute(path))))]);

    /// <summary>The directory that holds QcowFs.sln.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>All C# files, with paths relative to the root.</summary>
    public static IReadOnlyList<SourceFile> Sources => AllSources.Value;

    /// <summary>The built program, or null. The test runner names it; a lone `dotnet test` finds it after `make build`.</summary>
    public static string? Program
    {
        get
        {
            string path = Environment.GetEnvironmentVariable("QCOWFS_PROGRAM") ?? Absolute("build/qcowfs");
            return File.Exists(path) ? path : null;
        }
    }

    public static string Absolute(string path) => Path.Combine(Root, path);

    /// <summary>Paths relative to the root, with '/', in a fixed order.</summary>
    public static IEnumerable<string> Files(string pattern) => Files(Root, pattern)
        .Select(path => Path.GetRelativePath(Root, path))
        .Order(StringComparer.Ordinal);

    private static IEnumerable<string> Files(string directory, string pattern) => Directory.EnumerateFiles(directory, pattern)
        .Concat(Directory.EnumerateDirectories(directory)
            .Where(child => !NotSource.Contains(Path.GetFileName(child)))
            .SelectMany(child => Files(child, pattern)));

    private static string FindRoot()
    {
        string? directory = AppContext.BaseDirectory;
        while (directory is not null && !File.Exists(Path.Combine(directory, "QcowFs.sln")))
        {
            directory = Path.GetDirectoryName(directory);
        }

        return directory ?? throw new InvalidOperationException("These tests run inside the repository's own build output.");
    }
}
