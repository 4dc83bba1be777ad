// What the layers above see of an image: a storage that presents a guest disk kept in some format.
using System.Diagnostics.CodeAnalysis;
using Microsoft.Win32.SafeHandles;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>
/// A guest disk kept in some format. As a storage its bytes are the guest's. <see cref="IStorage.Sync"/> makes data and metadata
/// durable. <see cref="IDisposable.Dispose"/> without <see cref="Close"/> abandons the image as a crash would: nothing more is
/// written, and what was not synced may be lost.
/// </summary>
public interface IDiskImage : IStorage
{
    /// <summary>Facts about the image that opening established.</summary>
    ImageInfo Info { get; }

    /// <summary>What has been done through this image since it was opened. The object is live; its members are thread-safe.</summary>
    ImageStatistics Statistics { get; }

    /// <summary>Why the image takes no more changes (I7), or null while it does. Once set it stays.</summary>
    string? Failure { get; }

    /// <summary>The kind of the range that begins at <paramref name="offset"/>, with neighbours of the same kind (and consecutive
    /// host offsets) merged up to <paramref name="length"/> bytes. Unallocated ranges are resolved through the backing chain:
    /// <see cref="Extent.Depth"/> tells the layer, and <see cref="ExtentKind.Backing"/> means that no layer holds data.
    /// No guest data is read.</summary>
    Extent QueryExtent(long offset, long length);

    /// <summary>Gives the host file when it is a regular one, guest offset equals host offset everywhere and the file ends where the disk
    /// ends, so that a kernel could serve it directly. The handle stays owned by the image. May read all of the mapping.</summary>
    bool TryGetIdentityFile([NotNullWhen(true)] out SafeFileHandle? file);

    /// <summary>Gives the identity file to somebody who writes to it past this image. From then on to the close
    /// the mapping stays as it is (zeroing and discarding happen in the file), <see cref="IStorage.Sync"/> and <see cref="Close"/> make
    /// their writes durable too, and the image's own reads and writes may go on. Called again where it was given before. False where the file is not the disk, or where every
    /// write must be seen: dirty bitmaps, a journal.</summary>
    bool TryBeginOutsideWrites([NotNullWhen(true)] out SafeFileHandle? file)
    {
        file = null;
        return false;
    }

    /// <summary>Nobody else has the identity file open any more; somebody may still have it mapped. What was written past the end of a disk whose size an image states
    /// is cut off; a disk that is its file has grown.</summary>
    void EndOutsideWrites()
    {
        // Nobody could begin.
    }

    /// <summary>Gives a disk that is its file another length at once, whoever uses it; not durable before a later sync. False where the
    /// size is stated elsewhere.</summary>
    bool TrySetFileLength(long length) => false;

    /// <summary>Makes the disk larger where that takes no more than a change in place; new bytes read as zeros. The new size is durable
    /// after the next <see cref="IStorage.Sync"/>; a crash before that leaves the old or the new one. Call while no other call is under way.
    /// False, with nothing changed, where the disk must be closed and changed by <see cref="ImageEditor"/>. Faults:
    /// <see cref="StorageException"/>.</summary>
    /// <param name="size">The size in bytes, a multiple of <see cref="ImageInfo.SizeUnit"/>.</param>
    bool TryGrow(long size) => false;

    /// <summary>Gives the host file that data extents of a layer (<see cref="Extent.Depth"/>) lie in, where they do so directly. It stays
    /// owned by the image.</summary>
    bool TryGetDataFile(int depth, [NotNullWhen(true)] out FileStorage? file)
    {
        file = null;
        return false;
    }

    /// <summary>Facts, now, of the host file that holds the guest's data where that is another than the image's own; else null.</summary>
    FileFacts? DataFile => null;

    /// <summary>How far the copying from the backing image has come, or null where none was asked for.</summary>
    FillProgress? Fill => null;

    /// <summary>Those of the format's facts that change while the image is in use, under the keys of
    /// <see cref="ImageFileFacts.FormatSpecific"/>.</summary>
    IReadOnlyList<FormatFact> CurrentFacts => [];

    /// <summary>Ends the image properly: commits, collects what is pending, clears the in-use mark, makes all durable and releases
    /// the files. Throws <see cref="StorageException"/> when anything was not durable; the files are released all the same.
    /// A second call does nothing.</summary>
    void Close();
}
