// Reads the snapshot table: contiguous, entries of variable length, bounded in count and total length before anything is kept.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>The snapshots of an image and the place of their table.</summary>
/// <param name="Snapshots">In table order.</param>
/// <param name="Length">Bytes of the table from <see cref="Qcow2Header.SnapshotsOffset"/> on, without the last entry's padding.</param>
internal sealed record Qcow2SnapshotTable(IReadOnlyList<Qcow2Snapshot> Snapshots, long Length)
{
    private const string Structure = "snapshot table";

    public static Qcow2SnapshotTable Empty { get; } = new([], 0);

    /// <summary>Reads the table. Faults: <see cref="ImageFormatException"/>, <see cref="StorageException"/>.</summary>
    public static Qcow2SnapshotTable Read(Qcow2Header header, IStorage file)
    {
        if (header.SnapshotCount == 0)
            return Empty;

        // The shortest entry must fit in the file for each of them before room for the list is made.
        long room = file.Length - header.SnapshotsOffset;
        if (room < (long)header.SnapshotCount * Qcow2Snapshot.FixedSize)
        {
            throw Bad(file, header.SnapshotsOffset,
                $"{header.SnapshotCount} entries do not fit into the {Math.Max(room, 0)} bytes up to the end of the file");
        }

        WindowReader reader = new(file);
        List<Qcow2Snapshot> snapshots = new(header.SnapshotCount);
        long at = header.SnapshotsOffset;
        for (int i = 0; i < header.SnapshotCount; i++)
        {
            at = (at + Qcow2Snapshot.Alignment - 1) & -Qcow2Snapshot.Alignment;
            Qcow2Snapshot snapshot = ReadEntry(reader, file, at, i);
            snapshots.Add(snapshot);
            at += snapshot.SizeOnDisk;
            if (at - header.SnapshotsOffset > Qcow2Limits.MaxSnapshotTableBytes)
                throw Bad(file, snapshot.Offset, $"the table is longer than the limit of {Qcow2Limits.MaxSnapshotTableBytes} bytes");
        }

        return new Qcow2SnapshotTable(snapshots, at - header.SnapshotsOffset);
    }

    /// <summary>The snapshot of that name, or without one, of that id. Faults: <see cref="ImageFormatException"/> where there is none, or
    /// the name is not the only one.</summary>
    public Qcow2Snapshot Find(IStorage file, string nameOrId, bool isId = false)
    {
        Qcow2Snapshot[] named = isId ? [] : [.. Snapshots.Where(s => s.NameText == nameOrId)];
        if (named.Length > 1)
        {
            throw new ImageFormatException(file.Name, Structure, named[1].Offset,
                $"{named.Length} snapshots have the name {Printable.Quote(nameOrId)}",
                $"give the id of one: {string.Join(", ", named.Select(s => Printable.Quote(s.IdText)))}");
        }

        return named.FirstOrDefault() ?? Snapshots.FirstOrDefault(s => s.IdText == nameOrId)
            ?? throw new ImageFormatException(file.Name, Structure, -1, $"there is no snapshot {Printable.Quote(nameOrId)}",
                "see qcowfs snapshot list");
    }

    /// <summary>The header as it would be if a snapshot's disk were the active one. Faults: <see cref="ImageFormatException"/>.</summary>
    public Qcow2Header HeaderAt(Qcow2Header header, IStorage file, string nameOrId, bool isId = false)
    {
        Qcow2Snapshot snapshot = Find(file, nameOrId, isId);
        if (!ReferenceCounter.IsUsable(header, snapshot))
        {
            throw Bad(file, snapshot.Offset,
                $"the L1 table of snapshot {Printable.Quote(nameOrId)}, {snapshot.L1Size} entries at byte {snapshot.L1Offset}, is not possible");
        }

        // Entries of old images do not state the size: it was today's.
        ulong size = snapshot.VirtualSize ?? (ulong)header.VirtualSize;
        if (size > long.MaxValue || header.L1EntriesFor((long)size) > snapshot.L1Size)
        {
            throw Bad(file, snapshot.Offset,
                $"snapshot {Printable.Quote(nameOrId)} has {size} bytes, more than its L1 table of {snapshot.L1Size} entries maps");
        }

        return header with { L1Offset = snapshot.L1Offset, L1Size = (int)snapshot.L1Size, VirtualSize = (long)size };
    }

    private static Qcow2Snapshot ReadEntry(WindowReader reader, IStorage file, long at, int index)
    {
        int? size = Qcow2Snapshot.MeasureEntry(reader.Get(at, Qcow2Snapshot.FixedSize));
        if (size is null)
            throw Bad(file, at, $"entry {index} has more extra data than the limit of {Qcow2Limits.MaxSnapshotExtraBytes} bytes");

        return size.Value <= file.Length - at ? Qcow2Snapshot.Parse(reader.Get(at, size.Value), at)
            : throw Bad(file, at, $"entry {index} of {size} bytes reaches past the end of the file at byte {file.Length}");
    }

    private static ImageFormatException Bad(IStorage file, long offset, string problem) =>
        new(file.Name, Structure, offset, problem, Qcow2HeaderReader.DamagedAdvice);
}
