// What must go through a seam: host files, time, randomness, threads. The banned symbols in src/ catch most of it in the compiler;
// these rules know files, where the compiler knows only projects.
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.CSharp.Syntax;

namespace QcowFs.Repository.Tests.Rules;

internal static class SeamRules
{
    private static readonly string[] BelowFileSystem = ["src/QcowFs.Native", "src/QcowFs.Storage", "src/QcowFs.Images", "src/QcowFs.Fuse"];

    private static readonly string[] HostFileTypes =
        ["File", "Directory", "FileStream", "FileInfo", "DirectoryInfo", "RandomAccess", "StreamReader", "StreamWriter", "FileSystemWatcher", "DriveInfo"];

    /// <summary>Files that may reach the host's file system all the same, each with its reason.</summary>
    private static readonly Dictionary<string, string> HostFileExceptions = new()
    {
        ["src/QcowFs.Storage/HostFiles.cs"] = "opens the files that FileStorage serves",
        ["src/QcowFs.Storage/HostDirectory.cs"] = "lists directories of such files and opens them by descriptor",
        ["src/QcowFs.Storage/FileTransfer.cs"] = "FileStorage's loops over short transfers",
        ["src/QcowFs.Storage/DirectIo.cs"] = "FileStorage's direct mode",
        ["src/QcowFs.Storage/QemuLocks.cs"] = "locks the files that FileStorage serves, and finds in /proc who holds a lock",
    };

    private static readonly string[] AsyncTypes = ["Task", "ValueTask", "TaskCompletionSource", "IAsyncEnumerable", "IAsyncDisposable", "ThreadPool", "Parallel"];

    private static readonly string[] RandomTypes = ["Stopwatch", "RandomNumberGenerator"];

    private static readonly string[] ClockMembers =
    [
        "DateTime.Now", "DateTime.UtcNow", "DateTime.Today", "DateTimeOffset.Now", "DateTimeOffset.UtcNow", "Environment.TickCount", "Environment.TickCount64",
        "Guid.NewGuid", "Guid.CreateVersion7", "Random.Shared", "System.GetUtcNow", "System.GetLocalNow", "System.GetTimestamp",
    ];

    public static IEnumerable<Rule> All =>
    [
        new("host files are reached only through FileStorage and QcowFs.Native", HostFiles)
        {
            Broken =
            [
                new("src/QcowFs.Images/A.cs", "class A { byte[] B(string p) => File.ReadAllBytes(p); }"),
                new("src/QcowFs.Images/Qcow2/A.cs", "class A { void B(Microsoft.Win32.SafeHandles.SafeFileHandle h) => System.IO.RandomAccess.Read(h, [], 0); }"),
                new("src/QcowFs.Storage/MemoryStorage.cs", "class A { object b = new FileStream(\"a\", FileMode.Open); }"),
                new("src/QcowFs.FileSystem/A.cs", "class A { bool B(string p) => Directory.Exists(p); }"),
            ],
            Kept =
            [
                new("src/QcowFs.Storage/FileStorage.cs", "class A { int b = Libc.Open(\"a\"); }"),
                new("src/QcowFs.Native/Libc.cs", "class A { bool B(string p) => File.Exists(p); }"),
                new("src/QcowFs.Fuse/A.cs", "class A { int B(Entry e) => Libc.Write(e.Directory.Length); }"),
                new("src/QcowFs.Images/A.cs", "class A { string File { get; } = \"\"; int B => File.Length; FileMode mode; }"),
            ],
        },
        new("nothing is asynchronous below the file system", NoAsync)
        {
            Broken = [new("src/QcowFs.Images/A.cs", "class A { async void B() { } }"), new("src/QcowFs.Fuse/A.cs", "class A { Task B() => Task.CompletedTask; }"),
                new("src/QcowFs.Storage/A.cs", "class A { void B() => ThreadPool.QueueUserWorkItem(_ => { }); }")],
            Kept = [new("src/QcowFs/A.cs", "class A { async Task B() => await C(); }"), new("src/QcowFs.Images/A.cs", "class A { void B() => new Thread(C).Start(); }")],
        },
        new("time and randomness are injected", InjectedTime)
        {
            Broken =
            [
                new("src/QcowFs.Images/A.cs", "class A { object b = DateTime.UtcNow; }"),
                new("src/QcowFs.Images/A.cs", "class A { object b = System.Guid.NewGuid(); }"),
                new("src/QcowFs.Fuse/A.cs", "class A { object b = new Random(); }"),
                new("src/QcowFs.Storage/A.cs", "class A { long b = Stopwatch.GetTimestamp(); }"),
                new("src/QcowFs.Storage/A.cs", "class A { object b = TimeProvider.System.GetUtcNow(); }"),
            ],
            Kept =
            [
                new("src/QcowFs/A.cs", "class A { object b = DateTime.UtcNow; }"),
                new("src/QcowFs.Images/A.cs", "class A(TimeProvider time) { object B => time.GetUtcNow(); }"),
                new("src/QcowFs.Images/A.cs", "class Options { TimeProvider Time { get; init; } = TimeProvider.System; }"),
            ],
        },
        new("tests are repeatable", SeededTests)
        {
            Broken = [new("tests/A.Tests/A.cs", "class A { object b = new Random(); }"), new("tests/A.Tests/A.cs", "class A { int B => Random.Shared.Next(); }"),
                new("tests/A.Tests/A.cs", "class A { object b = new System.Random(); }")],
            Kept = [new("tests/A.Tests/A.cs", "class A { object b = new Random(42); }"), new("tests/A.Tests/A.cs", "class A { Random B(int seed) => new(seed); }")],
        },
        new("tests wait for events, not for time", NoSleepInTests)
        {
            Broken = [new("tests/A.Tests/A.cs", "class A { void B() => Thread.Sleep(10); }"), new("tests/A.Tests/A.cs", "class A { object B() => Task.Delay(10); }")],
            Kept = [new("tests/QcowFs.Testing/Wait.cs", "class A { void B() => Thread.Sleep(1); }")],
        },
    ];

