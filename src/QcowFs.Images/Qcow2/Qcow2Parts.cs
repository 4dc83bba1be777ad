// What the opener hands to the qcow2 image: everything opened, locked and checked, nothing left to look up by name.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

/// <summary>The parts of one qcow2 image. The image that is made from them owns and disposes all of them, also when making it
/// fails.</summary>
/// <param name="Header">The header of <paramref name="File"/>, supported under <paramref name="Options"/>.</param>
/// <param name="File">The image file, locked; writable iff <see cref="OpenOptions.Writable"/>.</param>
/// <param name="DataFile">The external data file, locked likewise, or null where guest data lives in <paramref name="File"/>.</param>
/// <param name="Backing">The backing image, read-only, or null.</param>
/// <param name="Options">How the image is to be opened.</param>
internal sealed record Qcow2Parts(Qcow2Header Header, IStorage File, IStorage? DataFile, IDiskImage? Backing, OpenOptions Options);
