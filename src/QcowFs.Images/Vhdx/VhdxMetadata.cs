// The metadata region (fact sheet, section 4): what kind of disk the file holds. No checksum covers it, so every value is bounded
// here, in the width that it is used in afterwards.
using System.Buffers.Binary;
using System.Numerics;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>The items of the metadata region. Immutable.</summary>
internal sealed record VhdxMetadata
{
    public const int TableSize = 65536;
    public const int CountAt = 10;
    public const int EntriesAt = 32;
    public const int EntrySize = 32;
    public const int OffsetAt = 16;
    public const int LengthAt = 20;
    public const int FlagsAt = 24;
    public const uint UserFlag = 1;
    public const uint VirtualDiskFlag = 2;
    public const uint RequiredFlag = 4;
    public const uint LeaveBlocksAllocatedFlag = 1;
    public const uint HasParentFlag = 2;
    private const string Structure = "metadata table";
    private const string Damaged = "restore the file from a copy";

    public static ReadOnlySpan<byte> Signature => "metadata"u8;

    public required int BlockSize { get; init; }

    /// <summary>Blocks are never given back: the disk is fixed.</summary>
    public required bool LeavesBlocksAllocated { get; init; }

    public required long VirtualSize { get; init; }

    /// <summary>Where in the file the virtual size is.</summary>
    public long VirtualSizeAt { get; init; }

    public required int LogicalSectorSize { get; init; }

    public required int PhysicalSectorSize { get; init; }

    public required Guid DiskId { get; init; }

    /// <summary>How to find the parent, or null where there is none.</summary>
    public ParentLocator? Parent { get; init; }

    /// <summary>Reads and checks the region. Faults: <see cref="ImageFormatException"/>.</summary>
    public static VhdxMetadata Read(IStorage file, Region region)
    {
        byte[] table = new byte[TableSize];
        file.Read(region.Offset, table);
        if (!table.AsSpan().StartsWith(Signature))
            throw Bad(file, region.Offset, "it does not begin with its signature", Damaged);
        Items items = FindItems(file, region, table);
        (int blockSize, uint flags, long parametersAt) = ReadFileParameters(file, items);
        int logical = ReadSectorSize(file, items, VhdxGuids.LogicalSectorSize, "logical sector size");
        int physical = ReadSectorSize(file, items, VhdxGuids.PhysicalSectorSize, "physical sector size");
        (byte[] sizeBytes, long sizeAt) = items.Read(file, VhdxGuids.VirtualDiskSize, "virtual disk size", sizeof(ulong));
        ulong size = BinaryPrimitives.ReadUInt64LittleEndian(sizeBytes);
        if (size > VhdxLimits.MaxVirtualSize || size % (ulong)logical != 0)
        {
            throw new ImageFormatException(file.Name, "virtual disk size", sizeAt,
                $"{size} bytes, expected at most 64 TiB in sectors of {logical} bytes", Damaged);
        }

        bool hasParent = (flags & HasParentFlag) != 0;
        if (hasParent != items.Contains(VhdxGuids.ParentLocator))
        {
            throw new ImageFormatException(file.Name, "file parameters", parametersAt,
                hasParent ? "the disk has a parent but no parent locator" : "the disk has a parent locator but is said to have no parent", Damaged);
        }

        return new VhdxMetadata
        {
            BlockSize = blockSize,
            LeavesBlocksAllocated = (flags & LeaveBlocksAllocatedFlag) != 0,
            VirtualSize = (long)size,
            VirtualSizeAt = sizeAt,
            LogicalSectorSize = logical,
            PhysicalSectorSize = physical,
            DiskId = new Guid(items.Read(file, VhdxGuids.DiskId, "disk identifier", VhdxGuids.Size).Bytes),
            Parent = hasParent ? ReadParent(file, items) : null,
        };
    }

