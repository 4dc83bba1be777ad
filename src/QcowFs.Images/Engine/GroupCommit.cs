// Lets callers of Sync share a commit. A caller may share only a commit that starts after it arrived: an earlier one may have
// frozen before the caller's last write.
using System.Runtime.ExceptionServices;

namespace QcowFs.Images.Engine;

/// <summary>Runs one commit at a time on behalf of all who wait. Thread-safe.</summary>
/// <param name="commit">The commit, run by one of the callers; its exception reaches everyone who shared it.</param>
internal sealed class GroupCommit(Action commit)
{
    private readonly object _gate = new();
    private long _started;
    private long _completed;
    private long _succeeded;
    private bool _running;
    private ExceptionDispatchInfo? _lastError;

    /// <summary>Whether a commit is in progress. Set before the commit does anything, cleared after it did everything.</summary>
    public bool IsRunning => Volatile.Read(ref _running);

    /// <summary>Returns when a commit that started after this call has completed; throws what it threw.</summary>
    public void Run()
    {
        lock (_gate)
        {
            long needed = _started + 1;
            while (_completed < needed)
            {
                if (_running)
                    Monitor.Wait(_gate);
                else
                    Lead();
            }

            // A later commit that succeeded covers this caller as well.
            if (_succeeded < needed)
                _lastError!.Throw();
        }
    }

    /// <summary>Runs one commit, leaving the gate while it works.</summary>
    private void Lead()
    {
        Volatile.Write(ref _running, true);
        long number = ++_started;
        Monitor.Exit(_gate);
        ExceptionDispatchInfo? error = null;
        try
        {
            commit();
        }
        catch (Exception exception)
        {
            error = ExceptionDispatchInfo.Capture(exception);
        }
        finally
        {
            Monitor.Enter(_gate);
            Volatile.Write(ref _running, false);
            _completed = number;
            if (error is null)
                _succeeded = number;
            else
                _lastError = error;
            Monitor.PulseAll(_gate);
        }
    }
}
