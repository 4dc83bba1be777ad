// What edits of an image that nobody else has open share: the check before them, the in-use mark, walks over cluster trees.
//
// An edit plans everything in memory and is refused only there. Then it writes: first what makes nothing newly reachable (COPIED
// cleared, raised counts, new tables), a sync; then one sector of the header, a sync; then what the header no longer refers to is
// given up, and COPIED set again where a count fell to one. A crash leaves at worst leaks and missing COPIED flags.
//
// I8.  It begins with a sync.
// I9.  "In use" is durable before the first change and cleared after the last; found at a writable mount, leaks are collected.
// I11. COPIED is durably clear before a count is raised, and set only after the count of one is durable.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>An edit of one qcow2 image. Used by one thread. The file stays the caller's.</summary>
internal sealed class Qcow2Edit
{
    private readonly IStorage _file;

    private Qcow2Edit(Qcow2Header header, IStorage file)
    {
        Header = header;
        _file = file;
        Counts = new OfflineRefcounts(header, file);
    }

    /// <summary>The header as it was when the edit began.</summary>
    public Qcow2Header Header { get; }

    public OfflineRefcounts Counts { get; }

    /// <summary>Begins an edit of an image that may be opened for writing. Faults: <see cref="ImageFormatException"/> where its check
    /// finds anything worse than leaks and missing COPIED flags.</summary>
    public static Qcow2Edit Begin(Qcow2Header header, IStorage file)
    {
        file.Sync(); // I8
        CheckReport report = Qcow2Checker.Check(file);
        if (report.CheckErrors > 0 || report.Corruptions > report.HarmlessCorruptions)
        {
            CheckFinding? finding = report.Findings.FirstOrDefault(f => f.Severity is CheckSeverity.Corruption or CheckSeverity.Unchecked);
            throw new ImageFormatException(file.Name, finding?.Structure ?? "image", finding?.Offset ?? -1,
                finding?.Message ?? "the image is damaged", $"run qcowfs check --repair {file.Name}, then try again");
        }

        return new Qcow2Edit(header, file);
    }

    // I10: bits that stay true. An edit that changes the active disk sees to its bitmaps. A version 2 header has no such field.
    private AutoclearFeatures Kept => Header.AutoclearFeatures & (AutoclearFeatures.RawExternalData | AutoclearFeatures.Bitmaps);

    /// <summary>Begins an edit that is a part of a repair, which has checked the image.</summary>
    public static Qcow2Edit BeginChecked(Qcow2Header header, IStorage file) => new(header, file);

    /// <summary>Marks the image as in use.</summary>
    public void BeginUse() => SetAutoclear(Kept | AutoclearFeatures.InUse);

    /// <summary>Ends the use. The mark stays where the image had it: what an earlier crash left is not collected yet.</summary>
    public void EndUse() => SetAutoclear(Kept | (Header.AutoclearFeatures & AutoclearFeatures.InUse));

    /// <summary>The entries of an L1 table.</summary>
    public L1Entry[] ReadL1(long offset, int size)
    {
        byte[] bytes = new byte[size * L1Entry.Size];
        _file.Read(offset, bytes);
        L1Entry[] entries = new L1Entry[size];
        for (int i = 0; i < size; i++)
            entries[i] = L1Entry.Read(bytes.AsSpan(i * L1Entry.Size));
        return entries;
    }

    /// <summary>Writes a table into clusters of its own, zeros behind it.</summary>
    public void WriteL1(long offset, IReadOnlyList<L1Entry> entries)
    {
        byte[] bytes = new byte[entries.Count * L1Entry.Size];
        for (int i = 0; i < entries.Count; i++)
            entries[i].WriteTo(bytes.AsSpan(i * L1Entry.Size));
        WriteTable(offset, bytes);
    }

    /// <summary>Writes a table where it is, and nothing behind it.</summary>
    public void OverwriteL1(long offset, IReadOnlyList<L1Entry> entries)
    {
        byte[] bytes = new byte[entries.Count * L1Entry.Size];
        for (int i = 0; i < entries.Count; i++)
            entries[i].WriteTo(bytes.AsSpan(i * L1Entry.Size));
        _file.Write(offset, bytes);
    }

