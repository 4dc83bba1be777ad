// Changes of single header fields in place. All that an edit switches lies in the first sector, which is never torn: the header on
// disk is the old one or the new one.
using System.Buffers.Binary;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>The first sector of an image, between reading and writing it back.</summary>
internal readonly ref struct Qcow2HeaderSector(Span<byte> bytes)
{
    private const int Size = 512;
    private readonly Span<byte> _bytes = bytes;

    /// <summary>A change of fields.</summary>
    public delegate void Edit(Qcow2HeaderSector sector);

    /// <summary>Changes fields in one write and makes it durable.</summary>
    public static void Change(IStorage file, Edit edit)
    {
        Span<byte> sector = stackalloc byte[Size];
        file.Read(0, sector);
        edit(new Qcow2HeaderSector(sector));
        file.Write(0, sector);
        file.Sync();
    }

    public void SetVirtualSize(long size) => BinaryPrimitives.WriteInt64BigEndian(_bytes[Qcow2HeaderLayout.VirtualSizeAt..], size);

    public void SetL1(long offset, int entries)
    {
        BinaryPrimitives.WriteInt32BigEndian(_bytes[Qcow2HeaderLayout.L1SizeAt..], entries);
        BinaryPrimitives.WriteInt64BigEndian(_bytes[Qcow2HeaderLayout.L1OffsetAt..], offset);
    }

    public void SetRefcountTable(long offset, int clusters)
    {
        BinaryPrimitives.WriteInt64BigEndian(_bytes[Qcow2HeaderLayout.RefcountTableOffsetAt..], offset);
        BinaryPrimitives.WriteInt32BigEndian(_bytes[Qcow2HeaderLayout.RefcountTableClustersAt..], clusters);
    }

    public void SetSnapshots(long offset, int count)
    {
        BinaryPrimitives.WriteInt32BigEndian(_bytes[Qcow2HeaderLayout.SnapshotCountAt..], count);
        BinaryPrimitives.WriteInt64BigEndian(_bytes[Qcow2HeaderLayout.SnapshotsOffsetAt..], offset);
    }

    public void SetAutoclear(AutoclearFeatures features) =>
        BinaryPrimitives.WriteUInt64BigEndian(_bytes[Qcow2HeaderLayout.AutoclearFeaturesAt..], (ulong)features);
}
