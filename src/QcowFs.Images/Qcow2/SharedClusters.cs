// What is known about clusters that several L2 entries of the active disk refer to.
//
// C1. An entry whose cluster gets a second reference loses COPIED in the same change, and is noted here until the commit has taken the flag
//     from the disk too (I11). The note outlives later changes of the entry: on disk it may still be the old one.
// C2. A mapping that is the last one of its cluster must carry COPIED again, or checks call the image corrupt; until then each write of
//     it costs a copy. There is no way from a cluster to its mappings, so for each L2 table one bit says whether it may hold an
//     entry without the flag, and only those tables are swept.
// C3. An unknown bit counts as set. All are unknown at the open unless the dedup index of the same state of the image has them.
using System.Collections;

namespace QcowFs.Images.Qcow2;

/// <summary>A COPIED flag that the next commit takes from the disk, if the entry there still has this cluster.</summary>
/// <param name="EntryOffset">Host byte offset of the L2 entry.</param>
/// <param name="Host">Host byte offset of its cluster.</param>
internal readonly record struct ClearedFlag(long EntryOffset, long Host);

/// <summary>Sharing in one image. Members are called under the metadata cache's gate unless they say otherwise.</summary>
/// <param name="tables">Number of L2 tables: entries of the L1 table.</param>
/// <param name="known">The bits as they were at the last clean close, or null.</param>
/// <param name="tracks">Whether a count that falls to one is worth a sweep: not where only snapshots share clusters.</param>
/// <param name="needsSweep">Whether flags may be missing already.</param>
internal sealed class SharedClusters(int tables, BitArray? known, bool tracks, bool needsSweep)
{
    private readonly BitArray _tables = known ?? new BitArray(tables, true);
    private List<ClearedFlag> _cleared = [];
    private volatile bool _needsSweep = needsSweep;

    /// <summary>See <see cref="Engine.IBlockSharing.NeedsSweep"/>. From any thread.</summary>
    public bool NeedsSweep => _needsSweep;

    /// <summary>See <see cref="Engine.IBlockSharing.LeavesMark"/>. From any thread.</summary>
    public bool LeavesMark { get; set; }

    /// <summary>See <see cref="Engine.IBlockSharing.Freed"/>. Set before the first change.</summary>
    public Action<long, long>? Freed { get; set; }

    /// <summary>A copy of the bits.</summary>
    public BitArray CopyTables() => new(_tables);

    /// <summary>Whether a table may hold an entry that lacks COPIED.</summary>
    public bool this[int table]
    {
        get => _tables[table];
        set => _tables[table] = value;
    }

    /// <summary>Notes a flag that was taken away in memory (C1).</summary>
    public void NoteCleared(ClearedFlag flag) => _cleared.Add(flag);

    /// <summary>Notes that a cluster has one reference left (C2).</summary>
    public void NoteLastReference()
    {
        if (tracks)
            _needsSweep = true;
    }

    /// <summary>A sweep begins: what is noted from here on is for the next one.</summary>
    public void BeginSweep() => _needsSweep = false;

    /// <summary>A sweep ended early.</summary>
    public void ContinueSweep() => _needsSweep = true;

    /// <summary>Takes the noted flags for a commit.</summary>
    public List<ClearedFlag> FreezeCleared()
    {
        List<ClearedFlag> taken = _cleared;
        _cleared = [];
        return taken;
    }

    /// <summary>Gives back the flags of a commit that did not complete.</summary>
    public void ThawCleared(List<ClearedFlag> left) => _cleared.InsertRange(0, left);

    /// <summary>Tells who wants to know of clusters about to be punched. Outside the gate.</summary>
    public void TellFreed(List<ClusterRun> runs, int clusterBits)
    {
        if (Freed is not { } tell)
            return;
        foreach (ClusterRun run in runs)
            tell(run.First << clusterBits, run.Count << clusterBits);
    }
}
