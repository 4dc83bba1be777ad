// Bytes to an AddCowHeader. Pure and total: any bytes give a header or an ImageFormatException. Each rule of the format is asked here
// that the header alone can answer; what needs the image file's size is AddCowGeometry's.
//
// The layouts of June to October 2012 share magic and version with that of March and are not documented in full. A file is of March
// only where the reserved bytes are zero, the image's name stands at its place, zero padded, and the length is that of March's bitmap.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Storage;

namespace QcowFs.Images.AddCow;

internal readonly ref struct AddCowHeaderReader
{
    internal const string Structure = "header";
    internal const string DamagedAdvice = "the file is damaged; restore it from a copy";
    internal const string OlderAdvice = "its layout is not documented; open it with the software that made it";

    private readonly string _file;
    private readonly ReadOnlySpan<byte> _bytes;

    private AddCowHeaderReader(ReadOnlySpan<byte> bytes, string file)
    {
        _bytes = bytes;
        _file = file;
    }

    /// <summary>Reads and checks the header of a file. Faults: <see cref="ImageFormatException"/>, <see cref="StorageException"/>.</summary>
    public static AddCowHeader Read(IStorage file)
    {
        byte[] start = new byte[Math.Min(AddCowHeader.MinHeaderSize, file.Length)];
        file.Read(0, start);
        int size = new AddCowHeaderReader(start, file.Name).ReadHeaderSize();
        if (size > start.Length)
        {
            start = new byte[Math.Min(size, file.Length)];
            file.Read(0, start);
        }

        return Parse(start, file.Name);
    }

    /// <summary>Checks a header.</summary>
    /// <param name="header">The file's first bytes, the whole header unless the file is shorter. More is ignored.</param>
    /// <param name="file">What messages call the file.</param>
    public static AddCowHeader Parse(ReadOnlySpan<byte> header, string file)
    {
        int size = new AddCowHeaderReader(header, file).ReadHeaderSize();
        if (header.Length < size)
        {
            throw new ImageFormatException(file, Structure, -1, $"the file has {header.Length} bytes, the header needs {size}",
                "the file is cut short; restore it from a copy");
        }

        AddCowHeaderReader reader = new(header[..size], file);
        return header.StartsWith(AddCowHeader.Magic) ? reader.ReadFinal() : reader.ReadMarch();
    }

    // What must be known before the rest of the header can be read.
    private int ReadHeaderSize()
    {
        if (_bytes.StartsWith(AddCowHeader.MarchMagic))
            return AddCowHeader.MarchBitmapAt;
        if (!_bytes.StartsWith(AddCowHeader.Magic))
        {
            string found = _bytes.IsEmpty ? "the file is empty" : $"the magic number is {Convert.ToHexStringLower(_bytes[..Math.Min(8, _bytes.Length)])}";
            throw Bad(0, $"{found}, expected 41434f57 or 4144445f434f57ff", "the file is not an add-cow image; state its real format with -f");
        }

        if (_bytes.Length < AddCowHeader.FieldsLength)
            return AddCowHeader.MinHeaderSize;
        uint clusterBits = UInt32(AddCowHeader.ClusterBitsAt);
        if (clusterBits is < AddCowHeader.MinClusterBits or > AddCowHeader.MaxClusterBits)
        {
            throw Bad(AddCowHeader.ClusterBitsAt,
                $"cluster_bits is {clusterBits}, expected {AddCowHeader.MinClusterBits} to {AddCowHeader.MaxClusterBits}", DamagedAdvice);
        }

        int expected = AddCowHeader.HeaderSizeFor((int)clusterBits);
        uint size = UInt32(AddCowHeader.HeaderSizeAt);
        return size == expected ? expected
            : throw Bad(AddCowHeader.HeaderSizeAt, $"header_size is {size}, expected {expected} with clusters of {1 << (int)clusterBits} bytes", DamagedAdvice);
    }

    private AddCowHeader ReadFinal()
    {
        ulong features = UInt64(AddCowHeader.FeaturesAt);
        if (features != 0)
            throw Bad(AddCowHeader.FeaturesAt, $"features {features:x} are set, of which none is known", "open it with the software that made it");
        string? backing = ReadName("backing", AddCowHeader.BackingOffsetAt, AddCowHeader.BackingSizeAt);
        string image = ReadName("image", AddCowHeader.ImageOffsetAt, AddCowHeader.ImageSizeAt)
            ?? throw Bad(AddCowHeader.ImageOffsetAt, "the image file's name is empty", DamagedAdvice);
        string backingFormat = ReadFormatName("backing_fmt", AddCowHeader.BackingFormatAt);
        string imageFormat = ReadFormatName("image_fmt", AddCowHeader.ImageFormatAt);
        if (backing is null != (backingFormat.Length == 0))
        {
            throw Bad(AddCowHeader.BackingFormatAt,
                backing is null ? $"backing_fmt is {Printable.Quote(backingFormat)} without a backing file" : "backing_fmt is empty with a backing file",
                DamagedAdvice);
        }

        return new AddCowHeader
        {
            Layout = AddCowLayout.Final,
            ClusterBits = (int)UInt32(AddCowHeader.ClusterBitsAt),
            CompatFeatures = (AddCowFeatures)UInt64(AddCowHeader.CompatFeaturesAt),
            BackingName = backing,
            BackingFormat = backing is null ? null : backingFormat,
            ImageName = image,
            ImageFormat = imageFormat.Length > 0 ? imageFormat : throw Bad(AddCowHeader.ImageFormatAt, "image_fmt is empty", DamagedAdvice),
        };
    }

    private AddCowHeader ReadMarch()
    {
        uint version = BinaryPrimitives.ReadUInt32BigEndian(_bytes[AddCowHeader.MarchVersionAt..]);
        if (version != 1)
            throw Bad(AddCowHeader.MarchVersionAt, $"version is {version}, expected 1", "open it with the software that made it");
        ReadOnlySpan<byte> reserved = _bytes[AddCowHeader.MarchReservedAt..AddCowHeader.MarchBitmapAt];
        string? image = ReadPadded(AddCowHeader.MarchImageAt);
        string? backing = ReadPadded(AddCowHeader.MarchBackingAt);
        bool isResizing = reserved.StartsWith(AddCowHeader.MarchResizing);
        if (reserved[(isResizing ? AddCowHeader.MarchMarkLength : 0)..].ContainsAnyExcept((byte)0) || string.IsNullOrEmpty(image) || backing is null)
            throw Older(_file, "its names and reserved bytes are not where the layout of March 2012 has them");
        return new AddCowHeader
        {
            Layout = AddCowLayout.March2012,
            CompatFeatures = isResizing ? AddCowFeatures.Resizing : AddCowFeatures.None,
            BackingName = backing.Length == 0 ? null : backing,
            ImageName = image,
        };
    }

    /// <summary>The refusal of a layout between the two that are known.</summary>
    public static ImageFormatException Older(string file, string reason) =>
        new(file, Structure, 0, $"this is an add-cow of June to October 2012: {reason}", OlderAdvice);

    private string? ReadName(string what, int offsetAt, int sizeAt)
    {
        uint offset = UInt32(offsetAt);
        uint size = UInt32(sizeAt);
        uint end = (uint)_bytes.Length;
        if (offset == 0 && size == 0)
            return null;
        if (offset == 0 || size == 0)
        {
            throw Bad(offset == 0 ? offsetAt : sizeAt,
                $"the {what} name has offset {offset} and size {size}; both or neither must be zero", DamagedAdvice);
        }

        if (offset < AddCowHeader.FieldsLength || offset > end - 2)
            throw Bad(offsetAt, $"the {what} name's offset is {offset}, expected {AddCowHeader.FieldsLength} to {end - 2}", DamagedAdvice);
        if (size >= end - AddCowHeader.FieldsLength || size > end - offset)
            throw Bad(sizeAt, $"the {what} name's {size} bytes reach past the header's end at byte {end}", DamagedAdvice);
        ReadOnlySpan<byte> name = _bytes.Slice((int)offset, (int)size);
        return name.Contains((byte)0) ? throw Bad(offset + name.IndexOf((byte)0), $"the {what} name holds a NUL", DamagedAdvice)
            : Encoding.UTF8.GetString(name);
    }

    private string ReadFormatName(string what, int at)
    {
        ReadOnlySpan<byte> field = _bytes.Slice(at, AddCowHeader.FormatNameLength);
        int length = field.IndexOf((byte)0);
        if (length < 0)
            throw Bad(at, $"{what} does not end with a NUL within its {AddCowHeader.FormatNameLength} bytes", DamagedAdvice);
        if (field[length..].ContainsAnyExcept((byte)0))
            throw Bad(at, $"{what} is not padded with zeros", DamagedAdvice);
        return Ascii.IsValid(field[..length]) ? Encoding.ASCII.GetString(field[..length]) : throw Bad(at, $"{what} is not ASCII", DamagedAdvice);
    }

    // Null where the field is not a name with nothing but zeros behind it.
    private string? ReadPadded(int at)
    {
        ReadOnlySpan<byte> field = _bytes.Slice(at, AddCowHeader.MarchNameLength);
        int length = field.IndexOf((byte)0);
        return length < 0 || field[length..].ContainsAnyExcept((byte)0) ? null : Encoding.UTF8.GetString(field[..length]);
    }

    private uint UInt32(int at) => BinaryPrimitives.ReadUInt32LittleEndian(_bytes[at..]);

    private ulong UInt64(int at) => BinaryPrimitives.ReadUInt64LittleEndian(_bytes[at..]);

    private ImageFormatException Bad(long offset, string problem, string advice) => new(_file, Structure, offset, problem, advice);
}
