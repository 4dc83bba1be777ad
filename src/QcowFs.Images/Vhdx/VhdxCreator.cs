// Writes a new VHDX image into an empty file.
//   [header area 1 MiB][log][metadata region 1 MiB][BAT region]( [blocks] where fixed )
// Everything but the file identifier is durable before that is written, in one sector: until then the file is no image, so a crash
// leaves nothing that is half one.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

internal static class VhdxCreator
{
    private const int CreatorAt = 8;
    private const string Creator = "QcowFs";
    private const int TableChunk = 64 << 10;

    /// <summary>Makes the image, durably. Faults: <see cref="StorageException"/>.</summary>
    public static void Create(IStorage file, VhdxCreateOptions options, GuidSource guids)
    {
        BatGeometry geometry = new(options.VirtualSize, options.BlockSize, options.LogicalSectorSize, options.Parent is not null);
        Region log = new(VhdxLimits.Alignment, options.LogSize);
        Region metadata = new(log.End, VhdxLimits.Alignment);
        Region bat = new(metadata.End, geometry.RegionLength);
        long length = bat.End + (options.IsFixed ? geometry.BlockCount << geometry.BlockBits : 0);
        file.SetLength(length);
        WriteMetadata(file, metadata, options, guids);
        WriteTable(file, bat, geometry, options);
        byte[] regions = RegionTable.Make(bat, metadata);
        file.Write(RegionTable.FirstOffset, regions);
        file.Write(RegionTable.SecondOffset, regions);
        VhdxHeaders.WriteNew(file, new VhdxHeader
        {
            Sequence = 1,
            FileWriteGuid = guids.Next(),
            DataWriteGuid = guids.Next(),
            LogGuid = Guid.Empty,
            Version = VhdxHeader.KnownVersion,
            LogLength = (uint)log.Length,
            LogOffset = (ulong)log.Offset,
        });
        file.Sync();
        byte[] identifier = new byte[512];
        VhdxLayout.Magic.CopyTo(identifier);
        Encoding.Unicode.GetBytes(Creator, identifier.AsSpan(CreatorAt));
        file.Write(0, identifier);
        file.Sync();
    }

    private static void WriteMetadata(IStorage file, Region region, VhdxCreateOptions options, GuidSource guids)
    {
        uint parameters = (options.IsFixed ? VhdxMetadata.LeaveBlocksAllocatedFlag : 0) | (options.Parent is not null ? VhdxMetadata.HasParentFlag : 0);
        const uint disk = VhdxMetadata.VirtualDiskFlag | VhdxMetadata.RequiredFlag;
        List<(Guid Id, uint Flags, byte[] Content)> items =
        [
            (VhdxGuids.FileParameters, VhdxMetadata.RequiredFlag, [.. Bytes((uint)options.BlockSize), .. Bytes(parameters)]),
            (VhdxGuids.VirtualDiskSize, disk, Bytes((ulong)options.VirtualSize)),
            (VhdxGuids.DiskId, disk, (options.Parent?.Disk ?? guids.Next()).ToByteArray()),
            (VhdxGuids.LogicalSectorSize, disk, Bytes((uint)options.LogicalSectorSize)),
            (VhdxGuids.PhysicalSectorSize, disk, Bytes((uint)options.PhysicalSectorSize)),
        ];
        if (options.Parent is { } parent)
        {
            byte[] locator = ParentLocator.Make(parent.DataWrite, [new(ParentLocator.RelativePathKey, ParentPath.FromHost(options.ParentPath!))]);
            items.Add((VhdxGuids.ParentLocator, VhdxMetadata.RequiredFlag, locator));
        }

        byte[] table = new byte[VhdxMetadata.TableSize];
        VhdxMetadata.Signature.CopyTo(table);
        BinaryPrimitives.WriteUInt16LittleEndian(table.AsSpan(VhdxMetadata.CountAt), (ushort)items.Count);
        int offset = VhdxMetadata.TableSize;
        for (int i = 0; i < items.Count; i++)
        {
            (Guid id, uint flags, byte[] content) = items[i];
            Span<byte> entry = table.AsSpan(VhdxMetadata.EntriesAt + i * VhdxMetadata.EntrySize, VhdxMetadata.EntrySize);
            id.TryWriteBytes(entry);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[VhdxMetadata.OffsetAt..], (uint)offset);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[VhdxMetadata.LengthAt..], (uint)content.Length);
            BinaryPrimitives.WriteUInt32LittleEndian(entry[VhdxMetadata.FlagsAt..], flags);
            file.Write(region.Offset + offset, content);
            offset += (content.Length + 7) & -8;
        }

        file.Write(region.Offset, table);
    }

    private static void WriteTable(IStorage file, Region bat, BatGeometry geometry, VhdxCreateOptions options)
    {
        if (!options.IsFixed && !options.BlocksBeginZero)
            return;
        byte[] chunk = new byte[TableChunk];
        for (long first = 0; first < geometry.EntryCount; first += TableChunk / BatEntry.Size)
        {
            int count = (int)Math.Min(TableChunk / BatEntry.Size, geometry.EntryCount - first);
            chunk.AsSpan().Clear();
            for (int i = 0; i < count; i++)
            {
                if (geometry.IsBitmapIndex(first + i))
                    continue;
                BatEntry entry = options.IsFixed
                    ? new BatEntry(BlockState.FullyPresent, bat.End + (geometry.BlockOf(first + i) << geometry.BlockBits))
                    : new BatEntry(BlockState.Zero, 0);
                BinaryPrimitives.WriteUInt64LittleEndian(chunk.AsSpan(i * BatEntry.Size), entry.Raw);
            }

            file.Write(bat.Offset + first * BatEntry.Size, chunk.AsSpan(0, count * BatEntry.Size));
        }
    }

    private static byte[] Bytes(uint value)
    {
        byte[] bytes = new byte[sizeof(uint)];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, value);
        return bytes;
    }

    private static byte[] Bytes(ulong value)
    {
        byte[] bytes = new byte[sizeof(ulong)];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        return bytes;
    }
}