    /// <summary>Writes a structure into clusters of its own, zeros behind it.</summary>
    public void WriteTable(long offset, ReadOnlySpan<byte> content)
    {
        byte[] padded = new byte[(content.Length + Header.ClusterSize - 1) & -Header.ClusterSize];
        content.CopyTo(padded);
        _file.Write(offset, padded);
    }

    /// <summary>Visits every cluster that a tree refers to, once for each reference; not the L1 table's own.</summary>
    public void Walk(IEnumerable<L1Entry> l1, Action<long> visit)
    {
        byte[] table = new byte[Header.ClusterSize];
        foreach (L1Entry entry in l1)
        {
            if (!entry.IsAllocated)
                continue;
            visit(entry.TableOffset >> Header.ClusterBits);
            _file.Read(entry.TableOffset, table);
            WalkTable(table, 0, visit);
        }
    }

    /// <summary>Visits every cluster that the entries of an L2 table refer to, from an entry on.</summary>
    public void WalkTable(ReadOnlySpan<byte> table, int firstEntry, Action<long> visit)
    {
        for (int at = firstEntry * Header.L2EntrySize; at < table.Length; at += Header.L2EntrySize)
        {
            L2Entry entry = L2Entry.Read(table[at..]);
            if (entry.IsCompressed)
            {
                CompressedDescriptor stream = CompressedDescriptor.Of(entry, Header.ClusterBits);
                for (long cluster = stream.Offset >> Header.ClusterBits; cluster <= (stream.End - 1) >> Header.ClusterBits; cluster++)
                    visit(cluster);
            }
            else if (entry.HostOffset.Value != 0)
                visit(entry.HostOffset.Value >> Header.ClusterBits);
        }
    }

    /// <summary>Clears COPIED in a tree and, where it is the active one, in its L1 table; durably (I11).</summary>
    public void ClearCopied(L1Entry[] l1, long? activeL1Offset) => SetCopied(l1, activeL1Offset, static _ => false);

    /// <summary>Sets COPIED in the active tree where a cluster has one reference, and clears it elsewhere; durably (I11).</summary>
    public void RebuildCopied(L1Entry[] l1, long l1Offset) => SetCopied(l1, l1Offset, cluster => Counts[cluster] == 1);

    private void SetCopied(L1Entry[] l1, long? l1Offset, Func<long, bool> isCopied)
    {
        byte[] table = new byte[Header.ClusterSize];
        bool changed = false;
        for (int i = 0; i < l1.Length; i++)
        {
            if (!l1[i].IsAllocated)
                continue;
            _file.Read(l1[i].TableOffset, table);
            if (SetCopiedInTable(table, isCopied))
                _file.Write(l1[i].TableOffset, table);
            L1Entry entry = l1[i].WithCopied(isCopied(l1[i].TableOffset >> Header.ClusterBits));
            changed |= entry != l1[i];
            l1[i] = entry;
        }

        if (changed && l1Offset is { } offset)
            OverwriteL1(offset, l1);

        _file.Sync();
    }

    private bool SetCopiedInTable(Span<byte> table, Func<long, bool> isCopied)
    {
        bool changed = false;
        for (int at = 0; at < table.Length; at += Header.L2EntrySize)
        {
            L2Entry entry = L2Entry.Read(table[at..]);
            if (entry.IsCompressed || entry.HostOffset.Value == 0)
                continue;
            L2Entry wanted = entry.WithCopied(isCopied(entry.HostOffset.Value >> Header.ClusterBits));
            if (wanted == entry)
                continue;
            wanted.WriteTo(table[at..]);
            changed = true;
        }

        return changed;
    }

    private void SetAutoclear(AutoclearFeatures features)
    {
        if (Header.Version >= 3)
            Qcow2HeaderSector.Change(_file, sector => sector.SetAutoclear(features));
    }
}
