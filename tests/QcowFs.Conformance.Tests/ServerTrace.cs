// The system calls of a server while a test does something, by strace.
using System.Diagnostics;
using System.Globalization;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

/// <summary>A trace that is being taken. Begins when every thread of the server is attached to.</summary>
internal sealed class ServerTrace : IDisposable
{
    private readonly Sandbox _box;
    private readonly int _server;
    private readonly Process _strace;

    /// <param name="box">Where the server runs.</param>
    /// <param name="calls">The calls to trace, with commas.</param>
    public ServerTrace(Sandbox box, string calls)
    {
        Tools.Require("strace");
        _box = box;
        _server = Assert.Single(box.Servers());
        _strace = box.Start("strace", "-f", "-y", "-p", $"{_server}", "-o", "trace", "-e", $"trace={calls}");
        Assert.Contains("attached", _strace.StandardError.ReadLine()!, StringComparison.Ordinal);
        while (!IsTraced()) Assert.False(_strace.HasExited);
    }

    /// <summary>Ends the trace and gives its lines, each with the thread's number in front.</summary>
    public string[] End()
    {
        Detach();
        return File.ReadAllLines(_box.Path + "/trace");
    }

    /// <summary>Ends the trace and counts the syncs of a file: those that the kernel's requests waited for, and those of timers.</summary>
    public (int Foreground, int Background) CountSyncs(string file)
    {
        Dictionary<string, bool> isTimer = [];
        foreach (string task in Directory.EnumerateDirectories($"/proc/{_server}/task"))
            isTimer[Path.GetFileName(task)] = File.ReadAllText(task + "/comm").StartsWith(".NET", StringComparison.Ordinal);
        string[] syncs = [.. End().Where(l => l.Contains(" fdatasync(", StringComparison.Ordinal) && l.Contains(file, StringComparison.Ordinal))];
        int background = syncs.Count(l => isTimer.GetValueOrDefault(l.Split(' ')[0], true));
        return (syncs.Length - background, background);
    }

    public void Dispose()
    {
        Detach();
        _strace.Dispose();
    }

    private void Detach()
    {
        if (_strace.HasExited) return;
        _box.Run("kill", "-INT", _strace.Id.ToString(CultureInfo.InvariantCulture)).Expect();
        _strace.WaitForExit();
    }

    private bool IsTraced() =>
        Directory.EnumerateDirectories($"/proc/{_server}/task").All(t =>
            Wait.ReadFact(t + "/status")?.Contains("\nTracerPid:\t0\n", StringComparison.Ordinal) != true); // a thread may end meanwhile
}
