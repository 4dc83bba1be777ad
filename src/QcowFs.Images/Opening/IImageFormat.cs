// What the opener asks of a format, and the one list of formats there are.
using QcowFs.Images.AddCow;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Raw;
using QcowFs.Images.Vhdx;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>An image format. Stateless.</summary>
internal interface IImageFormat
{
    /// <summary>The name that users and images state it by.</summary>
    string Name { get; }

    /// <summary>Whether a file that begins with these bytes is of this format.</summary>
    bool Recognises(ReadOnlySpan<byte> start);

    /// <summary>Reads and checks what describes the image. The file stays the caller's. Faults:
    /// <see cref="ImageFormatException"/>, <see cref="StorageException"/>.</summary>
    IImageLayer Read(IStorage file);

    /// <summary>Judges a request for a new image before any file is made. Faults: <see cref="ImageOptionException"/>.</summary>
    IImageBlueprint Design(ImageRequest request, CreateOptions options);
}

/// <summary>A new image of which all is decided.</summary>
internal interface IImageBlueprint
{
    /// <summary>Name of an external data file, seen from the image's directory, that must be made too; or null.</summary>
    string? DataFileName { get; }

    /// <summary>The option by which the user named it.</summary>
    string DataFileOption => "data_file";

    /// <summary>Whether a data file that exists is used as it is; otherwise none may be there.</summary>
    bool DataFileMayExist => false;

    /// <summary>Writes the image into empty files and makes their content durable. A crash before this returns leaves no file that
    /// would be taken for an image.</summary>
    void Build(IStorage file, IStorage? dataFile);
}

/// <summary>One image file whose description was understood, not yet an open disk.</summary>
internal interface IImageLayer
{
    /// <summary>The names of other files that the image needs. Several of kind <see cref="ReferenceKind.Backing"/> are names for one
    /// file, in the order in which they are to be tried.</summary>
    IReadOnlyList<NamedReference> References { get; }

    /// <summary>The same image with an internal snapshot's disk, found by name or id, or with <paramref name="isId"/> by id alone, in
    /// place of the active one; for reading only. Faults: <see cref="ImageFormatException"/>.</summary>
    IImageLayer AtSnapshot(string name, bool isId);

    /// <summary>Unit of mapping in bytes, or 0 where the format has none.</summary>
    int BlockSize => 0;

    /// <summary>Why blocks of the image cannot be shared, or null where they can.</summary>
    string? SharingObstacle => "its format cannot map two blocks to one place";

    /// <summary>Why blocks of the image cannot be written compressed, or null where they can.</summary>
    string? WhyNotCompressed => "the format has no compressed blocks";

    /// <summary>Why the image cannot be written with a journal, and what to do; or null where it can.</summary>
    (string Problem, string Advice)? WhyNoJournal => ("the format has no journal", "mount it without --journal");

    /// <summary>Throws <see cref="ImageFormatException"/> where the image cannot be used so.</summary>
    void RequireOpenable(bool writable);

    /// <summary>Throws <see cref="ImageFormatException"/> where the image that a name led to is not the one that this image was made
    /// over. A format that keeps no record of it takes any.</summary>
    void RequireBacking(IImageLayer backing, string name)
    {
        // Any will do.
    }

    /// <summary>Makes the disk image, which owns the file and both parameters from then on, also when this throws.</summary>
    /// <param name="dataFile">The data file that the image names: as it is where it is raw, else as an open disk image.</param>
    /// <param name="backing">The backing image, or null.</param>
    /// <param name="options">How to open it.</param>
    IDiskImage Open(IStorage? dataFile, IDiskImage? backing, OpenOptions options);

    /// <summary>Makes, applies or deletes an internal snapshot, durably. The file is open for writing and stays the caller's. Faults:
    /// <see cref="ImageFormatException"/> (nothing changed), <see cref="StorageException"/>.</summary>
    void EditSnapshot(SnapshotAction action, string name, DateTimeOffset now);

