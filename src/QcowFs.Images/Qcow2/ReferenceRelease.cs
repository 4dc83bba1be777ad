// What giving up references does to counts, with and without a journal: who calls decides when (I3).
using QcowFs.Images.Metadata;

namespace QcowFs.Images.Qcow2;

/// <summary>Lowers reference counts of one image, a page at a time.</summary>
internal sealed class ReferenceRelease(Qcow2State state)
{
    /// <summary>The clusters on a page of counts whose count is one: whose last reference is about to go. They take no more compressed
    /// streams.</summary>
    /// <param name="page">The page, pinned.</param>
    /// <param name="first">The first cluster.</param>
    /// <param name="end">One past the last, on the same page.</param>
    public List<ClusterRun> FindLast(MetadataPage page, long first, long end)
    {
        List<ClusterRun> found = [];
        lock (state.Cache.Gate)
        {
            for (long cluster = first; cluster < end; cluster++)
            {
                ulong count = state.Refcounts.Get(page, cluster);
                if (count == 0)
                    state.Latch.Fail($"{state.File.Name}: host cluster {cluster} was in use with a reference count of zero");
                if (count != 1)
                    continue;
                state.CompressedSpace?.Leave(cluster);
                if (found.Count > 0 && found[^1].End == cluster)
                    found[^1] = found[^1] with { Count = found[^1].Count + 1 };
                else
                    found.Add(new ClusterRun(cluster, 1, ReadsAsZero: true));
            }
        }

        return found;
    }

    /// <summary>Lowers the counts of clusters by one. Under the gate.</summary>
    /// <param name="page">Their page, pinned.</param>
    /// <param name="first">The first cluster.</param>
    /// <param name="end">One past the last, on the same page.</param>
    /// <param name="kind">What referred to them.</param>
    public void Lower(MetadataPage page, long first, long end, RemovalKind kind)
    {
        state.Cache.BeginChange(page, CommitStage.Counts);
        for (long cluster = first; cluster < end; cluster++)
        {
            ulong count = state.Refcounts.Get(page, cluster);
            if (count > 0)
                state.Refcounts.Set(page, cluster, count - 1);
            if (count == 2 && kind == RemovalKind.Data)
                state.Shared.NoteLastReference();
        }

        page.EndChange();
    }
}
