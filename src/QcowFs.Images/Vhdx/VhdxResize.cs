// Changes the size of a VHDX disk that nobody else has open.
//
// Z1. Growing: everything past the old end reads as zeros before the metadata states the new size: the rest of the last block, and what
//     stands in the table behind the old last entry.
// Z2. Growing: a larger table is complete and durable at its new place before the region tables name that; the second copy of those is
//     changed first and synced, so that a torn first one leaves a valid second one. Both tables say the same meanwhile.
// Z3. Shrinking: the metadata states the new size before anything is unmapped, so that no crash shows a disk with zeros in it where its
//     size still covers them.
using System.Buffers.Binary;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

internal static class VhdxResize
{
    private const int CopyChunk = 1 << 20;

    /// <summary>Gives the disk another size, durably. Faults: <see cref="ImageFormatException"/> before anything but the log changes;
    /// <see cref="StorageException"/>, which leaves a valid image of the old or the new size.</summary>
    public static void Run(VhdxLayout layout, IStorage file, long size, GuidSource guids)
    {
        RequirePossible(layout, file, size);
        string? replayed = VhdxReplay.Run(file, guids);
        layout = VhdxLayout.Read(file);
        VhdxMetadata metadata = layout.Metadata;
        BatGeometry geometry = new(size, metadata.BlockSize, metadata.LogicalSectorSize, hasParent: false);
        VhdxSpace space = VhdxSpace.Scan(layout, file);
        // An interrupted resize may have come as far as the new size and not given its space back.
        if (size == metadata.VirtualSize && replayed is null && space.UsedEnd() >= file.Length)
            return;
        if (geometry.TableLength > layout.Regions.Bat.Length)
        {
            layout.Headers.Change(file, header => header with { FileWriteGuid = guids.Next() });
            MoveTable(layout, file, geometry, space);
            layout = VhdxLayout.Read(file);
            space = VhdxSpace.Scan(layout, file);
        }

        VhdxEdit edit = VhdxEdit.Begin(layout, file, guids, space);
        if (size > metadata.VirtualSize)
            Grow(edit, file, geometry);
        else if (size < metadata.VirtualSize)
            Shrink(edit, file, geometry);
        edit.End();
    }

    private static void RequirePossible(VhdxLayout layout, IStorage file, long size)
    {
        layout.RequireWritable(file);
        if (size % layout.Metadata.LogicalSectorSize != 0)
            throw Refused(file, $"the disk cannot have {size} bytes", $"give a multiple of {layout.Metadata.LogicalSectorSize}");
        if (size > VhdxLimits.MaxVirtualSize)
            throw Refused(file, $"{size} bytes are more than the 64 TiB that a VHDX disk can have", "give less");
        if (layout.Metadata.Parent is not null && size != layout.Metadata.VirtualSize)
            throw Refused(file, "a disk with a parent has its parent's size", "convert it to a disk of its own with qemu-img convert");
    }

    // Z2
    private static void MoveTable(VhdxLayout layout, IStorage file, BatGeometry geometry, VhdxSpace space)
    {
        Region old = layout.Regions.Bat;
        Region bat = new(space.Take(geometry.RegionLength, out _), geometry.RegionLength);
        byte[] chunk = new byte[CopyChunk];
        for (long done = 0; done < layout.Geometry.TableLength; done += CopyChunk)
        {
            int length = (int)Math.Min(CopyChunk, layout.Geometry.TableLength - done);
            file.Read(old.Offset + done, chunk.AsSpan(0, length));
            file.Write(bat.Offset + done, chunk.AsSpan(0, length));
        }

        file.Sync();
        byte[] table = new byte[RegionTable.Size];
        file.Read(layout.Regions.TableOffset, table);
        RegionTable.MoveBat(table, bat);
        // Where only the second copy is valid it is the one in use, and the first one is changed first.
        long first = RegionTable.FirstOffset + RegionTable.SecondOffset - layout.Regions.TableOffset;
        file.Write(first, table);
        file.Sync();
        file.Write(layout.Regions.TableOffset, table);
        file.Sync();
    }

    // Z1
    private static void Grow(VhdxEdit edit, IStorage file, BatGeometry geometry)
    {
        BatGeometry old = edit.Layout.Geometry;
        if (old.VirtualSize % old.BlockSize != 0)
            ClearTail(edit, file, old);
        for (long index = old.EntryCount; index < geometry.EntryCount; index++)
            SetEntry(edit, file, index, NewEntry(edit, geometry, index));
        edit.Commit();
        SetSize(edit, geometry.VirtualSize);
    }

    /// <summary>Clears what lies behind the disk's end in its last block.</summary>
    private static void ClearTail(VhdxEdit edit, IStorage file, BatGeometry old)
    {
        BatEntry last = ReadEntry(edit, file, old.PayloadIndex(old.BlockCount - 1));
        if (!last.HasData)
            return;
        int used = (int)(old.VirtualSize & (old.BlockSize - 1));
        file.WriteZeroes(last.Offset + used, old.BlockSize - used);
        edit.NoteGrowth();
    }

    private static BatEntry NewEntry(VhdxEdit edit, BatGeometry geometry, long index)
    {
        if (geometry.IsBitmapIndex(index) || !edit.Layout.Metadata.LeavesBlocksAllocated)
            return default;
        long host = edit.Space.Take(geometry.BlockSize, out _);
        edit.NoteGrowth();
        return new BatEntry(BlockState.FullyPresent, host);
    }

    // Z3
    private static void Shrink(VhdxEdit edit, IStorage file, BatGeometry geometry)
    {
        SetSize(edit, geometry.VirtualSize);
        BatGeometry old = edit.Layout.Geometry;
        for (long index = geometry.EntryCount; index < old.EntryCount; index++)
        {
            BatEntry entry = ReadEntry(edit, file, index);
            if (!old.IsBitmapIndex(index) && entry.HasData)
                edit.Remove(entry.Offset, old.BlockSize);
            SetEntry(edit, file, index, default);
        }
    }

    private static void SetSize(VhdxEdit edit, long size)
    {
        byte[] bytes = new byte[sizeof(long)];
        BinaryPrimitives.WriteInt64LittleEndian(bytes, size);
        edit.Write(edit.Layout.Metadata.VirtualSizeAt, bytes);
        edit.Commit();
    }

    private static BatEntry ReadEntry(VhdxEdit edit, IStorage file, long index)
    {
        Span<byte> bytes = stackalloc byte[BatEntry.Size];
        file.Read(edit.Layout.Regions.Bat.Offset + index * BatEntry.Size, bytes);
        return new BatEntry(BinaryPrimitives.ReadUInt64LittleEndian(bytes));
    }

    private static void SetEntry(VhdxEdit edit, IStorage file, long index, BatEntry entry)
    {
        if (ReadEntry(edit, file, index) == entry)
            return;
        Span<byte> bytes = stackalloc byte[BatEntry.Size];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, entry.Raw);
        edit.Write(edit.Layout.Regions.Bat.Offset + index * BatEntry.Size, bytes);
    }

    private static ImageFormatException Refused(IStorage file, string problem, string advice) => new(file.Name, "size", -1, problem, advice);
}
