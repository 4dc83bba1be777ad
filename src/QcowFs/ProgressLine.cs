// One line on a terminal that says how far a long piece of work is. Nothing is shown of work that is soon done.
using System.Globalization;

namespace QcowFs;

/// <summary>Shows progress until it is disposed, then leaves no trace. <see cref="Report(double)"/> may be called at any rate by one thread;
/// a timer draws.</summary>
internal sealed class ProgressLine : IDisposable
{
    private static readonly TimeSpan First = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan Interval = TimeSpan.FromMilliseconds(250);

    private readonly Lock _lock = new();
    private readonly TextWriter _terminal;
    private readonly TimeProvider _time;
    private readonly string _work;
    private readonly long _start;
    private readonly ITimer _timer;
    private double _part = -1; // guarded by the lock, as all below
    private int _pass = 1;
    private bool _isShown;
    private bool _isDone;

    /// <param name="terminal">Where to draw.</param>
    /// <param name="time">The clock.</param>
    /// <param name="work">What is being done: "checking".</param>
    public ProgressLine(TextWriter terminal, TimeProvider time, string work)
    {
        _terminal = terminal;
        _time = time;
        _work = work;
        _start = time.GetTimestamp();
        _timer = time.CreateTimer(_ => Draw(), null, First, Interval);
    }

    /// <summary>A line on stderr where that is a terminal, else null.</summary>
    public static ProgressLine? OnTerminal(string work) =>
        Console.IsErrorRedirected ? null : new ProgressLine(Console.Error, TimeProvider.System, work);

    /// <summary>Notes that a part of the work, 0 to 1, is done. A part smaller than the one before begins another pass.</summary>
    public void Report(double part)
    {
        lock (_lock)
        {
            if (part < _part)
                _pass++;
            _part = part;
        }
    }

    /// <summary>As <see cref="Report(double)"/>, of a whole.</summary>
    public void Report(long done, long all) => Report(all == 0 ? 1 : (double)done / all);

    /// <summary>Takes the line away for good.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            _isDone = true;
            if (_isShown)
                _terminal.Write("\r\x1b[K");
            _isShown = false;
            _terminal.Flush();
        }

        _timer.Dispose();
    }

    private void Draw()
    {
        lock (_lock)
        {
            if (_isDone)
                return;
            _isShown = true;
            TimeSpan elapsed = _time.GetElapsedTime(_start);
            string pass = _pass == 1 ? "" : string.Create(CultureInfo.InvariantCulture, $", pass {_pass}");
            string part = _part < 0 ? "" : string.Create(CultureInfo.InvariantCulture, $" {_part * 100:0} %");
            _terminal.Write(string.Create(CultureInfo.InvariantCulture, $"\r\x1b[K{_work}{pass}:{part} ({elapsed.TotalSeconds:0} s)"));
            _terminal.Flush();
        }
    }
}
