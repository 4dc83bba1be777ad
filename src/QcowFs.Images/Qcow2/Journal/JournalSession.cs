// The life of a journal in one session: made at the first change, in use, taken away at the clean close (J12).
using QcowFs.Images.Engine;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>The journal of one image that is open for writing. The commit lock of the block map guards all but the guard.</summary>
internal sealed class JournalSession : IDisposable
{
    public const string Structure = "journal";

    private readonly Qcow2State _state;
    private readonly JournaledFile _file;
    private readonly Qcow2Space _space;
    private readonly Qcow2Commit _ordered;
    private readonly JournalOptions _options;
    private readonly Action<string>? _log;
    private readonly WriteGuard _guard;
    private readonly SpaceAhead? _ahead;
    private JournalArea _area;
    private volatile JournalCommit? _commit;

    /// <param name="state">The image.</param>
    /// <param name="space">Supplies the journal's place.</param>
    /// <param name="ordered">Commits without the journal.</param>
    /// <param name="options">How the journal is to be.</param>
    /// <param name="inBackground">Whether there may be threads.</param>
    /// <param name="log">Told what a person may want to know.</param>
    public JournalSession(
        Qcow2State state, Qcow2Space space, Qcow2Commit ordered, JournalOptions options, bool inBackground, Action<string>? log)
    {
        _state = state;
        _file = (JournaledFile)state.File;
        _space = space;
        _ordered = ordered;
        _options = options;
        _log = log;
        _guard = new WriteGuard(JournalLayout.MaxRecordBytes(options.RingBytes), () => _commit!.TryLogChanges())
        {
            ListsData = !state.HasExternalData,
        };
        state.Guard = _guard;
        _ahead = options.WritesAhead && !state.HasExternalData ? new SpaceAhead(state, inBackground) : null;
    }

    /// <summary>What the engine asks before it writes.</summary>
    public IWriteGuard Guard => _guard;

    /// <summary>Commits through the journal; null before it is made and after it is gone.</summary>
    public JournalCommit? Commit => _commit;

    /// <summary>Makes the journal. The image is in use, and nothing is dirty. Where the host has no space for it, the session goes on
    /// without.</summary>
    public void Begin()
    {
        JournalRing ring;
        try
        {
            ring = MakeRing();
        }
        catch (StorageException exception) when (exception.IsOutOfSpace && _state.Latch.Reason is null)
        {
            _log?.Invoke($"{_state.File.Name}: no space for a journal of {_options.RingBytes} bytes; the image is written without one");
            GiveUpArea();
            return;
        }

        JournalHeader.Make(_file.Inner, _area);
        JournalCommit commit = new(_state, _file, _ordered, ring, _guard, _ahead);
        lock (_state.Cache.Gate)
        {
            _state.Cache.StartLogging(JournalCommit.DirtyLimit(ring.MaxRecordBytes, _state.Cache.PageSize));
            _state.L1.IsLogged = _state.Refcounts.Table.IsLogged = true;
        }

        _commit = commit;
        _guard.Active = true;
    }

    /// <summary>Takes the journal away. Everything is committed and given up.</summary>
    public void End()
    {
        if (_commit is not { } commit)
            return;
        _ahead?.End();
        commit.Settle();
        JournalHeader.Remove(_file.Inner);
        _guard.Active = false;
        _commit = null;
        lock (_state.Cache.Gate)
        {
            _state.Cache.StopLogging();
            _state.L1.IsLogged = _state.Refcounts.Table.IsLogged = false;
        }

        GiveUpArea();
    }

    public void Dispose() => _ahead?.Dispose();

    private JournalRing MakeRing()
    {
        int clusterBits = _state.Header.ClusterBits;
        ClusterRun run = _space.TakeArea(JournalArea.ClustersFor(_options.RingBytes, clusterBits), Structure);
        _area = new JournalArea(run.First << clusterBits, run.Count << clusterBits);
        lock (_state.Cache.Gate)
            _state.JournalArea = _area;

        // The counts are durable before the header names the place (I2).
        do
            _ = _ordered.Run(static () => false);
        while (_state.IsDirty);
        return JournalRing.Format(_file.Inner, _area, NewSuperblock());
    }

    private JournalSuperblock NewSuperblock() => new()
    {
        Id = _options.NewId(),
        Generation = 0,
        RingOffset = _area.RingOffset,
        RingBytes = _area.RingBytes,
        TailSequence = 1,
        TailOffset = 0,
        Confirmed = 0,
        Adopted = 0,
        Host = _options.Host,
        FileLength = 0,
        VirtualSize = _state.Header.VirtualSize,
        L1Offset = _state.Header.L1Offset,
        ClusterBits = _state.Header.ClusterBits,
    };

    private void GiveUpArea()
    {
        if (_area == default)
            return;
        lock (_state.Cache.Gate)
        {
            _state.JournalArea = null;
            _state.Remove(new Removal(_area.Offset, _area.Length, RemovalKind.Data));
        }

        _area = default;
    }
}
