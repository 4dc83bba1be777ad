// Gives the disk of an add-cow image another size. The disk's size is the image file's, so the one step that changes it is that of the
// image file's length; everything else must be invisible before it or after it.
//
// Z1. While the size changes the header carries our own compatible bit, set first and cleared last, each durably. Under it bits past the
//     disk's end count for nothing: neither as clusters nor as the sign of a lost tail. The layout of March 2012, which is told by its
//     length, has a mark in its reserved bytes instead, under which the length counts for nothing.
// Z2. Growing: bits first, then the image file. New clusters that the backing file covers get their bit, since new bytes read as zeros and
//     never as the backing file; so does the last one where it was cut, with its bytes copied, and synced, before. All other new bits are
//     written as zeros, so that none is left from before (grow before clear would show stale clusters).
// Z3. Shrinking: the image file first, then the bits past the end. The other order would bring the backing file's old bytes back in the
//     part that goes, should the change be interrupted.
// Z4. An interrupted change ends by the disk's size as it is found: Finish clears what lies past it and then the mark.
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

internal static class AddCowResize
{
    private const string Structure = "size";

    /// <summary>Changes the size, durably. The backing image becomes the call's. Faults: <see cref="ImageFormatException"/> (nothing
    /// changed), <see cref="StorageException"/>.</summary>
    public static void Run(AddCowHeader header, IStorage file, IStorage data, IDiskImage? backing, long size)
    {
        using (backing)
        {
            RequireResizable(header, file, data, size);
            data.Sync();
            file.Sync();
            AddCowGeometry old = new(header, data.Length);
            old.Require(file, header.ImageName);
            if (header.IsResizing)
                old = old with { Header = Finish(file, old) };
            if (size == old.DiskSize)
                return;
            AddCowHeader marked = old.Header with { CompatFeatures = old.Header.CompatFeatures | AddCowFeatures.Resizing };
            AddCowCommit.WriteFeatures(file, marked); // Z1
            if (size > old.DiskSize)
                WriteNewBits(file, data, backing, old, new AddCowGeometry(marked, size)); // Z2
            data.SetLength(size);
            data.Sync();
            Finish(file, new AddCowGeometry(marked, data.Length));
            if (data.Length != size)
                throw new ImageFormatException(file.Name, Structure, -1, $"the image file {data.Name} cannot be given {size} bytes", "a block device keeps its size");
        }
    }

    /// <summary>Ends a change of the size: what lies past the disk's end goes, then the mark (Z4). Gives the header without it.</summary>
    public static AddCowHeader Finish(IStorage file, AddCowGeometry geometry)
    {
        BitmapFile.CutToSize(file, geometry);
        file.Sync();
        AddCowHeader header = geometry.Header with { CompatFeatures = geometry.Header.CompatFeatures & ~AddCowFeatures.Resizing };
        AddCowCommit.WriteFeatures(file, header);
        return header;
    }

    // Z2
    private static void WriteNewBits(IStorage file, IStorage data, IDiskImage? backing, AddCowGeometry old, AddCowGeometry next)
    {
        AddCowHeader header = old.Header;
        long covered = header.IsAllAllocated ? next.DiskSize : Math.Min(backing?.Length ?? 0, next.DiskSize);
        long firstSet = old.Clusters;
        if (!header.IsAllAllocated && covered > old.DiskSize && CopyCutCluster(file, data, backing!, old))
            firstSet = old.Clusters - 1;
        long firstClear = Math.Max(old.Clusters, covered >> header.ClusterBits);
        if (firstClear << header.ClusterBits < covered)
            firstClear++;
        long fileLength = file.Length;
        if (fileLength < next.FileLength)
            file.SetLength(next.FileLength);
        BitmapFile.Write(file, next, firstSet, firstClear, value: true);
        BitmapFile.Write(file, next, firstClear, Math.Min(next.Clusters, old.BitsIn(fileLength)), value: false);
        file.Sync();
    }

    // The last cluster of the disk, where the end cuts it and the backing file goes on: grown, it would show what was cut off.
    private static bool CopyCutCluster(IStorage file, IStorage data, IDiskImage backing, AddCowGeometry old)
    {
        long start = old.DiskSize & -old.Header.ClusterSize;
        if (start == old.DiskSize || BitmapFile.Read(file, old, old.Clusters - 1))
            return false;
        byte[] bytes = new byte[(int)(old.DiskSize - start)];
        backing.Read(start, bytes);
        data.Write(start, bytes);
        data.Sync();
        return true;
    }

    private static void RequireResizable(AddCowHeader header, IStorage file, IStorage data, long size)
    {
        if (data is IDiskImage)
            throw new ImageFormatException(file.Name, Structure, -1, $"the image file is {header.ImageFormat}, not raw", "convert it to raw with qemu-img convert first");
        if (size > AddCowGeometry.MaxDiskSize)
            throw new ImageFormatException(file.Name, Structure, -1, $"a disk cannot have {size} bytes", "give less");
    }
}
