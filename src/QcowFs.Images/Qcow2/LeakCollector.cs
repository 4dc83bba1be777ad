// Gives back what a crash of ours left counted but unused, and sets COPIED flags that it left clear, in the background, while the image
// is in use (I9).
//
// L1. A window of host clusters at a time: from its start on every cluster of it whose count or mapping changes is marked as touched
//     and left alone. Then a commit brings the disk up to date, and the references on disk are counted.
// L2. For a cluster that was not touched both numbers stood still, so a stored count above the references is a leak. One that was
//     handed out meanwhile had no references and has the right count now. Any other touched one that seems to leak makes the
//     window be counted again; when that does not help, the next mount goes on.
// L3. While a window is counted no metadata block is freed (Qcow2Commit.GiveUp): a table that was replaced meanwhile may be the one
//     that the count is reading, and it still holds the same entries for what was not touched.
// L4. A leak is given up like any removed reference, by the removals of the next commit; its "removal" is durable already.
// L5. COPIED is set where one reference was counted, the stored count is one, and nothing of the cluster was touched since: then the
//     entry is that reference. Its stage comes after that of a count that was just lowered (I11). Leaks come before flags, and a table's
//     own flag before those of its entries, since only an owned table is changed; so there are further rounds where flags are left.
// L6. What lies behind the last cluster that has a count, a reference, or was touched is nothing's, once every window was judged and no
//     structure is broken; so the close may cut it off (HostAllocator, A5). A leak that is given up counts as gone.
using System.Buffers.Binary;
using System.Collections;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>The clusters of one window that changed since it began. Guarded by the cache's gate.</summary>
internal sealed class TouchedClusters(long first, int count)
{
    private readonly BitArray _touched = new(count);
    private readonly BitArray _handedOut = new(count);

    /// <summary>Marks a cluster whose count was zero and is right now.</summary>
    public void HandOut(long cluster)
    {
        if (cluster >= first && cluster < first + count)
            _handedOut[(int)(cluster - first)] = true;
    }

    /// <summary>Whether a cluster of the window was handed out.</summary>
    public bool WasHandedOut(long cluster) => _handedOut[(int)(cluster - first)];

    /// <summary>Marks clusters.</summary>
    public void Touch(long from, long end)
    {
        for (long cluster = Math.Max(from, first); cluster < Math.Min(end, first + count); cluster++)
            _touched[(int)(cluster - first)] = true;
    }

    /// <summary>Whether a cluster of the window was marked.</summary>
    public bool Contains(long cluster) => _touched[(int)(cluster - first)];
}

/// <summary>Collects leaked clusters of one image. <see cref="Run(Action)"/> is called once, on a thread of its own.</summary>
/// <param name="state">The image.</param>
/// <param name="file">The image file, through which the count reads.</param>
internal sealed class LeakCollector(Qcow2State state, IStorage file) : IRecovery, IReferenceVisitor
{
    // After so many mapped clusters the count rests, so that the guest keeps the disk: about 100 MB of tables a second.
    private const int ClustersBetweenRests = 1 << 16;
    private static readonly TimeSpan Rest = TimeSpan.FromMilliseconds(5);

    // Memory: a byte of count and two bits for each cluster of a window.
    private const int WindowClusters = 4 << 20;
    private const int AttemptsPerWindow = 4;
    private const int CommitsToSettle = 3;

    // A leak is given up, then its table's flag is set, then its own.
    private const int Rounds = 3;

    private static readonly ulong CopiedOnDisk =
        BitConverter.IsLittleEndian ? BinaryPrimitives.ReverseEndianness(L2Entry.CopiedBit) : L2Entry.CopiedBit;

    private readonly ManualResetEventSlim _stop = new();
    private Action _commit = static () => { };
    private string? _defect;
    private int _visited;
    private bool _unsure;
    private bool _sawClearFlag;
    private bool _flagsLeft;
    private long _lastUsed;

    /// <summary>Leaked clusters found so far.</summary>
    public long Found { get; private set; }

    /// <summary>COPIED flags set so far.</summary>
    public long FlagsSet { get; private set; }

    /// <summary>The whole image was looked at.</summary>
    public bool IsComplete { get; private set; }

    /// <summary>Why the collection gave up, or null.</summary>
    public string? Defect => _defect;

    /// <inheritdoc/>
    public string Summary => _defect is null
        ? $"the last writer did not end properly; {Found} leaked clusters were collected, {FlagsSet} missing COPIED flags set"
        : $"the last writer did not end properly; leaked clusters stay because of a defect: {_defect}; run `qcowfs check`";

    /// <inheritdoc/>
    public void Stop() => _stop.Set();

    public void Dispose() => _stop.Dispose();

    /// <inheritdoc/>
    public void Run(Action commit) => Run(commit, WindowClusters);

