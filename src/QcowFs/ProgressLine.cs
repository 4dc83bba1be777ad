// How far a long command has come, for a person who watches: one line on standard error, only where that is a terminal.
using System.Globalization;

namespace QcowFs;

/// <summary>A line that is overwritten. Used by one thread.</summary>
internal sealed class ProgressLine(string subject) : IDisposable
{
    private static readonly TimeSpan Interval = TimeSpan.FromMilliseconds(100);

    private readonly bool _isShown = !Console.IsErrorRedirected;
    private long _last;
    private bool _isDirty;

    /// <summary>Shows how much of a whole is done. Cheap: it may be called for each step.</summary>
    public void Report(long done, long all)
    {
        if (!_isShown || (_last != 0 && TimeProvider.System.GetElapsedTime(_last) < Interval)) return;
        _last = TimeProvider.System.GetTimestamp();
        _isDirty = true;
        double percent = all == 0 ? 100 : 100.0 * done / all;
        Console.Error.Write(string.Create(CultureInfo.InvariantCulture, $"\r{subject}: {percent:0.0} %\x1b[K"));
    }

    /// <summary>Takes the line away.</summary>
    public void Clear()
    {
        if (_isDirty) Console.Error.Write("\r\x1b[K");
        _isDirty = false;
    }

    public void Dispose() => Clear();
}