    private static IEnumerable<string> HostFiles(SourceFile file)
    {
        bool allowed = !file.IsIn("src") || file.IsIn("src/QcowFs.Native", "src/QcowFs")
            || Path.GetFileName(file.Path).StartsWith("FileStorage", StringComparison.Ordinal)
            || HostFileExceptions.ContainsKey(file.Path);
        // The FUSE library's native calls go to its own device, never to a host file.
        return allowed ? [] : UsesOf(file, file.IsIn("src/QcowFs.Fuse") ? HostFileTypes : [.. HostFileTypes, "Libc"]);
    }

    private static IEnumerable<string> NoAsync(SourceFile file) =>
        !file.IsIn(BelowFileSystem)
            ? []
            : UsesOf(file, AsyncTypes).Concat(
                from token in file.Syntax.DescendantTokens()
                where token.IsKind(SyntaxKind.AsyncKeyword) || token.IsKind(SyntaxKind.AwaitKeyword)
                select file.At(token, token.Text));

    private static IEnumerable<string> InjectedTime(SourceFile file) =>
        !file.IsIn("src") || file.IsIn("src/QcowFs")
            ? []
            : UsesOf(file, RandomTypes).Concat(UnseededRandom(file)).Concat(
                from access in file.Nodes<MemberAccessExpressionSyntax>()
                where ClockMembers.Contains($"{LastName(access.Expression)}.{access.Name.Identifier.Text}")
                select file.At(access, access.ToString()));

    private static IEnumerable<string> SeededTests(SourceFile file) =>
        !file.IsIn("tests")
            ? []
            : UnseededRandom(file).Concat(
                from access in file.Nodes<MemberAccessExpressionSyntax>()
                where LastName(access.Expression) == "Random" && access.Name.Identifier.Text == "Shared"
                select file.At(access, access.ToString()));

    private static IEnumerable<string> NoSleepInTests(SourceFile file) =>
        from access in file.Nodes<MemberAccessExpressionSyntax>()
        where file.IsIn("tests") && !file.IsIn("tests/QcowFs.Testing", "tests/QcowFs.Benchmarks")
        where $"{LastName(access.Expression)}.{access.Name.Identifier.Text}" is "Thread.Sleep" or "Task.Delay"
        select file.At(access, access.ToString());

    private static IEnumerable<string> UnseededRandom(SourceFile file) =>
        from creation in file.Nodes<ObjectCreationExpressionSyntax>()
        where creation.Type.ToString().Split('.')[^1] == "Random" && creation.ArgumentList is not { Arguments.Count: > 0 }
        select file.At(creation, "Random without a seed");

    // A type is used where its name is a type, or stands to the left of a dot and is not a member of this file's own classes.
    private static IEnumerable<string> UsesOf(SourceFile file, string[] types)
    {
        HashSet<string> members =
        [
            .. file.Nodes<PropertyDeclarationSyntax>().Select(property => property.Identifier.Text),
            .. file.Nodes<ParameterSyntax>().Select(parameter => parameter.Identifier.Text),
            .. file.Nodes<EnumMemberDeclarationSyntax>().Select(member => member.Identifier.Text),
        ];
        return from name in file.Names()
               let text = name.Identifier.Text
               where types.Contains(text) && !members.Contains(text)
               where name.Parent is not MemberAccessExpressionSyntax access || access.Expression == name || access.Expression.ToString() is "System.IO" or "IO"
               where name.Parent is not (NameColonSyntax or NameEqualsSyntax or AssignmentExpressionSyntax or NameMemberCrefSyntax)
               select file.At(name, $"uses {text}");
    }

    private static string LastName(ExpressionSyntax expression) => expression.ToString().Split('.')[^1];
}
