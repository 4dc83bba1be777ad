// What a block map offers that can map one host block several times. The engine finds equal blocks and compares them; the format keeps
// its reference counts and flags right (I2, I11).
using System.Collections;

namespace QcowFs.Images.Engine;

/// <summary>Sharing of host blocks between guest blocks of one image.</summary>
internal interface IBlockSharing
{
    /// <summary>Maps <paramref name="block"/> to the host block that <paramref name="owner"/> is mapped to. The caller holds the range lock
    /// of both exclusively and has found their bytes equal. Writing either in place is over with this call. False, with nothing
    /// changed, where the owner is not mapped so, or the block can take no more references. Throws
    /// <see cref="Storage.StorageException"/> with ENOSPC when the host is full.</summary>
    bool TryShare(long block, long owner, long host);

    /// <summary>Told of host blocks, offset and length in bytes, whose last reference is gone, before they are punched. Called by a
    /// commit, outside all locks. The bytes are still there.</summary>
    Action<long, long>? Freed { get; set; }

    /// <summary>Bit i: table i may hold a mapping that lacks the right to be written in place though it could have it. A copy.</summary>
    BitArray Tables { get; }

    /// <summary>Whether a mapping may have become the only one of its block since the last sweep.</summary>
    bool NeedsSweep { get; }

    /// <summary>Gives the right to be written in place back to mappings that are the only ones of their blocks. Runs beside everything
    /// else.</summary>
    /// <param name="commit">Commits the image; called when much is dirty, holding no lock.</param>
    /// <param name="stop">Ends the sweep early; what is left stays noted.</param>
    void Sweep(Action commit, Func<bool> stop);

    /// <summary>Whether the end of use leaves the mark that binds the image to its index.</summary>
    bool LeavesMark { get; set; }
}
