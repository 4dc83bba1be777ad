// Makes, deletes and applies internal snapshots of an image that nobody else has open (orders: Qcow2Edit).
//
// T1. The snapshot table is never changed in place: a new one is written elsewhere, and the header switches to it.
// T2. Every L1 table that refers to a tree counts as one reference to each L2 table and cluster in it, as QEMU counts.
// T3. Entries of other snapshots are kept byte for byte, their VM state and unknown extra data too.
using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>Edits the snapshots of an image. Faults of its members: <see cref="ImageFormatException"/> before anything changes;
/// <see cref="StorageException"/>, which leaves a valid image as before or as after.</summary>
internal sealed class Qcow2SnapshotEdit
{
    /// <summary>QEMU: the name is kept in 256 bytes with its terminator.</summary>
    private const int MaxNameBytes = 255;

    private const int ExtraSize = 24;
    private const string Structure = "snapshot table";
    private readonly Qcow2Header _header;
    private readonly IStorage _file;
    private readonly Qcow2SnapshotTable _table;

    /// <param name="header">The image's header.</param>
    /// <param name="file">The image file, open for writing; it stays the caller's.</param>
    public Qcow2SnapshotEdit(Qcow2Header header, IStorage file)
    {
        _header = header;
        _file = file;
        if (header.HasExternalDataFile)
            throw Refused("an image whose data is in an external file cannot have snapshots", "convert it to one without (qemu-img convert)");
        _table = Qcow2SnapshotTable.Read(header, file);
    }

    private long L1Bytes => (long)_header.L1Size * L1Entry.Size;

    /// <summary>Keeps the active disk as a snapshot.</summary>
    public void Create(string name, DateTimeOffset time)
    {
        byte[] nameBytes = Encoding.UTF8.GetBytes(name);
        if (nameBytes.Length is 0 or > MaxNameBytes)
            throw Refused($"a snapshot cannot have a name of {nameBytes.Length} bytes", $"give one of 1 to {MaxNameBytes} bytes");
        if (_table.Snapshots.Any(s => s.NameText == name))
            throw Refused($"there is already a snapshot {Printable.Quote(name)}", "choose another name, or delete that one first");
        if (_table.Snapshots.Count >= Qcow2Limits.MaxSnapshots)
            throw Refused($"there are {Qcow2Limits.MaxSnapshots} snapshots, the most there can be", "delete one first");
        if (_header.MaxRefcount == 1)
            throw Refused("reference counts of one bit cannot count snapshots", "convert the image to one with wider counts (refcount_bits)");

        Qcow2Edit edit = Qcow2Edit.Begin(_header, _file);
        L1Entry[] l1 = edit.ReadL1(_header.L1Offset, _header.L1Size);
        edit.Walk(l1, edit.Counts.Raise);
        long copy = l1.Length == 0 ? _header.L1Offset : edit.Counts.Take(L1Bytes);
        byte[] table = Serialize([.. _table.Snapshots, Describe(nameBytes, copy, time)]);
        long tableOffset = edit.Counts.Take(table.Length);

        edit.BeginUse();
        edit.ClearCopied(l1, _header.L1Offset);
        if (l1.Length > 0)
            edit.WriteL1(copy, l1);
        edit.WriteTable(tableOffset, table);
        edit.Counts.WriteRaised();
        SwitchTable(edit, tableOffset, _table.Snapshots.Count + 1);
        edit.Counts.WriteLowered();
        edit.EndUse();
    }

    /// <summary>Deletes a snapshot.</summary>
    public void Delete(string nameOrId)
    {
        Qcow2Snapshot snapshot = _table.Find(_file, nameOrId);
        Qcow2Snapshot[] others = [.. _table.Snapshots.Where(s => s != snapshot)];
        Qcow2Edit edit = Qcow2Edit.Begin(_header, _file);
        L1Entry[] l1 = edit.ReadL1(snapshot.L1Offset, (int)snapshot.L1Size);
        byte[] table = Serialize(others);
        long tableOffset = others.Length == 0 ? 0 : edit.Counts.Take(table.Length);

        edit.BeginUse();
        if (others.Length > 0)
            edit.WriteTable(tableOffset, table);
        edit.Counts.WriteRaised();
        SwitchTable(edit, tableOffset, others.Length);
        edit.Counts.LowerRegion(snapshot.L1Offset, snapshot.L1Size * L1Entry.Size);
        edit.Walk(l1, edit.Counts.Lower);
        edit.Counts.WriteLowered();
        edit.RebuildCopied(edit.ReadL1(_header.L1Offset, _header.L1Size), _header.L1Offset);
        edit.EndUse();
    }