    /// <summary>Looks at every window in turn.</summary>
    /// <param name="commit">Commits the image.</param>
    /// <param name="windowClusters">Clusters in a window; tests make it small.</param>
    public void Run(Action commit, int windowClusters)
    {
        _commit = commit;
        // Counts may have survived for clusters that the file's length does not cover any more.
        long end = state.Refcounts.EndOfReferences(state.FileClustersAtOpen);
        int size = (int)Math.Min(windowClusters, Math.Max(1, end));
        bool unsure = false;
        for (int round = 0; round == 0 || (round < Rounds && _flagsLeft); round++)
        {
            _flagsLeft = false;
            _lastUsed = 0;
            for (long first = 0; first < end && !_stop.IsSet && _defect is null; first += size)
                unsure |= !TryCollect(first, (int)Math.Min(size, end - first));
        }

        commit();
        IsComplete = !unsure && !_stop.IsSet && _defect is null;
        if (IsComplete)
            state.Allocator!.KnowUnused(_lastUsed + 1); // L6
    }

    /// <summary>Whether a window could be judged in a few attempts.</summary>
    private bool TryCollect(long first, int count)
    {
        for (int attempt = 0; attempt < AttemptsPerWindow && !_stop.IsSet; attempt++)
        {
            Collect(first, count);
            if (!_unsure)
                return true;
        }

        return false;
    }

    void IReferenceVisitor.Broken(string kind, string structure, long offset, string message, string repair) =>
        _defect ??= $"{structure} at byte {offset}: {message}";

    void IReferenceVisitor.Unreadable(string kind, string structure, long offset, string message) =>
        _defect ??= $"{structure} at byte {offset}: {message}";

    void IReferenceVisitor.Table(long tableOffset, long weight)
    {
    }

    void IReferenceVisitor.ActiveTable(long entryOffset, L1Entry entry) => _sawClearFlag |= !entry.Copied;

    void IReferenceVisitor.ActiveCluster(long entryOffset, L2Entry entry)
    {
        _sawClearFlag |= !entry.Copied && !entry.IsCompressed;
        RestAfter(1);
    }

    void IReferenceVisitor.ActiveClusters(long entryOffset, ReadOnlySpan<ulong> entries)
    {
        for (int i = 0; i < entries.Length && !_sawClearFlag; i++)
            _sawClearFlag = (entries[i] & CopiedOnDisk) == 0;
        RestAfter(entries.Length);
    }

    // The bounded rate.
    private void RestAfter(int clusters)
    {
        _visited += clusters;
        if (_visited < ClustersBetweenRests)
            return;
        _visited = 0;
        if (_stop.Wait(Rest))
            throw new OperationCanceledException();
    }

    private void Collect(long first, int count)
    {
        _unsure = false;
        _sawClearFlag = false;
        // So that what waits to be given up is not touched in the window; with a journal that takes commits of its own.
        _commit();
        for (int i = 0; i < CommitsToSettle && state.Pending.Count > 0; i++)
            _commit();
        TouchedClusters touched = new(first, count);
        lock (state.Cache.Gate)
            state.Watch(touched);
        try
        {
            _commit();
            ReferenceWindow window = new(count);
            NewCounter().Count(first, window);
            if (_defect is null)
            {
                int last = window.Small.LastIndexOfAnyExcept((byte)0);
                if (last >= 0)
                    _lastUsed = Math.Max(_lastUsed, first + last);
                GiveUpLeaks(window, first, first + count, touched);
                if (_sawClearFlag)
                    SetFlags(new Judge(state, window, first, first + count, touched));
            }
        }
        catch (OperationCanceledException) when (_stop.IsSet)
        {
            // The image is being closed; the next mount begins again.
            return;
        }
        finally
        {
            lock (state.Cache.Gate)
                state.Watch(null);
        }
    }

    private ReferenceCounter NewCounter()
    {
        Qcow2Header header;
        RefcountTableEntry[] entries;
        lock (state.Cache.Gate)
        {
            ResidentTable table = state.Refcounts.Table;
            header = state.Header with
            {
                Journal = state.JournalArea,
                RefcountTableOffset = table.Offset,
                RefcountTableClusters = (int)((table.Length * 8L) >> state.Header.ClusterBits),
            };
            entries = new RefcountTableEntry[table.Length];
            for (int i = 0; i < entries.Length; i++)
                entries[i] = new RefcountTableEntry(table[i]);
        }

        return new ReferenceCounter(
            header, file, entries, Qcow2SnapshotTable.Read(header, file), BitmapDirectory.Read(header, file), this);
    }

    private void GiveUpLeaks(ReferenceWindow window, long first, long end, TouchedClusters touched)
    {
        Refcounts counts = state.Refcounts;
        for (long cluster = first; cluster < end && !_stop.IsSet;)
        {
            if (!counts.HasBlock(cluster))
            {
                cluster = counts.BlockEnd(cluster);
                continue;
            }

            long pageEnd = Math.Min(end, counts.PageEnd(cluster));
            using PinnedPages pins = new(state.Cache);
            MetadataPage page = pins.Add(counts.PageOffset(cluster));
            lock (state.Cache.Gate)
            {
                for (; cluster < pageEnd; cluster++)
                {
                    ulong stored = counts.Get(page, cluster);
                    uint references = window.Contains(cluster) ? window[cluster] : 0;
                    bool isLeak = stored > references && !touched.WasHandedOut(cluster);
                    if (isLeak && touched.Contains(cluster))
                    {
                        _unsure = true;
                        isLeak = false;
                    }

                    bool isGone = isLeak && TryGiveUpLeak(cluster, stored, references) && references == 0;
                    if (stored > 0 && !isGone)
                        _lastUsed = Math.Max(_lastUsed, cluster);
                }
            }
        }
    }

