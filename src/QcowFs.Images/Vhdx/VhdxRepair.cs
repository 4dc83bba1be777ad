// Repairs a VHDX image that nobody else has open.
//
// Mended is what can be without guessing: the log is replayed, a damaged copy of a header or of the region table is written anew from the
// other one, a missing log is made, and bits of the table that must be zero are cleared. Everything else is reported and left.
//
// F1. It begins with a sync and the replay (P1); a log that cannot be replayed is left alone, with everything else.
// F2. A copy is written only where the other one is valid and durable.
// F3. Entries change through the log.
using System.Buffers.Binary;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

internal static class VhdxRepair
{
    /// <summary>Repairs and checks again. Faults: <see cref="ImageFormatException"/> where a root structure cannot be understood;
    /// <see cref="StorageException"/>, which leaves the image no worse than it was.</summary>
    public static CheckReport Run(IStorage file, RepairMode mode, GuidSource guids)
    {
        string? replayed = VhdxReplay.Run(file, guids); // F1
        List<EntryMend> mends = [];
        CheckReport found = VhdxChecker.Check(file, mends.Add);
        if (mode == RepairMode.Leaks || (replayed is null && found.Corruptions == 0))
            return found;
        VhdxLayout layout = VhdxLayout.Read(file);
        if (!layout.Headers.OtherIsValid)
            layout.Headers.Change(file, header => header with { FileWriteGuid = guids.Next() }); // F2
        if (layout.LogRegion.Length == 0)
            MakeLog(layout, file, guids);
        if (!layout.Regions.OtherCopyIsValid)
            CopyRegionTable(layout, file);
        // F3: of entries that share a place it is not known whose it is, so nothing is written near them.
        if (mends.Count > 0 && found.Corruptions == found.HarmlessCorruptions)
            MendEntries(file, mends, guids);
        CheckReport left = VhdxChecker.Check(file);
        return left with { CorruptionsFixed = Math.Max(0, found.Corruptions - left.Corruptions) };
    }

    private static void MakeLog(VhdxLayout layout, IStorage file, GuidSource guids)
    {
        UsedSpace used = UsedSpace.Scan(layout, file, static (_, _, _) => { /* The check tells about it. */ });
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
        VhdxEdit edit = VhdxEdit.Begin(file, guids);
        byte[] bytes = new byte[BatEntry.Size];
        // An entry with two defects was told of twice; the last word has neither.
        foreach (EntryMend mend in mends)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(bytes, mend.Wanted.Raw);
            edit.Write(edit.Layout.Regions.Bat.Offset + mend.Index * BatEntry.Size, bytes);
        }

        edit.End();
    }
}
