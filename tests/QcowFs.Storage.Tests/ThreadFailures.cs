// Threads of a stress test: their failures come out in the test's own thread, and a hang fails the test.
using System.Runtime.ExceptionServices;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests;

internal sealed class ThreadFailures : IDisposable
{
    private readonly List<Thread> _threads = [];
    private volatile Exception? _first;

    public Thread Start(System.Action work)
    {
        var thread = new Thread(() =>
        {
            try
            {
                work();
            }
            catch (Exception e)
            {
                _first ??= e;
            }
        })
        { IsBackground = true };
        _threads.Add(thread);
        thread.Start();
        return thread;
    }

    public void Join()
    {
        Wait.Until(() => _first != null || _threads.TrueForAll(thread => !thread.IsAlive), "the threads are done");
        if (_first is { } failure)
            ExceptionDispatchInfo.Throw(failure);
    }

    public void Dispose()
    {
        // A thread that has failed may have left others at a barrier; they are in the background and end with the process.
        Assert.True(_first != null || _threads.TrueForAll(thread => !thread.IsAlive), "A thread still runs.");
    }
}
