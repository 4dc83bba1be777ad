// QcowFs.Images with one line changed: compiled from its sources, loaded beside the real one, and put to the tests' own probes.
using System.Reflection;
using System.Runtime.Loader;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.Emit;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests.Mutations;

/// <summary>One defect, planted on purpose.</summary>
/// <param name="Rule">The invariant that it breaks.</param>
/// <param name="File">The source file, below src/QcowFs.Images.</param>
/// <param name="Find">Text that stands there exactly once.</param>
/// <param name="Replace">What stands there instead.</param>
/// <param name="Probe">The method of <see cref="Probes"/> that must fail.</param>
public sealed record Mutation(string Rule, string File, string Find, string Replace, string Probe)
{
    public override string ToString() => $"{Rule}: {Probe}";
}

/// <summary>Compiles and runs mutants. The sources are parsed, and the references read, once for all of them; a mutant costs the parsing
/// of its one file and the emission of the assembly.</summary>
internal static class Mutant
{
    private const string Target = "QcowFs.Images";

    /// <summary>What the build adds to the project's own sources.</summary>
    private const string Preamble =
        """
        global using System;
        global using System.Collections.Generic;
        global using System.IO;
        global using System.Linq;
        global using System.Threading;
        global using System.Threading.Tasks;
        [assembly: System.Runtime.CompilerServices.InternalsVisibleTo("QcowFs.Testing")]
        [assembly: System.Runtime.CompilerServices.InternalsVisibleTo("QcowFs.Simulation.Tests")]
        """;

    private static readonly CSharpParseOptions ParseOptions = new(LanguageVersion.Latest);
    private static readonly string Root = FindRoot();
    private static readonly Lazy<(CSharpCompilation Whole, Dictionary<string, SyntaxTree> Trees)> Original = new(Parse);

    /// <summary>Fails the test unless the mutation's probe fails on the mutated assembly.</summary>
    public static void MustBeCaught(Mutation mutation, ITestOutputHelper output)
    {
        Exception? failure = Run(mutation);
        Assert.True(failure is not null, $"{mutation.Rule}: the probe {mutation.Probe} does not notice");
        output.WriteLine($"{mutation.Rule}: caught by {mutation.Probe}: {failure.Message}");
    }

    /// <summary>Gives the probe's failure, or null where it passed.</summary>
    private static Exception? Run(Mutation mutation)
    {
        byte[] assembly = Compile(mutation);
        Context context = new(assembly);
        try
        {
            Type probes = context.LoadFromAssemblyName(typeof(Probes).Assembly.GetName()).GetType(typeof(Probes).FullName!)!;
            MethodInfo probe = probes.GetMethod(mutation.Probe, BindingFlags.Static | BindingFlags.Public)!;
            probe.Invoke(null, null);
            return null;
        }
        catch (TargetInvocationException exception)
        {
            return exception.InnerException;
        }
        finally
        {
            context.Unload();
        }
    }

    private static byte[] Compile(Mutation mutation)
    {
        (CSharpCompilation whole, Dictionary<string, SyntaxTree> trees) = Original.Value;
        SyntaxTree original = trees[mutation.File];
        string text = original.ToString();
        Assert.True(
            text.Split(mutation.Find).Length == 2,
            $"the mutation for {mutation.Rule} does not fit {mutation.File} any more: its text stands there {text.Split(mutation.Find).Length - 1} times");
        SyntaxTree mutated = CSharpSyntaxTree.ParseText(text.Replace(mutation.Find, mutation.Replace, StringComparison.Ordinal), ParseOptions, mutation.File);
        using MemoryStream assembly = new();
        EmitResult result = whole.ReplaceSyntaxTree(original, mutated).Emit(assembly);
        Assert.True(result.Success, $"the mutation for {mutation.Rule} does not compile: {string.Join("; ", result.Diagnostics.Where(d => d.Severity == DiagnosticSeverity.Error))}");
        return assembly.ToArray();
    }

    private static (CSharpCompilation Whole, Dictionary<string, SyntaxTree> Trees) Parse()
    {
        string project = Path.Combine(Root, "src", Target);
        Dictionary<string, SyntaxTree> trees = [];
        foreach (string source in Directory.EnumerateFiles(project, "*.cs", SearchOption.AllDirectories))
        {
            string relative = Path.GetRelativePath(project, source);
            if (relative.StartsWith("bin/", StringComparison.Ordinal) || relative.StartsWith("obj/", StringComparison.Ordinal))
                continue;
            trees.Add(relative, CSharpSyntaxTree.ParseText(File.ReadAllText(source), ParseOptions, relative));
        }

        IEnumerable<MetadataReference> references = ((string)AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES")!).Split(':')
            .Where(path => !path.EndsWith($"/{Target}.dll", StringComparison.Ordinal))
            .Select(path => MetadataReference.CreateFromFile(path));
        CSharpCompilationOptions options = new(
            OutputKind.DynamicallyLinkedLibrary, optimizationLevel: OptimizationLevel.Release, checkOverflow: true, allowUnsafe: true,
            nullableContextOptions: NullableContextOptions.Enable);
        return (CSharpCompilation.Create(Target, [.. trees.Values, CSharpSyntaxTree.ParseText(Preamble, ParseOptions)], references, options), trees);
    }

    private static string FindRoot()
    {
        string? folder = AppContext.BaseDirectory;
        while (folder is not null && !File.Exists(Path.Combine(folder, "QcowFs.sln")))
            folder = Path.GetDirectoryName(folder);
        return folder ?? throw new InvalidOperationException("the sources are not above the test's own folder");
    }

    /// <summary>Loads the mutated assembly and copies of those that refer to it; shares everything else.</summary>
    private sealed class Context(byte[] mutated) : AssemblyLoadContext(isCollectible: true)
    {
        protected override Assembly? Load(AssemblyName assemblyName)
        {
            switch (assemblyName.Name)
            {
                case "QcowFs.Images":
                    using (MemoryStream stream = new(mutated))
                        return LoadFromStream(stream);
                case "QcowFs.Testing" or "QcowFs.Simulation.Tests":
                    using (FileStream stream = File.OpenRead(Path.Combine(AppContext.BaseDirectory, assemblyName.Name + ".dll")))
                        return LoadFromStream(stream);
                default:
                    return null;
            }
        }
    }
}