    private static (int BlockSize, uint Flags, long At) ReadFileParameters(IStorage file, Items items)
    {
        (byte[] bytes, long at) = items.Read(file, VhdxGuids.FileParameters, "file parameters", 2 * sizeof(uint));
        uint blockSize = BinaryPrimitives.ReadUInt32LittleEndian(bytes);
        if (blockSize is < VhdxLimits.MinBlockSize or > VhdxLimits.MaxBlockSize || !BitOperations.IsPow2(blockSize))
        {
            throw new ImageFormatException(file.Name, "file parameters", at,
                $"the block size is {blockSize}, expected a power of two from 1 MiB to 256 MiB", Damaged);
        }

        return ((int)blockSize, BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(sizeof(uint))), at);
    }

    private static int ReadSectorSize(IStorage file, Items items, Guid id, string name)
    {
        (byte[] bytes, long at) = items.Read(file, id, name, sizeof(uint));
        uint size = BinaryPrimitives.ReadUInt32LittleEndian(bytes);
        return size is 512 or 4096 ? (int)size
            : throw new ImageFormatException(file.Name, name, at, $"{size} bytes, expected 512 or 4096", Damaged);
    }

    private static ParentLocator ReadParent(IStorage file, Items items)
    {
        (byte[] bytes, long at) = items.Read(file, VhdxGuids.ParentLocator, "parent locator", -1);
        return ParentLocator.Parse(bytes, file.Name, at);
    }

    private static Items FindItems(IStorage file, Region region, ReadOnlySpan<byte> table)
    {
        int count = BinaryPrimitives.ReadUInt16LittleEndian(table[CountAt..]);
        if (count > VhdxLimits.MaxMetadataItems)
            throw Bad(file, region.Offset + CountAt, $"it has {count} entries, at most {VhdxLimits.MaxMetadataItems} are allowed", Damaged);
        Items items = new();
        HashSet<(Guid, bool)> seen = [];
        List<(long Start, long End, long At)> places = [];
        int userItems = 0;
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> entry = table.Slice(EntriesAt + i * EntrySize, EntrySize);
            long at = region.Offset + EntriesAt + i * EntrySize;
            Guid id = new(entry[..VhdxGuids.Size]);
            uint offset = BinaryPrimitives.ReadUInt32LittleEndian(entry[OffsetAt..]);
            uint length = BinaryPrimitives.ReadUInt32LittleEndian(entry[LengthAt..]);
            uint flags = BinaryPrimitives.ReadUInt32LittleEndian(entry[FlagsAt..]);
            bool isUser = (flags & UserFlag) != 0;
            if (!seen.Add((id, isUser)))
                throw Bad(file, at, $"item {id} is there twice", Damaged);
            if (isUser && ++userItems > VhdxLimits.MaxUserItems)
                throw Bad(file, at, $"there are more than {VhdxLimits.MaxUserItems} user items", Damaged);
            bool inside = length == 0 || (offset >= TableSize && length <= VhdxLimits.MaxMetadataItem && offset + (long)length <= region.Length);
            if (!inside)
                throw Bad(file, at, $"item {id} of {length} bytes at offset {offset} does not lie in the region's {region.Length} bytes behind the table", Damaged);
            if (length > 0)
                places.Add((offset, offset + (long)length, at));
            if (!isUser && Items.IsKnown(id))
                items.Add(id, region.Offset + offset, (int)length, at);
            else if ((flags & RequiredFlag) != 0)
                throw Bad(file, at, $"item {id} is required and not known", "use software that knows it");
        }

        places.Sort();
        for (int i = 1; i < places.Count; i++)
        {
            if (places[i].Start < places[i - 1].End)
                throw Bad(file, places[i].At, $"the item at offset {places[i].Start} overlaps the one at offset {places[i - 1].Start}", Damaged);
        }

        return items;
    }

    private static ImageFormatException Bad(IStorage file, long offset, string problem, string advice) =>
        new(file.Name, Structure, offset, problem, advice);

    /// <summary>Where the known items are.</summary>
    private sealed class Items
    {
        private readonly Dictionary<Guid, (long Offset, int Length, long EntryAt)> _places = [];

        public static bool IsKnown(Guid id) => id == VhdxGuids.FileParameters || id == VhdxGuids.VirtualDiskSize || id == VhdxGuids.DiskId
            || id == VhdxGuids.LogicalSectorSize || id == VhdxGuids.PhysicalSectorSize || id == VhdxGuids.ParentLocator;

        public void Add(Guid id, long offset, int length, long entryAt) => _places[id] = (offset, length, entryAt);

        public bool Contains(Guid id) => _places.ContainsKey(id);

        /// <summary>An item's bytes.</summary>
        /// <param name="file">The file.</param>
        /// <param name="id">The item.</param>
        /// <param name="name">Its name for a person.</param>
        /// <param name="expected">Its length, or -1 where that varies.</param>
        public (byte[] Bytes, long At) Read(IStorage file, Guid id, string name, int expected)
        {
            if (!_places.TryGetValue(id, out (long Offset, int Length, long EntryAt) place))
                throw new ImageFormatException(file.Name, Structure, -1, $"there is no item for the {name}", Damaged);
            if (expected >= 0 && place.Length != expected)
                throw Bad(file, place.EntryAt, $"the item for the {name} has {place.Length} bytes, expected {expected}", Damaged);
            byte[] bytes = new byte[place.Length];
            file.Read(place.Offset, bytes);
            return (bytes, place.Offset);
        }
    }
}