    /// <summary>Makes the active disk what it was when a snapshot was made. The snapshot stays.</summary>
    public void Apply(string nameOrId)
    {
        Qcow2Header target = _table.HeaderAt(_header, _file, nameOrId);
        if (_header.Bitmaps is { } bitmaps)
        {
            throw Refused($"the image has {bitmaps.Count} persistent bitmaps, which record changes of the disk as it is",
                "remove them first (qemu-img bitmap --remove)");
        }

        Qcow2Edit edit = Qcow2Edit.Begin(_header, _file);
        L1Entry[] old = edit.ReadL1(_header.L1Offset, _header.L1Size);
        L1Entry[] l1 = edit.ReadL1(target.L1Offset, target.L1Size);
        edit.Walk(l1, edit.Counts.Raise);
        long copy = l1.Length == 0 ? _header.L1Offset : edit.Counts.Take((long)l1.Length * L1Entry.Size);

        edit.BeginUse();
        edit.ClearCopied(l1, activeL1Offset: null);
        if (l1.Length > 0)
            edit.WriteL1(copy, l1);
        edit.Counts.WriteRaised();
        Qcow2HeaderSector.Change(_file, sector =>
        {
            sector.SetL1(copy, l1.Length);
            sector.SetVirtualSize(target.VirtualSize);
        });
        edit.Counts.LowerRegion(_header.L1Offset, L1Bytes);
        edit.Walk(old, edit.Counts.Lower);
        edit.Counts.WriteLowered();
        edit.RebuildCopied(l1, copy);
        edit.EndUse();
    }

    /// <summary>Gives entries the extra data that version 3 demands, in an image in which a check found nothing else wrong. Such an entry
    /// means the size that the disk has now, as far as its L1 table reaches.</summary>
    public static void Complete(Qcow2Header header, IStorage file) => new Qcow2SnapshotEdit(header, file).Complete();

    private void Complete()
    {
        byte[] table = Serialize([.. _table.Snapshots.Select(WithExtra)]);
        Qcow2Edit edit = Qcow2Edit.BeginChecked(_header, _file);
        long tableOffset = edit.Counts.Take(table.Length);
        edit.BeginUse();
        edit.WriteTable(tableOffset, table);
        edit.Counts.WriteRaised();
        SwitchTable(edit, tableOffset, _table.Snapshots.Count);
        edit.Counts.WriteLowered();
        edit.EndUse();
    }

    private Qcow2Snapshot WithExtra(Qcow2Snapshot snapshot)
    {
        if (snapshot.Extra.Length >= Qcow2Snapshot.Version3ExtraSize)
            return snapshot;
        byte[] extra = new byte[ExtraSize];
        BinaryPrimitives.WriteUInt64BigEndian(extra, snapshot.VmStateSize);
        BinaryPrimitives.WriteInt64BigEndian(extra.AsSpan(8), (long)UInt128.Min((ulong)_header.VirtualSize, (UInt128)snapshot.L1Size * (ulong)_header.L2Coverage));
        BinaryPrimitives.WriteUInt64BigEndian(extra.AsSpan(16), ulong.MaxValue);
        return snapshot with { Extra = extra };
    }

    // T1
    private void SwitchTable(Qcow2Edit edit, long offset, int count)
    {
        Qcow2HeaderSector.Change(_file, sector => sector.SetSnapshots(offset, count));
        edit.Counts.LowerRegion(_header.SnapshotsOffset, _table.Length);
    }

    private Qcow2Snapshot Describe(byte[] name, long l1Offset, DateTimeOffset time)
    {
        byte[] extra = new byte[ExtraSize];
        BinaryPrimitives.WriteInt64BigEndian(extra.AsSpan(8), _header.VirtualSize);
        BinaryPrimitives.WriteUInt64BigEndian(extra.AsSpan(16), ulong.MaxValue);
        return new Qcow2Snapshot
        {
            Offset = 0,
            L1Offset = l1Offset,
            L1Size = _header.L1Size,
            Id = Encoding.ASCII.GetBytes(NewId()),
            Name = name,
            Seconds = unchecked((uint)time.ToUnixTimeSeconds()),
            Nanoseconds = (uint)(time.Ticks % TimeSpan.TicksPerSecond * 100),
            RunTime = 0,
            VmStateSize = 0,
            VirtualSize = (ulong)_header.VirtualSize,
            Icount = null,
            Extra = extra,
        };
    }

    // As in QEMU: one more than the largest number among the ids.
    private string NewId()
    {
        ulong largest = 0;
        foreach (Qcow2Snapshot snapshot in _table.Snapshots)
        {
            if (ulong.TryParse(snapshot.IdText, NumberStyles.None, CultureInfo.InvariantCulture, out ulong id) && id < ulong.MaxValue)
                largest = Math.Max(largest, id);
        }

        return (largest + 1).ToString(CultureInfo.InvariantCulture);
    }

    private byte[] Serialize(Qcow2Snapshot[] snapshots)
    {
        long length = 0;
        foreach (Qcow2Snapshot snapshot in snapshots)
            length = Aligned(length) + snapshot.SizeOnDisk;
        if (length > Qcow2Limits.MaxSnapshotTableBytes)
            throw Refused($"the table would have {length} bytes, more than the limit of {Qcow2Limits.MaxSnapshotTableBytes}", "delete a snapshot first");
        byte[] table = new byte[length];
        int at = 0;
        foreach (Qcow2Snapshot snapshot in snapshots)
        {
            at = (int)Aligned(at);
            snapshot.WriteTo(table.AsSpan(at));
            at += snapshot.SizeOnDisk;
        }

        return table;
    }

    private static long Aligned(long offset) => (offset + Qcow2Snapshot.Alignment - 1) & -Qcow2Snapshot.Alignment;

    private ImageFormatException Refused(string problem, string advice) => new(_file.Name, Structure, -1, problem, advice);
}
