// What a format adds that can store whole blocks compressed: compress without a lock -> reserve -> write the stream -> publish.
namespace QcowFs.Images.Engine;

/// <summary>Host space for a compressed block that is about to be written, invisible until it is published.</summary>
/// <param name="Block">Guest offset of the block.</param>
/// <param name="Host">Where the stream begins in the data file; any byte.</param>
/// <param name="Length">Bytes of the stream.</param>
internal readonly record struct CompressedReservation(long Block, long Host, int Length);

/// <summary>A block map that can store blocks compressed.</summary>
internal interface ICompressingMap : IBlockMap
{
    /// <summary>Compresses a whole block. Takes no lock, so that many threads compress at once.</summary>
    /// <param name="block">The block's bytes, all of them.</param>
    /// <param name="stream">Receives the stream; as large as a block.</param>
    /// <returns>Bytes of the stream, or 0 where the block does not become smaller.</returns>
    int Compress(ReadOnlySpan<byte> block, Span<byte> stream);

    /// <summary>Reserves space for the stream of a block. False, with nothing reserved, where the block has host space already or
    /// the format cannot place the stream: then the block is written as it is. Call under the block's exclusive range lock; the same
    /// thread publishes or abandons the reservation before it reserves another, and does not commit in between. Throws
    /// <see cref="Storage.StorageException"/> with ENOSPC when the host is full.</summary>
    bool TryReserveCompressed(long block, int length, out CompressedReservation reservation);

    /// <summary>Maps the block to its stream, which has been written. Cannot fail for want of space.</summary>
    void PublishCompressed(in CompressedReservation reservation);

    /// <summary>Gives a reservation back that was not published.</summary>
    void AbandonCompressed(in CompressedReservation reservation);
}
