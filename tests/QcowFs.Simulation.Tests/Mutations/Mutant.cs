// QcowFs.Images with one line changed: compiled from its sources, loaded beside the real one, and put to the tests' own probes.
using System.Reflection;
using System.Runtime.Loader;
using Xunit;

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

internal static class Mutant
{
    private static readonly string Root = FindRoot();

    /// <summary>Runs the mutation's probe against the mutated assembly. Gives the probe's failure, or null where it passed.</summary>
    public static Exception? Run(Mutation mutation)
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
        string folder = Directory.CreateTempSubdirectory("qcowfs-mutant-").FullName;
        try
        {
            string project = Path.Combine(Root, "src", "QcowFs.Images");
            string mutated = Path.Combine(project, mutation.File);
            List<string> sources = [];
            foreach (string source in Directory.EnumerateFiles(project, "*.cs", SearchOption.AllDirectories))
            {
                string relative = Path.GetRelativePath(project, source);
                if (relative.StartsWith("bin", StringComparison.Ordinal) || relative.StartsWith("obj", StringComparison.Ordinal))
                    continue;
                sources.Add(source == mutated ? Mutate(source, mutation, folder) : source);
            }

            sources.Add(Preamble(folder));
            string output = Path.Combine(folder, "QcowFs.Images.dll");
            string response = Path.Combine(folder, "compile.rsp");
            IEnumerable<string> references = ((string)AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES")!).Split(':')
                .Where(path => !path.EndsWith("QcowFs.Images.dll", StringComparison.Ordinal))
                .Select(path => $"-reference:\"{path}\"");
            File.WriteAllLines(
                response,
                [
                    "-target:library", "-nullable:enable", "-checked+", "-langversion:latest", "-optimize+", "-nowarn:1591", "-unsafe+",
                    $"-out:\"{output}\"", .. references, .. sources.Select(path => $"\"{path}\""),
                ]);
            SimulatedImages.Run("dotnet", "exec", CompilerPath(), "-noconfig", "-nologo", "@" + response);
            return File.ReadAllBytes(output);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static string Mutate(string source, Mutation mutation, string folder)
    {
        string text = File.ReadAllText(source);
        Assert.True(
            text.Split(mutation.Find).Length == 2,
            $"the mutation for {mutation.Rule} does not fit {mutation.File} any more: its text stands there {text.Split(mutation.Find).Length - 1} times");
        string path = Path.Combine(folder, Path.GetFileName(source));
        File.WriteAllText(path, text.Replace(mutation.Find, mutation.Replace, StringComparison.Ordinal));
        return path;
    }

    /// <summary>What the build adds to the project's own sources.</summary>
    private static string Preamble(string folder)
    {
        string path = Path.Combine(folder, "Preamble.cs");
        File.WriteAllText(
            path,
            """
            global using System;
            global using System.Collections.Generic;
            global using System.IO;
            global using System.Linq;
            global using System.Threading;
            global using System.Threading.Tasks;
            [assembly: System.Runtime.CompilerServices.InternalsVisibleTo("QcowFs.Testing")]
            [assembly: System.Runtime.CompilerServices.InternalsVisibleTo("QcowFs.Simulation.Tests")]
            """);
        return path;
    }

    private static string CompilerPath()
    {
        // "10.0.100 [/usr/share/dotnet/sdk]"; the last one is the newest.
        string line = SimulatedImages.Run("dotnet", "--list-sdks").Split('\n', StringSplitOptions.RemoveEmptyEntries).Last(l => l.StartsWith("10.", StringComparison.Ordinal));
        string[] parts = line.Trim().TrimEnd(']').Split(" [");
        return Path.Combine(parts[1], parts[0], "Roslyn", "bincore", "csc.dll");
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
