// What the tree shows of an image before anybody opens it: its size, its snapshots, its partitions.
using QcowFs.FileSystem.Partitions;
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>The shape of an image. Immutable.</summary>
/// <param name="Format">Format name.</param>
/// <param name="VirtualSize">Bytes of the active disk.</param>
/// <param name="BlockSize">Unit of its mapping in bytes, or 0.</param>
/// <param name="Snapshots">Its internal snapshots.</param>
/// <param name="Partitions">The partitions of the active disk.</param>
internal sealed record ImageShape(
    string Format, long VirtualSize, long BlockSize, IReadOnlyList<SnapshotFacts> Snapshots, PartitionTable Partitions);
