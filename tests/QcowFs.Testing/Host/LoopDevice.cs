// A block device for a test, backed by a file.
namespace QcowFs.Testing;

/// <summary>A loop device over a file, detached when disposed. Needs root.</summary>
public sealed class LoopDevice : IDisposable
{
    public LoopDevice(string file, params string[] options)
    {
        Tools.RequireRoot();
        Tools.Require("losetup");
        ToolResult result = ChildProcess.Run("losetup", ["--find", "--show", .. options, file]);
        Tools.Require(result.ExitCode == 0, $"no loop device: {result.Errors.Trim()}");
        Path = result.Output.Trim();
    }

    /// <summary>The device, such as /dev/loop0.</summary>
    public string Path { get; }

    /// <summary>The file behind a device by its name, such as loop0, or null where it has none.</summary>
    public static string? BackingFileOf(string name) => Wait.ReadFact($"/sys/block/{name}/loop/backing_file")?.TrimEnd('\n');

    public void Dispose() => ChildProcess.Run("losetup", "--detach", Path).MustSucceed();
}
