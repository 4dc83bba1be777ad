// QEMU's tools as referees.
using System.Text.Json;
using Xunit;

namespace QcowFs.Testing;

/// <summary>What `qemu-img check` found. ExitCode: 0 clean, 1 could not check, 2 corruption, 3 leaks only.</summary>
public readonly record struct QemuCheck(int ExitCode, long Corruptions, long Leaks, string Text);

/// <summary>Runs qemu-img, qemu-io and qemu-storage-daemon.</summary>
public static class Qemu
{
    /// <summary>Runs qemu-img, which must succeed; gives its output.</summary>
    public static string Img(params string[] arguments) => TryImg(arguments).MustSucceed();

    public static ToolResult TryImg(params string[] arguments)
    {
        Tools.Require("qemu-img");
        return ChildProcess.Run("qemu-img", arguments);
    }

    /// <summary>Runs commands of qemu-io on an image, all of which must succeed; gives the output.</summary>
    public static string Io(string format, string path, params string[] commands)
    {
        ToolResult result = TryIo(["-f", format], path, commands);
        // qemu-io ends with 0 although a command failed or a pattern did not match.
        Assert.True(
            result.ExitCode == 0 && !result.Output.Contains("failed", StringComparison.OrdinalIgnoreCase),
            $"{result.Command}: {result.Errors} {result.Output}");
        return result.Output;
    }

    public static ToolResult TryIo(string[] options, string path, params string[] commands)
    {
        Tools.Require("qemu-io");
        return ChildProcess.Run("qemu-io", [.. options, .. commands.SelectMany(command => new[] { "-c", command }), path]);
    }

    /// <summary>`qemu-img info`, of an image that may be in use.</summary>
    public static JsonElement Info(string path) => Parse(Img("info", "-U", "--output=json", path));

    public static QemuCheck Check(string path, string format = "qcow2")
    {
        ToolResult result = TryImg("check", "--output=json", "-f", format, path);
        JsonElement report = result.Output.StartsWith('{') ? Parse(result.Output) : default;
        return new QemuCheck(result.ExitCode, Number(report, "corruptions"), Number(report, "leaks"), result.Errors + result.Output);
    }

    /// <summary>Fails the test unless qemu-img finds neither error nor leak.</summary>
    public static void CheckClean(string path)
    {
        QemuCheck check = Check(path);
        Assert.True(check is { ExitCode: 0, Corruptions: 0, Leaks: 0 }, check.Text);
    }

    /// <summary>Starts qemu-storage-daemon, which holds what its arguments open until it is disposed; returns when it is ready.</summary>
    public static ChildProcess StorageDaemon(string scratchDirectory, params string[] arguments)
    {
        Tools.Require("qemu-storage-daemon");
        string pidFile = Path.Combine(scratchDirectory, Path.GetRandomFileName());
        ChildProcess daemon = ChildProcess.Start("qemu-storage-daemon", [.. arguments, "--pidfile", pidFile]);
        // The last thing it does before it serves.
        Wait.Until(() => File.Exists(pidFile) || daemon.HasExited, "qemu-storage-daemon is ready");
        return daemon;
    }

    private static long Number(JsonElement report, string key) =>
        report.ValueKind == JsonValueKind.Object && report.TryGetProperty(key, out JsonElement value) ? value.GetInt64() : 0;

    private static JsonElement Parse(string json)
    {
        using JsonDocument document = JsonDocument.Parse(json);
        return document.RootElement.Clone();
    }
}
