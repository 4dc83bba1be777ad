// Runs other programs. Whatever happens, and also on Ctrl-C, no child outlives the benchmark.
using System.ComponentModel;
using System.Diagnostics;

namespace QcowFs.Benchmarks;

internal static class Command
{
    /// <summary>Runs a program to its end and returns its standard output; throws where it fails.</summary>
    public static string Run(string program, IEnumerable<string> arguments, CancellationToken cancellation = default)
    {
        using Process process = Start(program, arguments);
        using CancellationTokenRegistration registration = cancellation.Register(() => Kill(process));
        Task<string> errors = process.StandardError.ReadToEndAsync(CancellationToken.None);
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        cancellation.ThrowIfCancellationRequested();
        return process.ExitCode == 0
            ? output
            : throw new IOException($"{program} ended with {process.ExitCode}: {errors.Result.Trim()} {output.Trim()}");
    }

    /// <summary>Starts a program with all its streams redirected, standard input at its end.</summary>
    public static Process Start(string program, IEnumerable<string> arguments)
    {
        var start = new ProcessStartInfo(program, arguments)
        {
            UseShellExecute = false,
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        try
        {
            Process process = Process.Start(start) ?? throw new IOException($"{program}: does not start");
            process.StandardInput.Close();
            return process;
        }
        catch (Win32Exception failure)
        {
            throw new IOException($"{program}: {failure.Message}", failure);
        }
    }

    /// <summary>Starts a program whose output nobody wants.</summary>
    public static Process StartSilent(string program, IEnumerable<string> arguments)
    {
        Process process = Start(program, arguments);
        process.OutputDataReceived += static (_, _) => { };
        process.ErrorDataReceived += static (_, _) => { };
        process.BeginOutputReadLine();
        process.BeginErrorReadLine();
        return process;
    }

    /// <summary>Whether a program is in the search path.</summary>
    public static bool Exists(string program) => (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Any(directory => File.Exists(Path.Combine(directory, program)));

    /// <summary>Waits for the end of a server that was told to end; kills one that does not.</summary>
    public static void End(Process process)
    {
        if (!process.WaitForExit(TimeSpan.FromSeconds(30)))
        {
            Kill(process);
        }

        process.Dispose();
    }

    public static void Kill(Process process)
    {
        if (!process.HasExited)
        {
            process.Kill(entireProcessTree: true);
        }
    }
}
