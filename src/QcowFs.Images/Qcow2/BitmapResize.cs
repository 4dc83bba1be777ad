// Gives persistent bitmaps the size of the disk, as a part of Qcow2Resize.
//
// G1. Before anything changes every bitmap is marked in use, durably; the mark falls after the disk has its new size. A crash leaves the
//     bitmap inconsistent. One that was so before, or cannot have the new size, stays so.
// G2. At every instant the directory names a table whose entries are sound as far as its size says: a new table is durable before the
//     directory names it, its place is named before a larger size, a smaller size is durable before what lies behind it is given up.
// G3. New bits are zero: nothing was written there.
using System.Buffers.Binary;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>The bitmaps of an image that is being resized. Its steps are called in the order in which they stand here.</summary>
internal sealed class BitmapResize
{
    private readonly Qcow2Edit _edit;
    private readonly IStorage _file;
    private readonly int _clusterSize;
    private readonly List<Plan> _plans = [];
    private readonly List<Qcow2Bitmap> _marked = [];

    /// <summary>Plans; takes the space that is needed from the edit's counts.</summary>
    public BitmapResize(Qcow2Edit edit, IStorage file, long size)
    {
        _edit = edit;
        _file = file;
        _clusterSize = edit.Header.ClusterSize;
        foreach (Qcow2Bitmap bitmap in BitmapDirectory.Read(edit.Header, file))
        {
            if (bitmap.Flags.HasFlag(BitmapFlags.InUse))
                continue;
            _marked.Add(bitmap);
            long expected = TrackedBitmap.TableEntriesFor(edit.Header.VirtualSize, bitmap.GranularityBits, edit.Header.ClusterBits);
            long entries = TrackedBitmap.TableEntriesFor(size, bitmap.GranularityBits, edit.Header.ClusterBits);
            if (bitmap.TableEntries == expected && entries > 0 && entries << edit.Header.ClusterBits <= Qcow2Limits.MaxBitmapBytes)
                _plans.Add(MakePlan(bitmap, (int)entries, size));
        }
    }

    /// <summary>Marks the bitmaps (G1). The caller syncs the file.</summary>
    public void Mark()
    {
        foreach (Qcow2Bitmap bitmap in _marked)
            WriteInt32(bitmap.Offset + Qcow2Bitmap.FlagsAt, (int)(bitmap.Flags | BitmapFlags.InUse));
    }

    /// <summary>Writes what nothing names yet, and bits. The caller writes the raised counts and syncs.</summary>
    public void WriteNew()
    {
        foreach (Plan plan in _plans)
        {
            if (plan.LastBits is { } bits)
                _file.Write(plan.LastCluster, bits);
            if (plan.NewTable > 0)
                _edit.WriteTable(plan.NewTable, plan.Table);
            else if (plan.Entries > plan.Bitmap.TableEntries)
                _file.Write(plan.Bitmap.TableOffset + plan.Bitmap.TableEntries * sizeof(ulong), plan.Table.AsSpan((int)plan.Bitmap.TableEntries * sizeof(ulong)));
        }
    }

    /// <summary>Makes the directory name tables of the new size, durably (G2).</summary>
    public void Switch()
    {
        if (_plans.Count == 0)
            return;
        foreach (Plan plan in _plans)
        {
            if (plan.NewTable > 0)
                WriteInt64(plan.Bitmap.Offset, plan.NewTable);
            else if (plan.NewEntry is { } index)
                _file.Write(plan.Bitmap.TableOffset + index * sizeof(ulong), plan.Table.AsSpan(index * sizeof(ulong), sizeof(ulong)));
        }

        _file.Sync();
        foreach (Plan plan in _plans)
            WriteInt32(plan.Bitmap.Offset + Qcow2Bitmap.TableEntriesAt, plan.Entries);
        _file.Sync();
    }

    /// <summary>Lowers the counts of what is named no more.</summary>
    public void Lower()
    {
        foreach (Plan plan in _plans)
        {
            long used = plan.NewTable > 0 ? 0 : RoundUp(plan.Entries * sizeof(ulong));
            long had = RoundUp(plan.Bitmap.TableEntries * sizeof(ulong));
            _edit.Counts.LowerRegion(plan.Bitmap.TableOffset + used, Math.Max(had - used, 0));
            for (int index = plan.Entries; index < plan.Bitmap.TableEntries; index++)
            {
                if (ClusterOf(plan.OldTable, index) is var cluster and > 0)
                    _edit.Counts.LowerRegion(cluster, _clusterSize);
            }
        }
    }

