// Repairs a VHDX image that nobody else has open.
//
// Mended is what can be without guessing: the log is replayed, a damaged copy of a header or of the region table is written anew from the
// other one, a missing log is made, bits of the table that must be zero are cleared, and of blocks that share a place all but the first
// get one of their own. Everything else is reported and left.
//
// F1. It begins with a sync and the replay (P1); a log that cannot be replayed is left alone, with everything else.
// F2. A copy is written only where the other one is valid and durable.
// F3. Entries change through the log.
// F4. Blocks that share a place are copied, so that each goes on reading as it did; whose the bytes are need not be known. It is done only
//     where that is all that is wrong: what lies in a structure's place, or past the end of the file, says that the table cannot be trusted,
//     and the new places could be what a broken entry means.
// F5. No byte that the guest reads changes, so the data write GUID stays and children of the disk stay valid.
using System.Buffers.Binary;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

internal static class VhdxRepair
{
    private const int CopyChunk = 1 << 20;

    /// <summary>Repairs and checks again. Faults: <see cref="ImageFormatException"/> where a root structure cannot be understood;
    /// <see cref="StorageException"/>, which leaves the image no worse than it was.</summary>
    public static CheckReport Run(IStorage file, RepairMode mode, GuidSource guids)
    {
        string? replayed = VhdxReplay.Run(file, guids); // F1
        List<EntryMend> mends = [];
        long shared = 0;
        CheckReport found = VhdxChecker.Check(file, mends.Add, _ => shared++);
        if (mode == RepairMode.Leaks || (replayed is null && found.Corruptions == 0))
            return found;
        VhdxLayout layout = VhdxLayout.Read(file);
        if (!layout.Headers.OtherIsValid || layout.Headers.Current.LogVersion != 0)
            layout.Headers.Change(file, header => header with { FileWriteGuid = guids.Next(), LogVersion = 0 }); // F2
        if (layout.LogRegion.Length == 0)
            MakeLog(layout, file, guids);
        if (!layout.Regions.OtherCopyIsValid)
            CopyRegionTable(layout, file);
        bool isTrusted = found.CheckErrors == 0 && found.Corruptions == found.HarmlessCorruptions + shared; // F4
        if (shared > 0 && isTrusted)
        {
            SeparateBlocks(file, guids);
            mends.Clear();
            _ = VhdxChecker.Check(file, mends.Add); // the entries as they are now
        }

        if (mends.Count > 0 && isTrusted)
            MendEntries(file, mends, guids);
        CheckReport left = VhdxChecker.Check(file);
        return left with { CorruptionsFixed = Math.Max(0, found.Corruptions - left.Corruptions) };
    }

    private static void MakeLog(VhdxLayout layout, IStorage file, GuidSource guids)
    {
        UsedSpace used = UsedSpace.Scan(layout, file, static _ => { /* The check tells about it. */ });
        long end = Math.Max(used.EndUnit * VhdxLimits.Alignment, (file.Length + VhdxLimits.Alignment - 1) & -VhdxLimits.Alignment);
        file.SetLength(end + VhdxLimits.Alignment);
        file.Sync();
        layout.Headers.Change(file, header => header with
        {
            FileWriteGuid = guids.Next(),
            LogOffset = (ulong)end,
            LogLength = VhdxLimits.Alignment,
            LogVersion = 0,
        });
    }

    private static void CopyRegionTable(VhdxLayout layout, IStorage file)
    {
        byte[] table = new byte[RegionTable.Size];
        file.Read(layout.Regions.TableOffset, table);
        file.Write(RegionTable.FirstOffset + RegionTable.SecondOffset - layout.Regions.TableOffset, table);
        file.Sync();
    }

    private static void MendEntries(IStorage file, List<EntryMend> mends, GuidSource guids)
    {
        VhdxEdit edit = BeginEdit(file, guids);
        byte[] bytes = new byte[BatEntry.Size];
        // An entry with two defects was told of twice; the last word has neither.
        foreach (EntryMend mend in mends)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(bytes, mend.Wanted.Raw);
            edit.Write(edit.Layout.Regions.Bat.Offset + mend.Index * BatEntry.Size, bytes);
        }

        edit.End();
    }

    private static void SeparateBlocks(IStorage file, GuidSource guids)
    {
        VhdxEdit edit = BeginEdit(file, guids);
        byte[] chunk = new byte[CopyChunk];
        _ = UsedSpace.Scan(edit.Layout, file, problem =>
        {
            if (problem.Shared is { } block)
                Separate(edit, file, block, chunk);
        });
        edit.End();
    }

    // F5
    private static VhdxEdit BeginEdit(IStorage file, GuidSource guids)
    {
        VhdxLayout layout = VhdxLayout.Read(file);
        layout.RequireWritable(file);
        return VhdxEdit.Begin(layout, file, guids, VhdxSpace.Scan(layout, file, static _ => { /* Known. */ }), keepsData: true);
    }

    // F4. The copy is durable before the entry that names it: each commit begins with a sync (I1).
    private static void Separate(VhdxEdit edit, IStorage file, SharedBlock block, byte[] chunk)
    {
        long host = edit.Space.Take(block.Length, out _);
        edit.NoteGrowth();
        for (int done = 0; done < block.Length; done += chunk.Length)
        {
            file.Read(block.Entry.Offset + done, chunk);
            if (chunk.AsSpan().ContainsAnyExcept((byte)0))
                file.Write(host + done, chunk);
        }

        byte[] entry = new byte[BatEntry.Size];
        BinaryPrimitives.WriteUInt64LittleEndian(entry, new BatEntry(block.Entry.State, host).Raw | (block.Entry.Raw & BatEntry.ReservedBits));
        edit.Write(edit.Layout.Regions.Bat.Offset + (block.Index * BatEntry.Size), entry);
    }
}
