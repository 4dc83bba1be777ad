// The options of a new VHDX image, under qemu-img's names and with its defaults; logical_sector_size is ours.
using System.Numerics;

namespace QcowFs.Images.Vhdx;

/// <summary>All that decides a new VHDX image; values that go together.</summary>
internal sealed record VhdxCreateOptions
{
    private const int DefaultSectorSize = 512;

    /// <summary>What Hyper-V takes for differencing disks: a large block would have a large share of sectors that stay the parent's.</summary>
    private const int DifferencingBlockSize = 2 << 20;

    public required long VirtualSize { get; init; }

    public required int BlockSize { get; init; }

    public required int LogSize { get; init; }

    public required int LogicalSectorSize { get; init; }

    public int PhysicalSectorSize { get; init; } = 4096;

    public bool IsFixed { get; init; }

    /// <summary>Blocks begin as zeros instead of as not present.</summary>
    public bool BlocksBeginZero { get; init; }

    /// <summary>The parent as the child names it, in this host's form, or null.</summary>
    public string? ParentPath { get; init; }

    /// <summary>The parent's data write GUID and disk identifier.</summary>
    public (Guid DataWrite, Guid Disk)? Parent { get; init; }

    /// <summary>Faults: <see cref="ImageOptionException"/>.</summary>
    public static VhdxCreateOptions Parse(ImageRequest request, CreateOptions options, VhdxLayout? parent)
    {
        if (request.BackingName is not null && parent is null)
            throw new ImageOptionException("--backing", "the parent of a VHDX image must be a VHDX image");
        bool isFixed = options.TakeChoice("subformat", "dynamic", "dynamic", "fixed") == "fixed";
        if (isFixed && parent is not null)
            throw new ImageOptionException("subformat", "a disk with a parent cannot be fixed");
        string sectorSize = options.TakeChoice("logical_sector_size", $"{parent?.Metadata.LogicalSectorSize ?? DefaultSectorSize}", "512", "4096");
        int logical = sectorSize == "512" ? 512 : 4096;
        if (parent is not null && logical != parent.Metadata.LogicalSectorSize)
            throw new ImageOptionException("logical_sector_size", $"the parent has sectors of {parent.Metadata.LogicalSectorSize} bytes");
        return new VhdxCreateOptions
        {
            VirtualSize = RequireSize(request.Size, logical, parent),
            BlockSize = TakeBlockSize(options, request.Size, parent is not null),
            LogSize = TakeLogSize(options),
            LogicalSectorSize = logical,
            PhysicalSectorSize = parent?.Metadata.PhysicalSectorSize ?? 4096,
            IsFixed = isFixed,
            BlocksBeginZero = options.TakeChoice("block_state_zero", "on", "on", "off") == "on" && !isFixed && parent is null,
            ParentPath = request.BackingName is null ? null : FromChild(request.Path, request.BackingName),
            Parent = parent is null ? null : (parent.Headers.Current.DataWriteGuid, parent.Metadata.DiskId),
        };
    }

    private static long RequireSize(long size, int sector, VhdxLayout? parent)
    {
        if (size > VhdxLimits.MaxVirtualSize)
            throw new ImageOptionException("SIZE", $"{size} bytes are more than the 64 TiB that a VHDX disk can have");
        // QEMU counts the table's entries of an empty disk as if it were endless.
        if (size == 0)
            throw new ImageOptionException("SIZE", "a VHDX disk cannot be empty");
        long rounded = (size + sector - 1) & -sector;
        return parent is null || rounded == parent.Metadata.VirtualSize ? rounded
            : throw new ImageOptionException("SIZE", $"a disk with a parent has its parent's size, {parent.Metadata.VirtualSize} bytes");
    }

    private static int TakeBlockSize(CreateOptions options, long diskSize, bool hasParent)
    {
        long size = options.TakeSize("block_size", 0);
        if (size == 0)
            return hasParent ? DifferencingBlockSize : DefaultBlockSize(diskSize);
        return size is >= VhdxLimits.MinBlockSize and <= VhdxLimits.MaxBlockSize && BitOperations.IsPow2(size) ? (int)size
            : throw new ImageOptionException("block_size", $"{size} is not a power of two from 1M to 256M");
    }

    // As QEMU chooses.
    private static int DefaultBlockSize(long diskSize) => diskSize switch
    {
        > 32L << 40 => 64 << 20,
        > 100L << 30 => 32 << 20,
        > 1L << 30 => 16 << 20,
        _ => 8 << 20,
    };

    private static int TakeLogSize(CreateOptions options)
    {
        const long largest = 1 << 30;
        long size = options.TakeSize("log_size", VhdxLimits.Alignment);
        return size is >= VhdxLimits.Alignment and <= largest && size % VhdxLimits.Alignment == 0 ? (int)size
            : throw new ImageOptionException("log_size", $"{size} is not a multiple of 1M up to 1G");
    }

    // The format knows relative paths, and absolute ones only of Windows.
    private static string FromChild(string child, string parent)
    {
        if (!Path.IsPathRooted(parent))
            return parent;
        return Path.GetRelativePath(Path.GetDirectoryName(Path.GetFullPath(child)) ?? "/", parent);
    }
}
