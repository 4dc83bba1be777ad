// The log of the servers: one line an event, all servers of a user in one file, so that there is one place to look.
using System.Globalization;
using System.Text;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>Appends lines to a log file. Thread-safe. A log that cannot be written never stops the server.</summary>
internal sealed class ServerLog : IDisposable
{
    private const long KeepBelow = 1 << 20;

    private readonly Lock _gate = new(); // guards _file
    private readonly FileStream? _file;
    private readonly TimeProvider _time;
    private readonly bool _toStandardError;
    private readonly string _mountPoint;

    /// <param name="path">The file; null: standard error (--foreground without --log).</param>
    /// <param name="mountPoint">Named in every line.</param>
    /// <param name="time">The clock.</param>
    public ServerLog(string? path, string mountPoint, TimeProvider time)
    {
        _time = time;
        _mountPoint = mountPoint;
        _toStandardError = path is null;
        if (path is null) return;
        try
        {
            Rotate(path);
            _file = new FileStream(path, new FileStreamOptions
            {
                Mode = FileMode.Append,
                Access = FileAccess.Write,
                Share = FileShare.ReadWrite | FileShare.Delete,
                BufferSize = 0,
                UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
            });
        }
        catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
        {
            throw new CommandFailure(path, "the log cannot be opened", "give --log a file that you may write");
        }
    }

    /// <summary>Writes one line.</summary>
    public void Write(string text)
    {
        string line = string.Create(
            CultureInfo.InvariantCulture,
            $"{_time.GetUtcNow():yyyy-MM-ddTHH:mm:ssZ} [{Environment.ProcessId}] {HostText.Show(_mountPoint)}: {HostText.Show(text.ReplaceLineEndings(" "))}\n");
        lock (_gate)
        {
            try
            {
                if (_toStandardError) Console.Error.Write(line);
                else _file!.Write(Encoding.UTF8.GetBytes(line)); // one write to a file opened for appending: lines do not mix
            }
            catch (IOException)
            {
                // A full disk takes no log lines. The receipt and the exit code tell what matters; there is nobody else to tell.
                return;
            }
        }
    }

    public void Dispose()
    {
        lock (_gate) _file?.Dispose();
    }

    /// <summary>Keeps one old file. Servers that still write to it go on doing so.</summary>
    private static void Rotate(string path)
    {
        FileInfo file = new(path);
        if (file.Exists && file.Length > KeepBelow) File.Move(path, path + ".1", overwrite: true);
    }
}