    /// <summary>One removal for each reference too many. False where they are too many to be a crash's.</summary>
    private bool TryGiveUpLeak(long cluster, ulong stored, uint references)
    {
        Found++;
        _flagsLeft |= references == 1;

        // A count that is wildly wrong was not left by a crash: only the check mends it.
        if (stored - references > 16)
            return false;
        for (ulong i = references; i < stored; i++)
            state.Remove(new Removal(cluster << state.Header.ClusterBits, state.Header.ClusterSize, RemovalKind.Data));
        return true;
    }

    /// <summary>Sets COPIED in the active tables where the window says so (L5).</summary>
    private void SetFlags(Judge judge)
    {
        for (int index = 0; index < state.L1.Length && !_stop.IsSet; index++)
        {
            L1Entry entry = new(state.L1[index]);
            if (!entry.IsAllocated)
                continue;
            if (!entry.Copied && judge.Covers(entry.TableOffset))
                SetTableFlag(judge, index, entry);
            entry = new L1Entry(state.L1[index]);
            for (int at = 0; at < state.Header.ClusterSize; at += state.Cache.PageSize)
                SetFlagsOnPage(judge, index, entry.TableOffset + at);
            RestAfter(state.Header.L2Entries);
            if (state.Cache.NeedsCommit)
                _commit();
        }
    }

    private void SetTableFlag(Judge judge, int index, L1Entry entry)
    {
        using PinnedPages pins = new(state.Cache);
        MetadataPage counts = pins.Add(state.Refcounts.PageOffset(entry.TableOffset >> state.Header.ClusterBits));
        lock (state.Cache.Gate)
        {
            if (state.L1[index] != entry.Raw || !judge.IsOnlyReference(counts, entry.TableOffset))
                return;
            state.L1.Set(index, entry.WithCopied(true).Raw);
            state.NoteTableChange();
            FlagsSet++;
        }
    }

    private void SetFlagsOnPage(Judge judge, int index, long pageOffset)
    {
        using PinnedPages pins = new(state.Cache);
        MetadataPage page = pins.Add(pageOffset);
        int step = state.Header.L2EntrySize / sizeof(ulong);
        for (int i = 0; i < page.Entries.Length; i += step)
        {
            L2Entry entry = EntryAt(page, i);
            if (entry.IsCompressed || entry.Copied || entry.HostOffset.Value == 0)
                continue;
            bool external = state.Header.HasExternalDataFile;
            if (!external && !judge.Covers(entry.HostOffset.Value))
                continue;
            using PinnedPages countPin = new(state.Cache);
            MetadataPage? counts = external ? null : countPin.Add(state.Refcounts.PageOffset(entry.HostOffset.Value >> state.Header.ClusterBits));
            lock (state.Cache.Gate)
            {
                L1Entry table = new(state.L1[index]);
                if ((table.TableOffset ^ pageOffset) >> state.Header.ClusterBits != 0 || EntryAt(page, i) != entry)
                    return; // changed meanwhile: by a write that sets its own flags
                if (counts is not null && !judge.IsOnlyReference(counts, entry.HostOffset.Value))
                    continue;
                _flagsLeft |= !table.Copied;
                if (table.Copied)
                    SetFlag(page, i, entry);
            }
        }
    }

    private void SetFlag(MetadataPage page, int index, L2Entry entry)
    {
        state.Cache.BeginChange(page, CommitStage.Links);
        BinaryPrimitives.WriteUInt64BigEndian(page.Bytes[(index * sizeof(ulong))..], entry.WithCopied(true).Raw);
        page.EndChange();
        FlagsSet++;
    }

    private static L2Entry EntryAt(MetadataPage page, int index) => L2Entry.Read(page.Bytes[(index * sizeof(ulong))..]);

    /// <summary>What is known of the clusters of a window after it was counted.</summary>
    private sealed class Judge(Qcow2State state, ReferenceWindow window, long first, long end, TouchedClusters touched)
    {
        /// <summary>Whether a host offset lies in the window.</summary>
        public bool Covers(long offset) => offset >> state.Header.ClusterBits >= first && offset >> state.Header.ClusterBits < end;

        /// <summary>Whether the reference that the caller sees is the only one (L5). Call under the gate.</summary>
        /// <param name="counts">The page that holds the cluster's count.</param>
        /// <param name="offset">Where the cluster is, in the window.</param>
        public bool IsOnlyReference(MetadataPage counts, long offset)
        {
            long cluster = offset >> state.Header.ClusterBits;
            return window.Contains(cluster) && window[cluster] == 1 && !touched.Contains(cluster) && state.Refcounts.Get(counts, cluster) == 1;
        }
    }
}
