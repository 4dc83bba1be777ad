// What `qemu-img check` says in full: its exit code, and its report where it could make one.
using System.Text.Json;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Support;

internal static class QemuImg
{
    public static (int ExitCode, JsonElement? Report) Check(string path)
    {
        ToolResult result = Qemu.TryImg("check", "--output=json", "-f", "qcow2", path);
        int start = result.Output.IndexOf('{', StringComparison.Ordinal);
        return (result.ExitCode, start < 0 ? null : JsonDocument.Parse(result.Output[start..]).RootElement.Clone());
    }
}
