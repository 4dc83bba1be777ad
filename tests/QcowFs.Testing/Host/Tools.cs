// What a test needs of the machine. A person's `make test` skips a test whose needs are not met and says so; CI, where CI=true,
// fails it, so that nothing is quietly left untested.
using Xunit;

namespace QcowFs.Testing;

/// <summary>Requirements of tests; each either returns or skips the test (which must be a SkippableFact or SkippableTheory).</summary>
public static class Tools
{
    private static readonly string[] SearchPath =
        [.. (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':', StringSplitOptions.RemoveEmptyEntries), "/usr/sbin", "/sbin"];

    public static bool IsRoot => Environment.UserName == "root";

    /// <summary>The path of a program, or null.</summary>
    public static string? Find(string program) =>
        SearchPath.Select(directory => Path.Combine(directory, program)).FirstOrDefault(File.Exists);

    public static void Require(params string[] programs)
    {
        string[] missing = [.. programs.Where(program => Find(program) == null)];
        Require(missing.Length == 0, $"{string.Join(", ", missing)} not installed (make deps)");
    }

    public static void RequireRoot() => Require(IsRoot, "not root");

    public static void RequireFuse() => Require(File.Exists("/dev/fuse"), "no /dev/fuse");

    public static void RequireDirectory(string path) => Require(Directory.Exists(path), $"no {path}");

    /// <summary>Skips the test, or fails it in CI, unless the condition holds.</summary>
    public static void Require(bool condition, string otherwise) =>
        Require(condition, otherwise, Environment.GetEnvironmentVariable("CI") == "true");

    public static void Require(bool condition, string otherwise, bool isCi)
    {
        if (condition)
            return;
        if (isCi)
            Assert.Fail($"CI must not skip this test: {otherwise}.");
        Skip.If(true, otherwise);
    }
}
