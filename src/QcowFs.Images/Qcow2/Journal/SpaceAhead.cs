// Host space that is written with zeros ahead of its use, as long as a load syncs often.
//
// A sync after a write into space that the host only reserved changes the host's own allocation, which costs a transaction of its file
// system; into space that was written before it is a plain write. So while commits come with a few new clusters each, space is written
// with zeros in batches before it is handed out.
//
// Z1. Whoever writes zeros has taken the clusters: nobody else can be given them until they are written (HostAllocator, A6).
// Z2. Only space that reads as zeros is taken, so that it does before, during and after, on the medium too (J4), and a crash leaves free
//     space that is free.
// Z3. No more than a batch beyond what is kept, only from space that the host has reserved already, and all of it is given back at the end.
using QcowFs.Images.Engine;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>Keeps zero-written space ready. <see cref="AfterCommit"/> is called by the one thread that commits.</summary>
/// <param name="state">The image.</param>
/// <param name="inBackground">Whether a thread of its own writes, or the one that commits.</param>
internal sealed class SpaceAhead(Qcow2State state, bool inBackground) : IDisposable
{
    private const long BatchBytes = 2L << 20;
    private const long KeptBytes = 4L << 20;

    // A larger cluster would have more zeros written for each small write than that costs without.
    private const int LargestClusterBits = 16;

    // Commits with new clusters, but no more than a few, that make a load one that syncs often; and what "a few" is.
    private const int ManyCommits = 8;
    private const long FewClusters = 8;

    private readonly int _clusterBits = state.Header.ClusterBits;
    private readonly HostAllocator _allocator = state.Allocator!;
    private readonly AutoResetEvent _wanted = new(initialState: false);
    private Thread? _thread;
    private long _handedOut = state.Allocator!.HandedOut;
    private int _commits;
    private volatile bool _ended;

    /// <summary>Looks at what the commit took, and has more written where that is worth it.</summary>
    public void AfterCommit()
    {
        long taken = _allocator.HandedOut - _handedOut;
        if (taken == 0 || _clusterBits > LargestClusterBits)
            return;
        _handedOut += taken;
        _commits = taken <= FewClusters ? Math.Min(_commits + 1, ManyCommits) : 0;
        if (_commits < ManyCommits || _ended || _allocator.ReadyClusters << _clusterBits >= KeptBytes)
            return;
        if (!inBackground)
        {
            WriteBatch();
            return;
        }

        if (_thread is null)
        {
            _thread = new Thread(WriteInBackground) { IsBackground = true, Name = "space ahead" };
            _thread.Start();
        }

        _ = _wanted.Set();
    }

    /// <summary>Ends the writing and gives back what was not used (Z3).</summary>
    public void End()
    {
        Stop();
        foreach (ClusterRun run in _allocator.TakeReady())
        {
            // Inside the file it would stay allocated; at its end it is cut off.
            if (run.End < _allocator.Tail)
                Punch(run);
            lock (state.Cache.Gate)
                _allocator.Free(run);
        }
    }

    public void Dispose() => Stop();

    private void Stop()
    {
        if (_ended && _thread is null)
            return;
        _ended = true;
        _ = _wanted.Set();
        _thread?.Join();
        _thread = null;
        _wanted.Dispose();
    }

    private void WriteInBackground()
    {
        while (_wanted.WaitOne() && !_ended)
            WriteBatch();
    }

    private void WriteBatch()
    {
        if (_allocator.TakeAhead(BatchBytes >> _clusterBits) is not { } run)
            return;
        try
        {
            WriteZeros(run.First << _clusterBits, run.Count << _clusterBits);
        }
        catch (StorageException exception)
        {
            // Without space nothing is lost but speed. Where it failed otherwise, the space is not used in this session.
            _ended = true;
            if (!exception.IsOutOfSpace)
                return;
        }

        _allocator.AddReady(run);
    }

    // Past the page cache, so that the next guest's sync does not wait for all of it.
    private void WriteZeros(long offset, long length)
    {
        if (state.File is JournaledFile { Inner: LatchedStorage { Inner: FileStorage host } })
        {
            host.WriteZeroesUncached(offset, length);
            return;
        }

        byte[] zeros = new byte[(int)Math.Min(length, 1 << 20)];
        for (long end = offset + length; offset < end; offset += zeros.Length)
            state.File.Write(offset, zeros.AsSpan(0, (int)Math.Min(zeros.Length, end - offset)));
    }

    private void Punch(ClusterRun run)
    {
        try
        {
            state.File.Discard(run.First << _clusterBits, run.Count << _clusterBits);
        }
        catch (StorageException exception) when (exception.IsOutOfSpace)
        {
            return; // the next use of the space makes up for it
        }
    }
}
