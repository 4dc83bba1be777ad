// What a format adds that keeps a record of which parts of the disk were changed.
namespace QcowFs.Images.Engine;

/// <summary>Is told of every change of the guest's disk.</summary>
internal interface IChangeTracker
{
    /// <summary>A range is about to be written, zeroed or discarded, after <see cref="IBlockMap.BeginUse"/>. Thread-safe.</summary>
    void Note(long offset, long length);

    /// <summary>Puts the record into the image; the commits that follow make it durable. Called once, when the last change has
    /// ended.</summary>
    void Store();
}
