// qemu-img and qemu-io as the referees. They are required: the project's `make deps` installs them.
using System.Diagnostics;
using System.Text.Json;

namespace QcowFs.Images.Tests.Support;

internal readonly record struct ToolResult(int ExitCode, string Output, string Errors);

internal static class QemuImg
{
    // Far above what any call here takes: a hang fails the test instead of stopping the suite.
    private static readonly TimeSpan HangLimit = TimeSpan.FromMinutes(2);

    /// <summary>Runs qemu-img; the test fails unless it succeeds.</summary>
    public static string Run(params string[] arguments)
    {
        ToolResult result = Try("qemu-img", arguments);
        Assert.True(result.ExitCode == 0, $"qemu-img {string.Join(' ', arguments)}: {result.ExitCode} {result.Errors}");
        return result.Output;
    }

    /// <summary>Runs commands of qemu-io on an image.</summary>
    public static string Io(string format, string path, params string[] commands)
    {
        ToolResult result = Try("qemu-io", ["-f", format, .. commands.SelectMany(c => (string[])["-c", c]), path]);
        Assert.True(result.ExitCode == 0 && !result.Output.Contains("failed"), $"qemu-io: {result.Output} {result.Errors}");
        return result.Output;
    }

    public static JsonElement Info(string path) =>
        JsonDocument.Parse(Run("info", "--output=json", "-U", path)).RootElement.Clone();

    /// <summary>What `qemu-img check` says: its exit code, and its report where it could make one.</summary>
    public static (int ExitCode, JsonElement? Report) Check(string path)
    {
        ToolResult result = Try("qemu-img", "check", "--output=json", "-f", "qcow2", path);
        int start = result.Output.IndexOf('{');
        return (result.ExitCode, start < 0 ? null : JsonDocument.Parse(result.Output[start..]).RootElement.Clone());
    }

    public static ToolResult Try(string tool, params string[] arguments)
    {
        ProcessStartInfo start = new(tool, arguments)
        {
            UseShellExecute = false,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        using Process process = Process.Start(start) ?? throw new InvalidOperationException($"{tool} did not start");
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> errors = process.StandardError.ReadToEndAsync();
        if (!process.WaitForExit(HangLimit))
        {
            process.Kill();
            throw new TimeoutException($"{tool} {string.Join(' ', arguments)} hung");
        }

        return new ToolResult(process.ExitCode, output.GetAwaiter().GetResult(), errors.GetAwaiter().GetResult());
    }
}