    /// <summary>Takes the marks away; all else is durable. The caller syncs the file.</summary>
    public void Unmark()
    {
        foreach (Plan plan in _plans)
            WriteInt32(plan.Bitmap.Offset + Qcow2Bitmap.FlagsAt, (int)plan.Bitmap.Flags);
    }

    private Plan MakePlan(Qcow2Bitmap bitmap, int entries, long size)
    {
        byte[] old = new byte[bitmap.TableEntries * sizeof(ulong)];
        _file.Read(bitmap.TableOffset, old);
        byte[] table = new byte[entries * sizeof(ulong)];
        old.AsSpan(0, Math.Min(old.Length, table.Length)).CopyTo(table);
        Plan plan = new() { Bitmap = bitmap, Entries = entries, OldTable = old, Table = table };
        if (RoundUp(table.Length) > RoundUp(old.Length))
            plan.NewTable = _edit.Counts.Take(table.Length);
        PlanLastBits(plan, size);
        return plan;
    }

    /// <summary>Clears the bits behind the smaller of the two ends, where a table entry stands for bits on both sides of it (G3).</summary>
    private void PlanLastBits(Plan plan, long size)
    {
        int granularity = plan.Bitmap.GranularityBits;
        long kept = TrackedBitmap.BitsFor(Math.Min(size, _edit.Header.VirtualSize), granularity);
        long perCluster = _clusterSize * 8L;
        if (kept % perCluster == 0)
            return;
        int index = (int)(kept / perCluster);
        ulong entry = BinaryPrimitives.ReadUInt64BigEndian(plan.Table.AsSpan(index * sizeof(ulong)));
        if (entry == 0)
            return;
        byte[] bits = new byte[_clusterSize];
        if (entry == Qcow2Bitmap.EntryAllOnes)
        {
            bits.AsSpan().Fill(0xff);
            plan.LastCluster = _edit.Counts.Take(_clusterSize);
            plan.NewEntry = index;
            BinaryPrimitives.WriteInt64BigEndian(plan.Table.AsSpan(index * sizeof(ulong)), plan.LastCluster);
        }
        else
        {
            plan.LastCluster = ClusterOf(plan.Table, index);
            _file.Read(plan.LastCluster, bits);
        }

        int bit = (int)(kept % perCluster);
        bits[bit / 8] &= (byte)((1 << (bit % 8)) - 1);
        bits.AsSpan((bit / 8) + 1).Clear();
        plan.LastBits = bits;
    }

    private static long ClusterOf(ReadOnlySpan<byte> table, int index) =>
        (long)(BinaryPrimitives.ReadUInt64BigEndian(table[(index * sizeof(ulong))..]) & Qcow2Bitmap.EntryOffsetMask);

    private long RoundUp(long length) => (length + _clusterSize - 1) & -_clusterSize;

    private void WriteInt32(long offset, int value)
    {
        Span<byte> bytes = stackalloc byte[sizeof(int)];
        BinaryPrimitives.WriteInt32BigEndian(bytes, value);
        _file.Write(offset, bytes);
    }

    private void WriteInt64(long offset, long value)
    {
        Span<byte> bytes = stackalloc byte[sizeof(long)];
        BinaryPrimitives.WriteInt64BigEndian(bytes, value);
        _file.Write(offset, bytes);
    }

    /// <summary>What becomes of one bitmap.</summary>
    private sealed class Plan
    {
        public required Qcow2Bitmap Bitmap { get; init; }

        /// <summary>Entries of the table in the end.</summary>
        public required int Entries { get; init; }

        public required byte[] OldTable { get; init; }

        /// <summary>The table in the end.</summary>
        public required byte[] Table { get; init; }

        /// <summary>Where a new table lies; 0 where the old one has room.</summary>
        public long NewTable { get; set; }

        /// <summary>The cluster whose bits change, and the bits, or null.</summary>
        public long LastCluster { get; set; }

        public byte[]? LastBits { get; set; }

        /// <summary>The table entry that names the cluster first now, or null.</summary>
        public int? NewEntry { get; set; }
    }
}
