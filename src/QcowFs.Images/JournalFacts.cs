// What an image's journal holds, for people and programs that look at it without opening the disk.
namespace QcowFs.Images;

/// <summary>A range of the image file.</summary>
/// <param name="Offset">Bytes.</param>
/// <param name="Length">Bytes.</param>
public readonly record struct FileRange(long Offset, long Length);

/// <summary>The journal of an image. Immutable.</summary>
public sealed record JournalFacts
{
    /// <summary>Path of the image file as the user gave it.</summary>
    public required string Path { get; init; }

    /// <summary>Where the records lie in the file, and bytes for them.</summary>
    public required FileRange Ring { get; init; }

    /// <summary>The last record whose sync is known to have returned; 0: none.</summary>
    public required ulong Confirmed { get; init; }

    /// <summary>All records count, because the host never went down since they were written.</summary>
    public required bool AfterKill { get; init; }

    /// <summary>What a replay would do, in words.</summary>
    public required string Summary { get; init; }

    /// <summary>The records in their order.</summary>
    public required IReadOnlyList<JournalRecordFacts> Records { get; init; }
}

/// <summary>One record of a journal.</summary>
/// <param name="Sequence">Its number.</param>
/// <param name="Kind">"commit" or "intent".</param>
/// <param name="Place">Where it lies in the file.</param>
/// <param name="Confirms">The last commit that it confirms; 0: none.</param>
/// <param name="DataIsDurable">Its data was synced before it, so that it lists none.</param>
/// <param name="Verdict">"replayed"; "not-acknowledged": no sync returned for it, and its data is not all there; "unsynced": no sync
/// asked for it.</param>
/// <param name="Writes">Metadata that it changes.</param>
/// <param name="Revokes">Freed ranges, where older records count no more.</param>
/// <param name="Checks">Data that must be there for it to count.</param>
public sealed record JournalRecordFacts(
    ulong Sequence, string Kind, FileRange Place, ulong Confirms, bool DataIsDurable, string Verdict,
    IReadOnlyList<FileRange> Writes, IReadOnlyList<FileRange> Revokes, IReadOnlyList<FileRange> Checks);
