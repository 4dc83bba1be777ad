// The seam between the one engine and the formats. A format answers where guest blocks live, and changes that; it never moves
// guest data. Reserve -> write the data -> publish gives the crash order (I1) and leaves room for sharing.
namespace QcowFs.Images.Engine;

/// <summary>Fixed facts about a block map.</summary>
/// <param name="BlockSize">Unit of mapping in bytes, a power of two.</param>
/// <param name="SubBlockSize">Unit in which a block can be partly present, in bytes; the block size where it cannot.</param>
/// <param name="IsIdentity">Every block lives in the data file at its guest offset. Such a format has no zero blocks: the engine makes
/// the data file read as zeros there and publishes the blocks as data.</param>
internal readonly record struct BlockMapTraits(int BlockSize, int SubBlockSize, bool IsIdentity = false);

/// <summary>Host space for guest data that is about to be written, invisible until it is published.</summary>
/// <param name="Start">First guest byte that must hold the guest's data before the reservation is published.</param>
/// <param name="End">One past the last such byte. May lie before the end of the asked range: the caller asks again.</param>
/// <param name="Host">Where <paramref name="Start"/> lives in the data file.</param>
/// <param name="ReadsAsZero">The host space from <paramref name="Start"/> to <paramref name="End"/> reads as zeros now.</param>
/// <param name="InPlace">The space belongs to the block already (it was allocated but not in use).</param>
internal readonly record struct Reservation(long Start, long End, long Host, bool ReadsAsZero, bool InPlace);

/// <summary>Work that a crash left, done in the background.</summary>
internal interface IRecovery : IDisposable
{
    /// <summary>One line for a person about what was done. Valid after <see cref="Run"/>.</summary>
    string Summary { get; }

    /// <summary>Does the work, on a thread of its own.</summary>
    void Run(Action commit);

    /// <summary>Asks <see cref="Run"/> to end soon; the next mount goes on.</summary>
    void Stop();
}

/// <summary>Where the blocks of one image live. Lookup may be called from any thread at any time; the changing members by one
/// thread at a time for a given block (the engine's range lock), by many for different blocks.</summary>
internal interface IBlockMap : IDisposable
{
    /// <summary>Fixed facts.</summary>
    BlockMapTraits Traits { get; }

    /// <summary>What the range at <paramref name="offset"/> is made of, merged with like neighbours up to
    /// <paramref name="length"/>. For <see cref="ExtentKind.Compressed"/> the range ends with its block and Host is the
    /// format's own descriptor. Lock-free when the metadata is cached.</summary>
    Extent Lookup(long offset, long length);

    /// <summary>Copies a part, from byte <paramref name="offset"/> of the block on, of the compressed block that
    /// <paramref name="descriptor"/> describes. Call inside the reader epoch or under the block's range lock.</summary>
    void ReadCompressed(long descriptor, int offset, Span<byte> destination);

    /// <summary>Reserves host space for a prefix of a guest range none of which may be written in place. Nothing is visible and
    /// nothing has changed for readers until <see cref="Publish"/>. Throws <see cref="Storage.StorageException"/> with ENOSPC when the host
    /// is full.</summary>
    Reservation Reserve(long offset, long length);

    /// <summary>Maps the reserved range; its data has been written. Cannot fail for want of space.</summary>
    void Publish(in Reservation reservation);

    /// <summary>Gives a reservation back that was not published.</summary>
    void Abandon(in Reservation reservation);

    /// <summary>Makes a range of whole sub-blocks read as zeros and frees its space after the commit that makes this durable.
    /// False: the format cannot, and the caller writes zeros.</summary>
    bool TryPublishZero(long offset, long length);

    /// <summary>How blocks of this image are shared, or null where they cannot be.</summary>
    IBlockSharing? Sharing => null;

    /// <summary>Whether a commit should come before more changes, because too much is dirty.</summary>
    bool NeedsCommit { get; }

    /// <summary>Whether anything waits for a commit, including space to be freed.</summary>
    bool IsDirty { get; }

    /// <summary>Every block is the image's own from now on, at its guest offset: no lookup says otherwise any more, and the backing image
    /// is not needed. Never becomes false again.</summary>
    bool IsComplete => false;

    /// <summary>Whether the image can still be opened where its data file has become longer than the disk.</summary>
    bool ToleratesLongerData => true;

    /// <summary>Facts of the format that change while the image is in use, under the keys of <see cref="ImageFileFacts.FormatSpecific"/>.
    /// May read metadata.</summary>
    IReadOnlyList<FormatFact> CurrentFacts => [];

    /// <summary>Times that metadata was not in memory and had to be read; 0 where all of it is.</summary>
    long MetadataReads => 0;

    /// <summary>Called before the first change that a writer makes: marks the image as in use, durably (I9, I10).</summary>
    void BeginUse();

    /// <summary>Makes all changes up to now durable, in order, and frees what they released. One call at a time.</summary>
    /// <param name="takeDataDirty">Says whether guest data was written since it was last asked, so that the data file needs a sync.
    /// Asked once, after the set of changes to commit is fixed: the data of each of them was written before (I1).</param>
    /// <returns>Whether metadata was written.</returns>
    bool Commit(Func<bool> takeDataDirty);

    /// <summary>What must be asked before host bytes change, or null where nothing must.</summary>
    IWriteGuard? Guard => null;

    /// <summary>What an earlier crash left to be put right while the image is in use, or null.</summary>
    IRecovery? Recovery { get; }

    /// <summary>Ends the use of the image after the last commit: gives unused space back and clears the in-use mark.</summary>
    void EndUse();
}
