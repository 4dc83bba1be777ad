// What a format adds whose commit lists data by checksum: it must know which bytes are new, and that listed ones stay.
namespace QcowFs.Images.Engine;

/// <summary>Asked and told by the engine around its writes to host space, inside the reader epoch. Thread-safe.</summary>
internal interface IWriteGuard
{
    /// <summary>Whether guest data is listed; else only changes are logged.</summary>
    bool ListsData { get; }

    /// <summary>Whether host bytes may change that a mapping may already show. False: a commit must come first, and the caller, which
    /// has left its locks and the epoch for it, looks the mapping up again.</summary>
    bool TryOverwrite(long host, long length);

    /// <summary>Notes bytes that are written to reserved space before it is published.</summary>
    void NoteFresh(long host, long length);

    /// <summary>Called after a change of the mapping, before it is acknowledged, outside locks and epoch: makes it survive a kill of
    /// this process. False: a commit must do that.</summary>
    bool TryLogChanges();

    /// <summary>Whether a commit would free writers from waiting for one.</summary>
    bool HasUnconfirmed { get; }
}