    /// <summary>Gives the disk another size, durably. The file is open for writing and stays the caller's, as does
    /// <paramref name="dataFile"/>, the external data file of an image that has one, which is resized too where the format asks for that;
    /// <paramref name="backing"/> becomes the call's. Faults: <see cref="ImageFormatException"/> (nothing changed),
    /// <see cref="StorageException"/>.</summary>
    void Resize(long size, IStorage? dataFile, IDiskImage? backing);

    /// <summary>Facts from the image's own file. Reads more of it than opening does.</summary>
    ImageFileFacts Describe();

    /// <summary>As <see cref="Describe()"/>, where facts follow from the size of the data file's disk.</summary>
    /// <param name="dataSize">That size in bytes, or null where it is not known.</param>
    ImageFileFacts Describe(long? dataSize) => Describe();

    /// <summary>What the image's journal holds; null where it has none.</summary>
    JournalFacts? DescribeJournal() => null;

    /// <summary>Checks the image's consistency without changing it.</summary>
    CheckReport Check();

    /// <summary>Has the checks and repairs that follow tell, now and then, which part of the image has been looked at, 0 to 1; each pass of
    /// a repair begins at 0. A format whose checks are short need not.</summary>
    void ReportTo(Action<double> progress)
    {
        // Nothing is told.
    }

    /// <summary>Repairs the image, whose file must be writable and used by nobody else, and checks it again.</summary>
    CheckReport Repair(RepairMode mode);

    /// <summary>As <see cref="Check()"/>, for an image that cannot be judged without the files that it names.</summary>
    CheckReport Check(Func<NamedReference, NamedDisk> look) => Check();

    /// <summary>As <see cref="Repair(RepairMode)"/>, likewise.</summary>
    CheckReport Repair(RepairMode mode, Func<NamedReference, NamedDisk> look) => Repair(mode);
}

/// <summary>What a check learns of a file that the image names.</summary>
/// <param name="Size">The size of its disk in bytes, or null where that is not known.</param>
/// <param name="Problem">Why it cannot be opened, in words that name it, or null.</param>
/// <param name="Layer">The image as it was read, its file closed again, or null where it cannot be opened.</param>
internal readonly record struct NamedDisk(long? Size, string? Problem, IImageLayer? Layer = null)
{
    /// <summary>Its name is none, or the policy does not allow to open it, so nothing is known of it.</summary>
    public bool IsRefused { get; init; }
}

internal static class ImageFormats
{
    private const int LongestMagic = 512;

    /// <summary>Every format, in the order of probing.</summary>
    public static IReadOnlyList<IImageFormat> All { get; } = [new Qcow2Format(), new AddCowFormat(), new VhdxFormat(), new RawFormat()];

    /// <summary>The format of that name, or null.</summary>
    public static IImageFormat? Find(string name) => All.FirstOrDefault(f => f.Name == name);

    /// <summary>The format whose magic number the file begins with, or null. A known magic of a format that is not built in is an
    /// <see cref="ImageFormatException"/>: taken for raw, its container would be served as the disk.</summary>
    public static IImageFormat? Probe(IStorage file)
    {
        IImageFormat? format = Recognise(file, out byte[] start);
        if (format is null && ForeignFormats.Name(start) is { } foreign)
        {
            throw new ImageFormatException(file.Name, "format", 0, $"the file looks like {foreign}, which cannot be opened",
                "convert it with qemu-img convert");
        }

        return format;
    }

    /// <summary>The format whose magic number the file begins with, or null; without an opinion on what else it may be.</summary>
    public static IImageFormat? Recognise(IStorage file) => Recognise(file, out _);

    private static IImageFormat? Recognise(IStorage file, out byte[] start)
    {
        byte[] read = new byte[Math.Min(LongestMagic, file.Length)];
        file.Read(0, read);
        start = read;
        return All.FirstOrDefault(f => f.Recognises(read));
    }
}
