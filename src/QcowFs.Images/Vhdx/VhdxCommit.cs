// The commit of a VHDX image: pages of the table and of sector bitmaps become durable through the log, then go to their places.
//
// 1. Freeze: the dirty pages and the removals, under the gate, at an operation's boundary.
// 2. Sync the file where guest data was written or the file grew. It makes the pages durable too that earlier commits put home.
// 3. Log the pages: one entry, or several where they are too many. Each ends with a sync. Here the commit is durable.
// 4. Write the pages home, without a sync: the next one that comes along covers them (W3).
// 5. Give up what the pages no longer refer to: wait for readers, punch, free.
//
// So an fsync after overwrites costs one sync, after allocations two.
//
// I1.  Data is durable before the entry that publishes it is written; the file's length that it needs as well.
// I3.  A freed block is punched, and then free, when the entry that unmaps it is durable.
// I6.  Before anything is punched, every reader that may have looked it up has left.
// I7.  Without host space a commit stops before the sync of its entry and leaves everything dirty. A page that could not be put home
//      stays dirty, and is put home before the next entry is written; until then the tail stays.
// I9.  The log is in use, durably, before the first change of a session, and closed after everything is home and synced. The first
//      entry is durable before the headers name its GUID: a log in use without an entry is a damaged one.
// C1.  Pages of sector bitmaps are logged in no later entry than the table's pages: bits that nothing makes count do no harm (M3).
// C2.  File and data write GUIDs are new, in both headers, before the first change of a session; the latter stays where no data changes.
// C3.  The file is cut only when the log is closed: a file shorter than its log says is taken for damaged.
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Vhdx;

/// <summary>Commits the changes of one VHDX image. <see cref="Run"/> is called by one thread at a time.</summary>
/// <param name="state">What is shared with the map.</param>
/// <param name="logStart">Where in the ring the session's first entry is put.</param>
internal sealed class VhdxCommit(VhdxState state, long logStart)
{
    private readonly Lock _useLock = new();
    private readonly MetadataCache _cache = state.Cache;
    private readonly Region _bat = state.Layout.Regions.Bat;
    private (VhdxLogWriter Log, Guid Guid)? _opened;
    private VhdxLogWriter? _log;
    private LoggedPage[] _owed = []; // logged durably, and not all of them put home

    /// <summary>Pages that one entry holds at most.</summary>
    public int PagesPerEntry { get; } = VhdxLogWriter.PagesPerEntry(state.Layout.LogRegion.Length);

    /// <summary>Makes everything up to now durable. Returns whether metadata was written.</summary>
    /// <param name="takeDataDirty">Whether guest data was written since it was last asked.</param>
    public bool Run(Func<bool> takeDataDirty)
    {
        List<MetadataPage> pages;
        List<Region> removals;
        lock (_cache.Gate)
        {
            pages = _cache.Freeze();
            removals = state.FreezeRemovals();
        }

        bool hasMetadata = pages.Count + removals.Count > 0;
        bool written = false;
        try
        {
            bool dataDirty = takeDataDirty();
            if (dataDirty || state.HasGrown)
                SyncData(); // I1
            LogAndWriteHome(pages);
            written = true;
            lock (_cache.Gate)
            {
                _cache.Thaw(pages, written: true);
                pages = [];
            }

            GiveUp(removals);
        }
        finally
        {
            lock (_cache.Gate)
            {
                _cache.Thaw(pages, written);
                state.ThawRemovals(removals);
            }
        }

        return hasMetadata;
    }

    /// <summary>Begins a session's changes (I9, C2).</summary>
    /// <param name="keepsData">Nothing that the guest sees will change.</param>
    public void BeginUse(bool keepsData = false)
    {
        lock (_useLock)
        {
            if (_log is not null)
                return;
            Region ring = state.Layout.LogRegion;
            state.File.Reserve(ring.Offset, ring.Length);
            // Whatever version an empty log was said to have, what is written from here on has this one.
            // A second attempt goes on with the first one's entry: a header may name it already (I9).
            (VhdxLogWriter log, Guid guid) = _opened ??= OpenLog();
            Guid written = state.Guids.Next();
            Guid dataWritten = state.Guids.Next();
            state.Layout.Headers.Change(state.File,
                header => header with { LogGuid = guid, LogVersion = 0, FileWriteGuid = written, DataWriteGuid = keepsData ? header.DataWriteGuid : dataWritten });
            _log = log;
        }
    }

    /// <summary>Ends a session after its last commit: closes the log, then gives unused space at the end back (C3).</summary>
    public void EndUse()
    {
        lock (_useLock)
        {
            SyncData();
            Invariant.Require(_owed.Length == 0, "the log is closed only when every page is in its place");
            state.Layout.Headers.Change(state.File, header => header with { LogGuid = Guid.Empty });
            _log = null;
            long end = state.Space!.UsedEnd();
            if (state.File.Length <= end)
                return;
            state.File.SetLength(end);
            state.File.Sync();
        }
    }

    private (VhdxLogWriter Log, Guid Guid) OpenLog()
    {
        Guid guid = state.Guids.Next();
        VhdxLogWriter log = new(state, guid, logStart);
        log.Append([]);
        return (log, guid);
    }

    private void SyncData() => _log!.Sync(homeComplete: _owed.Length == 0);

    private void LogAndWriteHome(List<MetadataPage> frozen)
    {
        // C1
        MetadataPage[] pages = [.. frozen.OrderBy(page => IsTablePage(page) ? 1 : 0).ThenBy(page => page.Offset)];
        WriteHome(); // I7
        for (int first = 0; first < pages.Length; first += PagesPerEntry)
        {
            LoggedPage[] content = new LoggedPage[Math.Min(PagesPerEntry, pages.Length - first)];
            lock (_cache.Gate)
            {
                for (int i = 0; i < content.Length; i++)
                    content[i] = new LoggedPage(pages[first + i].Offset, pages[first + i].CommitContent.ToArray());
            }

            _log!.Append(content);
            _owed = content;
            WriteHome();
        }
    }

    private void WriteHome()
    {
        if (_owed.Length == 0)
            return;
        _log!.NoteHomeWrites();
        foreach (LoggedPage page in _owed)
            state.File.Write(page.Offset, page.Content.Span);
        _owed = [];
    }

    private bool IsTablePage(MetadataPage page) => page.Offset >= _bat.Offset && page.Offset < _bat.End;

    /// <summary>Frees what is durably unmapped. What is done leaves the list, so that a failure keeps the rest.</summary>
    private void GiveUp(List<Region> removals)
    {
        if (removals.Count == 0)
            return;
        state.Epoch.Synchronize(); // I6
        for (int i = removals.Count - 1; i >= 0; i--)
        {
            state.File.Discard(removals[i].Offset, removals[i].Length); // I3
            state.Space!.Free(removals[i].Offset, removals[i].Length);
            removals.RemoveAt(i);
        }
    }
}
