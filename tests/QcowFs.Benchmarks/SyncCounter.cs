// Counts the device syncs of a server by tracing its system calls.
using System.Diagnostics;
using System.Globalization;

namespace QcowFs.Benchmarks;

internal sealed class SyncCounter : IDisposable
{
    private readonly string _trace = Path.GetTempFileName();
    private readonly Process _strace;

    public SyncCounter(int server)
    {
        _strace = Command.Start(
            "strace",
            ["-f", "-e", "trace=fsync,fdatasync,sync_file_range,syncfs", "-o", _trace, "-p", server.ToString(CultureInfo.InvariantCulture)]);

        // "strace: Process N attached": from here on nothing is missed.
        _ = _strace.StandardError.ReadLine() ?? throw new IOException("strace does not attach");
    }

    /// <summary>Detaches and counts; a call that another thread's line interrupts is "resumed" on a second one.</summary>
    public int Count()
    {
        Detach();
        return File.ReadLines(_trace).Count(line => line.Contains("sync", StringComparison.Ordinal) && !line.Contains("resumed", StringComparison.Ordinal));
    }

    public void Dispose()
    {
        Detach();
        _strace.Dispose();
        File.Delete(_trace);
    }

    private void Detach()
    {
        if (!_strace.HasExited)
        {
            _ = Command.Run("kill", ["-INT", _strace.Id.ToString(CultureInfo.InvariantCulture)]);
            _strace.WaitForExit();
        }
    }
}
