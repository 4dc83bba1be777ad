// Replays the log of a file that is open for writing.
//
// P1. It begins with a sync, so that no entry is trusted that could still vanish (I8), and reads everything anew after it.
// P2. A new file write GUID is durable in both headers before anything else changes.
// P3. The log stays in use, and its entries untouched, until all that they say is applied and synced: a replay that is interrupted is
//     simply done again, with the same outcome (I8).
// P4. Then the log is closed in both headers, durably.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

internal static class VhdxReplay
{
    /// <summary>Replays the log where it is in use, durably. Gives what was done in words, or null. Faults:
    /// <see cref="ImageFormatException"/> before anything changes; <see cref="StorageException"/>.</summary>
    public static string? Run(IStorage file, GuidSource guids)
    {
        file.Sync(); // P1
        VhdxLayout layout = VhdxLayout.Read(file);
        if (layout.Log is not { } log)
            return null;
        layout.Headers.Change(file, header => header with { FileWriteGuid = guids.Next() }); // P2
        Apply(file, log);
        file.Sync(); // P3
        layout.Headers.Change(file, header => header with { LogGuid = Guid.Empty }); // P4
        return $"the last writer did not end properly; {log.Summary} were replayed";
    }

    private static void Apply(IStorage file, ActiveLog log)
    {
        if (file.Length < log.FileLength)
            file.SetLength(log.FileLength);
        byte[] page = new byte[VhdxLimits.SectorSize];
        foreach (ActiveLog.Segment segment in log.Segments)
        {
            if (log.IsZero(segment))
            {
                file.Discard(segment.Start, segment.End - segment.Start);
                continue;
            }

            log.ReadPage(file, segment, page);
            file.Write(segment.Start, page);
        }
    }
}
