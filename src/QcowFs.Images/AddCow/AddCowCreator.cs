// Makes a new add-cow image of the final layout, and its image file where there is none yet.
// Everything but the first sector is durable before the first sector is written: until then the file begins with zeros and is no image.
using System.Numerics;
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

/// <summary>A new add-cow image of which all is decided.</summary>
internal sealed class AddCowBlueprint : IImageBlueprint
{
    private const string ImageFile = "image_file";
    private const string ImageFormat = "image_fmt";
    private const string ClusterSize = "cluster_size";

    private readonly AddCowHeader _header;
    private readonly long _size;

    private AddCowBlueprint(AddCowHeader header, long size)
    {
        _header = header;
        _size = size;
    }

    public string? DataFileName => _header.ImageName;

    public string DataFileOption => ImageFile;

    /// <summary>An image file that exists is taken as it is.</summary>
    public bool DataFileMayExist => true;

    /// <summary>Faults: <see cref="ImageOptionException"/>.</summary>
    public static AddCowBlueprint Design(ImageRequest request, CreateOptions options)
    {
        string name = options.Take(ImageFile)
            ?? throw new ImageOptionException(ImageFile, "state the file that is to hold the data, seen from the image's directory");
        string format = options.Take(ImageFormat) ?? "raw";
        if (ImageFormats.Find(format) is null)
            throw new ImageOptionException(ImageFormat, $"{Printable.Quote(format)} is not one of {string.Join(", ", ImageOpener.FormatNames)}");
        long clusterSize = options.TakeSize(ClusterSize, 1 << AddCowHeader.DefaultClusterBits);
        const long least = 1 << AddCowHeader.MinClusterBits, most = 1 << AddCowHeader.MaxClusterBits;
        if (clusterSize is < least or > most || !BitOperations.IsPow2(clusterSize))
            throw new ImageOptionException(ClusterSize, $"{clusterSize} is not a power of two from {least} to {most}");
        AddCowHeader header = new()
        {
            Layout = AddCowLayout.Final,
            ClusterBits = BitOperations.Log2((ulong)clusterSize),
            // Without a backing file there is nothing to come: the disk is the image file from the start.
            CompatFeatures = request.BackingName is null ? AddCowFeatures.AllAllocated : AddCowFeatures.None,
            BackingName = request.BackingName,
            BackingFormat = request.BackingName is null ? null : request.BackingFormat,
            ImageName = name,
            ImageFormat = format,
        };
        if (name.Length == 0 || request.BackingName?.Length == 0 || !header.NamesFit)
            throw new ImageOptionException(ImageFile, $"the names do not fit into a header of {header.BitmapOffset} bytes; give shorter ones, or a larger cluster_size");
        if (request.Size > AddCowGeometry.MaxDiskSize)
            throw new ImageOptionException("SIZE", $"a disk cannot have {request.Size} bytes");
        return new AddCowBlueprint(header, request.Size);
    }

    public void Build(IStorage file, IStorage? dataFile)
    {
        AddCowGeometry geometry = new(_header, PrepareImageFile(dataFile!));
        file.SetLength(geometry.FileLength);
        // Space for the bitmap now, so that no commit meets a full host.
        file.Reserve(_header.BitmapOffset, geometry.FileLength - _header.BitmapOffset);
        if (_header.IsAllAllocated)
            BitmapFile.Write(file, geometry, 0, geometry.Clusters, value: true);
        byte[] header = _header.ToBytes();
        file.Write(AddCowHeader.SectorSize, header.AsSpan(AddCowHeader.SectorSize));
        file.Sync();
        file.Write(0, header.AsSpan(0, AddCowHeader.SectorSize));
        file.Sync();
    }

    /// <summary>Makes the image file as large as was asked for, never smaller than it is. Gives the size of its disk.</summary>
    private long PrepareImageFile(IStorage dataFile)
    {
        if (_header.ImageFormat != "raw")
        {
            if (dataFile.Length == 0)
                throw new ImageOptionException(ImageFile, $"a new image file is raw; make the {_header.ImageFormat} image first");
            long? size = ImageFormats.Find(_header.ImageFormat)!.Read(dataFile).Describe().VirtualSize;
            return size >= _size ? size.Value
                : throw new ImageOptionException(ImageFile, $"its disk has {size?.ToString() ?? "unknown"} bytes, and {_size} are asked for");
        }

        if (dataFile.Length < _size)
            dataFile.SetLength(_size);
        dataFile.Sync();
        return dataFile.Length;
    }
}
