// An image's files, open and locked, over which disks are opened, closed and opened again.
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>
/// The hold on one image. The first disk takes the locks; they last until the hold is disposed, whatever disks come and go. Used under
/// a lock of the caller's, except <see cref="HostFile"/>. Faults as those of <see cref="ImageOpener"/> and <see cref="ImageEditor"/>.
/// </summary>
public interface IImageHold : IDisposable
{
    /// <summary>Facts of the image file now. Asked by descriptor: the mount may cover the path.</summary>
    HostFileFacts HostFile { get; }

    /// <summary>Opens the active disk.</summary>
    IDiskImage OpenDisk(bool writable);

    /// <summary>Opens an internal snapshot's disk, for reading, beside the active one.</summary>
    IDiskImage OpenSnapshot(string nameOrId, bool isId);

    /// <summary>Makes a file without a name beside the image, for a view of one of its disks; null where views are not made. Faults:
    /// <see cref="Storage.StorageException"/>.</summary>
    Storage.FileStorage? CreateView() => null;

    /// <summary>Facts as the file holds them now.</summary>
    ImageFileFacts ReadFacts();

    /// <summary>Edits a snapshot. The active disk is closed, and so is a deleted snapshot's.</summary>
    void EditSnapshot(SnapshotAction action, string name);

    /// <summary>Changes the size; gives the new one. The active disk is closed.</summary>
    long Resize(SizeChange change, bool mayShrink);

    /// <summary>Gives the disk this size, smaller or larger, because a program on the mount asked for it. The active disk is closed.</summary>
    void SetSize(long size) => Resize(new SizeChange(size), mayShrink: true);

    /// <summary>Checks the image. The active disk is closed.</summary>
    CheckReport Check();
}
